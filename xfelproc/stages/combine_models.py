"""Beams and detectors that combined lattices share: compared within tolerances, averaged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.motion import corners, levels, orthonormal, panels_of, rigid_motion, with_motions
from xfelproc.models.experiment import Beam, Detector, as_vector
from xfelproc.stages.combine_settings import Combine

Floats = NDArray[np.float64]
BEAM = 11
"""Numbers a beam."""


def beam_row(beam: Beam) -> list[float]:
    """Return a beam as numbers: wavelength, direction, polarisation normal and fraction, divergence, bandwidth, flux."""
    return [
        beam.wavelength,
        *beam.direction,
        *beam.polarization_normal,
        beam.polarization_fraction,
        beam.divergence,
        beam.bandwidth,
        beam.flux,
    ]


def beam_of(row: Floats) -> Beam:
    """Return the beam of numbers (11,); directions are made unit vectors, for they may be means."""
    direction, normal = (v / np.linalg.norm(v) for v in (row[1:4], row[4:7]))
    return Beam(float(row[0]), as_vector(direction), as_vector(normal), *(float(v) for v in row[7:11]))


def beam_difference(reference: Floats, rows: Floats, settings: Combine) -> tuple[int, str] | None:
    """Return the first of some beams (n, 11) that differs from a reference (11,) by more than is allowed, and in what."""
    checks = (
        ("wavelength", np.abs(rows[:, 0] / reference[0] - 1.0), settings.wavelength_tolerance, "relative"),
        ("direction of the beam", _angles(reference[1:4], rows[:, 1:4]), settings.direction_tolerance, "°"),
        ("plane of polarisation", _angles(reference[4:7], rows[:, 4:7]), settings.direction_tolerance, "°"),
        ("polarisation fraction", np.abs(rows[:, 7] - reference[7]), settings.polarization_tolerance, ""),
    )
    names = ("wavelength_tolerance", "direction_tolerance", "direction_tolerance", "polarization_tolerance")
    found = [
        (int(np.argmax(off)), what, off, limit, unit, name) for (what, off, limit, unit), name in zip(checks, names, strict=True)
    ]
    wrong = [
        (float(off[row]) / max(limit, 1e-300), row, what, off[row], limit, unit, name)
        for row, what, off, limit, unit, name in found
    ]
    wrong = [item for item in wrong if item[3] > item[4]]
    if not wrong:
        return None
    _, row, what, off, limit, unit, name = max(wrong)
    return row, f"{what} differs by {off:.3g} {unit}, more than combine.{name} = {limit:g}".replace(" ,", ",")


def _angles(reference: Floats, rows: Floats) -> Floats:
    """Return the angles in degrees between a unit vector and others (n, 3)."""
    cross = np.linalg.norm(np.cross(rows, reference), axis=1)
    angles: Floats = np.degrees(np.arctan2(cross, rows @ reference))
    return angles


def detector_difference(reference: Detector, other: Detector, settings: Combine) -> str | None:
    """Return in what a detector differs from a reference by more than is allowed; None: in nothing."""
    if len(reference) != len(other):
        return f"{len(other)} panels, not {len(reference)}"
    for number, (a, b) in enumerate(zip(reference.panels, other.panels, strict=True)):
        for name in ("image_size", "pixel_size", "thickness", "mu"):
            if not np.allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=0.0):
                return f"panel {number} ({a.name}): {name} is {getattr(b, name)}, not {getattr(a, name)}"
        for name in ("fast_axis", "slow_axis"):
            angle = float(_angles(np.asarray(getattr(a, name)), np.array([getattr(b, name)]))[0])
            if angle > settings.axis_tolerance:
                limit = f"combine.axis_tolerance = {settings.axis_tolerance:g}"
                return f"panel {number} ({a.name}): {name} differs by {angle:.3g}°, more than {limit}"
        off = float(np.linalg.norm(np.subtract(a.origin, b.origin)))
        if off > settings.origin_tolerance:
            limit = f"combine.origin_tolerance = {settings.origin_tolerance:g}"
            return f"panel {number} ({a.name}): origin differs by {off:.3g} mm, more than {limit}"
    return None


def average_detector(detectors: Sequence[Detector], weights: Sequence[float], level: int | None = None) -> Detector:
    """Return the mean of detectors with the same panels.

    Parameters
    ----------
    detectors, weights
        What to average; the first gives all that is not averaged.
    level
        Groups of this level move as one, as near to the mean places of their panels as they come; None: panels.
    """
    first, total = detectors[0], float(sum(weights))
    mean = sum(w / total * d.d_matrices for d, w in zip(detectors, weights, strict=True))
    assert isinstance(mean, np.ndarray)
    found = levels(first)
    nodes = found[-1] if level is None else found[min(level, len(found) - 1)]
    motions = []
    for node in nodes:
        panels = panels_of(node)
        motions.append(rigid_motion(corners(first, panels), _corners_of(first, panels, mean)))
    return with_motions(first, nodes, motions)


def _corners_of(detector: Detector, panels: Sequence[int], frames: Floats) -> Floats:
    found = []
    for number in panels:
        fast, slow = orthonormal(frames[number, :, 0], frames[number, :, 1])
        x, y = detector.image_sizes[number] * detector.pixel_sizes[number]
        origin = frames[number, :, 2]
        found += [origin, origin + x * fast, origin + y * slow, origin + x * fast + y * slow]
    return np.array(found)

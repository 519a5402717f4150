"""What the user says about geometry and beam, applied to what the files say: pure functions on an Experiment."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError, DataError
from xfelproc.io.sources.attenuation import MATERIALS, attenuation
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.experiment import Beam, Detector, Experiment, Panel, as_vector

Floats = NDArray[np.float64]

UNSET_DISTANCE = 1.0
"""A detector nearer than this (mm) has no distance yet: geometry files leave it to the frames."""


def detector_normal(detector: Detector, beam: Beam) -> Floats:
    """Return the unit mean normal of the panels, pointing away from the source."""
    normals = np.cross(detector.d_matrices[:, :, 0], detector.d_matrices[:, :, 1])
    forward = -np.asarray(beam.direction)
    mean = np.mean(normals * np.where(normals @ forward < 0, -1.0, 1.0)[:, None], axis=0)
    unit: Floats = mean / np.linalg.norm(mean)
    return unit


def detector_distance(detector: Detector, beam: Beam) -> float:
    """Return the distance in mm from the sample to the detector, along the mean normal of its panels.

    It is the mean over the panels' centres; for a detector that faces the beam it is the distance along the beam, and
    for one on a 2θ arm the distance along the arm, as headers state it.
    """
    half = detector.pixel_sizes * detector.image_sizes / 2
    centres = np.einsum("pij,pj->pi", detector.d_matrices, np.column_stack([half, np.ones(len(half))]))
    return float(np.mean(centres @ detector_normal(detector, beam)))


def beam_center(detector: Detector, beam: Beam, panel: int = 0) -> tuple[float, float]:
    """Return where the beam meets the plane of a panel, in pixels (fast, slow) of its grid (it may lie outside).

    Raises
    ------
    ConfigError
        If the beam does not meet the plane.
    """
    x, y, z = detector.inverse_d_matrices[panel] @ -np.asarray(beam.direction)
    if z <= 1e-6 * np.hypot(x, y):
        raise ConfigError(
            f"the beam does not meet the plane of panel {detector.panels[panel].name!r}: "
            "a beam centre means nothing here; give a geometry file instead"
        )
    size = detector.panels[panel].pixel_size
    return (float(x / z / size[0]), float(y / z / size[1]))


def check_distance(detector: Detector, beam: Beam, path: str | None = None, frame: int | None = None) -> None:
    """See that the beam can reach the detector.

    Raises
    ------
    DataError
        If the detector is at the sample (headers say 0 for what they do not know) or on the source's side of it.
    """
    distance = detector_distance(detector, beam)
    if not distance > 1e-9:
        where = "at the sample" if abs(distance) <= 1e-9 else "on the source's side of the sample"
        raise DataError(
            f"the detector is {where}, at a distance of {distance:.4g} mm: set input.distance, or give a geometry file", path, frame
        )


def with_distance(detector: Detector, beam: Beam, distance: float) -> Detector:
    """Return the detector moved along its mean normal to ``distance`` mm from the sample."""
    move = (distance - detector_distance(detector, beam)) * detector_normal(detector, beam)
    return detector.shifted(as_vector(move))


def with_beam_center(detector: Detector, beam: Beam, center: tuple[float, float]) -> Detector:
    """Return the detector moved within the plane of its first panel so that the beam meets it at ``center`` (px)."""
    now = beam_center(detector, beam)
    panel = detector.panels[0]
    step = [(have - want) * size for have, want, size in zip(now, center, panel.pixel_size, strict=True)]
    return detector.shifted(as_vector(step[0] * np.asarray(panel.fast_axis) + step[1] * np.asarray(panel.slow_axis)))


def override_beam(beam: Beam, settings: SourceSettings) -> Beam:
    """Return the beam with what the settings state.

    Raises
    ------
    ConfigError
        If the polarisation normal is zero or along the beam.
    """
    if settings.wavelength is not None:
        beam = replace(beam, wavelength=settings.wavelength)
    if settings.bandwidth is not None:
        beam = replace(beam, bandwidth=settings.bandwidth)
    if settings.polarization_fraction is not None:
        beam = replace(beam, polarization_fraction=settings.polarization_fraction)
    if settings.polarization_normal is not None:
        normal = np.asarray(settings.polarization_normal, dtype=np.float64)
        length = float(np.linalg.norm(normal))
        if length == 0 or np.linalg.norm(np.cross(normal, beam.direction)) < 1e-3 * length:
            raise ConfigError(
                f"polarization_normal = {settings.polarization_normal} is zero or along the beam: "
                "give the normal of the plane of polarisation, for example (0, 1, 0) for a horizontal one"
            )
        beam = replace(beam, polarization_normal=as_vector(normal / length))
    return beam


def override_detector(detector: Detector, beam: Beam, settings: SourceSettings) -> Detector:
    """Return the detector with what the settings state: trusted range and gain, then distance, then beam centre.

    Raises
    ------
    ConfigError
        If the trusted range is empty or the beam does not meet the first panel's plane.
    """
    if settings.trusted_range is not None:
        low, high = settings.trusted_range
        if not low < high:
            raise ConfigError(f"trusted_range = {settings.trusted_range}: the lowest value must be below the highest")
        panels = tuple(replace(p, trusted_range=(low, high)) for p in detector.panels)
        detector = Detector(panels, detector.hierarchy)
    if settings.adu_per_photon is not None:
        panels = tuple(replace(p, gain=settings.adu_per_photon) for p in detector.panels)
        detector = Detector(panels, detector.hierarchy)
    if settings.distance is not None:
        detector = with_distance(detector, beam, settings.distance)
    if settings.beam_center is not None:
        detector = with_beam_center(detector, beam, settings.beam_center)
    return override_sensor(detector, beam, settings)


def override_sensor(detector: Detector, beam: Beam, settings: SourceSettings) -> Detector:
    """Return the detector with the settings' sensor, and with the μ of a wavelength that the settings changed.

    Raises
    ------
    ConfigError
        If a thickness is given, and neither file nor settings name a material that is known.
    """
    given = settings.sensor_material is not None or settings.sensor_thickness is not None
    if not given and settings.wavelength is None:
        return detector
    panels = []
    for panel in detector.panels:
        material = settings.sensor_material or panel.material
        thickness = panel.thickness if settings.sensor_thickness is None else settings.sensor_thickness
        if material in MATERIALS:
            panel = replace(panel, material=material, thickness=thickness, mu=attenuation(material, beam.wavelength))
        elif settings.sensor_thickness:
            raise ConfigError(
                f"sensor_thickness = {thickness} without a known material: set sensor_material ({', '.join(MATERIALS)})"
            )
        panels.append(panel)
    return Detector(tuple(panels), detector.hierarchy)


def load_reference(settings: SourceSettings) -> Experiment | None:
    """Return the experiment of ``settings.geometry`` (.geom, .expt, NeXus), or None if none is given."""
    if settings.geometry is None:
        return None
    # imported here: only jobs that give a geometry need these readers
    from xfelproc.io.exchange import load_geometry

    return load_geometry(settings.geometry)


def take_reference(experiment: Experiment, reference: Experiment) -> Experiment:
    """Return the experiment with the panels of a geometry file, and with its direction of the beam.

    Names and hierarchy are the geometry's. What is no geometry stays the frames' own where they state it: wavelength (shots
    differ), polarisation, trusted range, gain, sensor, and the distance where the geometry leaves it to the frames (detector at 0).

    Raises
    ------
    ConfigError
        If the panels are of other sizes.
    """
    own, given = experiment.detector, reference.detector
    beam = take_beam(experiment.beam, reference.beam)
    if abs(detector_distance(given, beam)) < UNSET_DISTANCE:
        forward = -np.asarray(beam.direction)
        given = given.shifted(as_vector(detector_distance(own, experiment.beam) * forward))
    panels = given.panels
    if len(given) == len(own):
        _same_sizes(given, own)
    if len(given) == len(own) or len(own) == 1:
        pairs = zip(given.panels, own.panels * (len(given) if len(own) == 1 else 1), strict=True)
        panels = tuple(_fill(mine, header) for mine, header in pairs)
    detector = Detector(panels, given.hierarchy)
    if abs(beam.wavelength - reference.beam.wavelength) > 1e-3 * beam.wavelength:
        detector = _with_mu(detector, beam.wavelength)
    return replace(experiment, detector=detector, beam=beam)


def take_beam(own: Beam, given: Beam) -> Beam:
    """Return the beam of the frames with the direction of a geometry file; all of the file's if the frames state no wavelength."""
    if not own.wavelength > 0:
        known = given.wavelength > 0
        return given if known else replace(given, wavelength=0.0)
    return replace(own, direction=given.direction, bandwidth=own.bandwidth or given.bandwidth)


def unused_of(reference: Experiment, used: Experiment) -> tuple[str, ...]:
    """Return notes on what a geometry file states otherwise than the frames, and is not used."""
    given, own = reference.beam.wavelength, used.beam.wavelength
    if given > 0 and abs(given - own) > 1e-3 * own:
        return (f"the geometry file states a wavelength of {given:.6g} Å: {own:.6g} Å is used (set wavelength to change it)",)
    return ()


def _with_mu(detector: Detector, wavelength: float) -> Detector:
    panels = tuple(replace(p, mu=attenuation(p.material, wavelength)) if p.material in MATERIALS else p for p in detector.panels)
    return Detector(panels, detector.hierarchy)


def _same_sizes(given: Detector, own: Detector) -> None:
    for mine, header in zip(given.panels, own.panels, strict=True):
        if mine.image_size != header.image_size:
            raise ConfigError(
                f"panel {mine.name!r} of the geometry file has {mine.image_size} pixels (fast, slow), "
                f"panel {header.name!r} of the frames {header.image_size}: give the geometry of this detector"
            )


def _fill(given: Panel, header: Panel) -> Panel:
    """Return a panel of a geometry file with what only the frames' header knows."""
    pairs = zip(header.trusted_range, given.trusted_range, strict=True)
    low, high = (mine if np.isfinite(mine) else theirs for mine, theirs in pairs)
    given = replace(given, trusted_range=(low, high))
    if given.thickness == 0:
        given = replace(given, thickness=header.thickness, material=header.material, mu=header.mu)
    if not given.material:
        given = replace(given, material=header.material)
    if given.gain == 1.0:
        given = replace(given, gain=header.gain)
    if given.raw_image_offset == (0, 0):
        given = replace(given, raw_image_offset=header.raw_image_offset)
    return given


def apply_settings(experiment: Experiment, settings: SourceSettings, reference: Experiment | None = None) -> Experiment:
    """Return the experiment of a frame with the geometry file (``reference``) and then the single values of the settings.

    Raises
    ------
    ConfigError
        If a value makes no sense for this experiment.
    """
    if reference is not None:
        experiment = take_reference(experiment, reference)
    beam = override_beam(experiment.beam, settings)
    return replace(experiment, beam=beam, detector=override_detector(experiment.detector, beam, settings))


def describe_overrides(settings: SourceSettings) -> tuple[str, ...]:
    """Return one note for each value that the settings put in the place of the file's."""
    names = (
        *("geometry", "distance", "beam_center", "wavelength", "bandwidth"),
        *("trusted_range", "polarization_fraction", "polarization_normal", "adu_per_photon", "sensor_material", "sensor_thickness"),
    )
    return tuple(f"{name} from the settings: {getattr(settings, name)}" for name in names if getattr(settings, name) is not None)

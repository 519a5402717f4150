"""Prediction of stills: which reflections of a lattice diffract, where, and how much of each.

ΔΨ, the turn that brings a reciprocal-lattice point on the Ewald sphere, and the excitation error |s0 + q| - 1/λ are positive for
points outside of the sphere; for small ones ``ε = |q| cosθ ΔΨ``. A reflection of resolution d diffracts for
``|ΔΨ| ≤ d/D + η/2`` (Sauter et al. 2014, Acta Cryst. D70, 3299) with D the domain size and η the full mosaic spread.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xfelproc.geometry.constraints import centring_vectors
from xfelproc.kernels import geometry as kernel_geometry
from xfelproc.kernels import prediction as kernel_prediction
from xfelproc.models.experiment import Beam, Crystal, Detector
from xfelproc.models.tables import ReflectionTable

Floats = NDArray[np.float64]

DEFAULT_DOMAIN_SIZE = 2000.0
"""Domain size in Å where a crystal's mosaicity is not known."""
DEFAULT_HALF_MOSAICITY = 0.05
"""Half mosaicity in degrees where a crystal's mosaicity is not known."""
_GAUSSIAN_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))


def pack_detector(detector: Detector, shift: ArrayLike = (0.0, 0.0, 0.0)) -> Floats:
    """Return the packed panels (panel, 19) of `xfelproc.kernels.geometry`, moved by ``shift`` (mm, laboratory frame)."""
    packed: Floats = kernel_geometry.pack_panels(
        detector.d_matrices, detector.pixel_sizes, detector.image_sizes, detector.sensors, np.asarray(shift, dtype=np.float64)
    )
    return packed


def mosaic_model(crystal: Crystal) -> tuple[float, float]:
    """Return 1/D in 1/Å and η/2 in radians, with defaults where a crystal's mosaicity is not known."""
    if crystal.domain_size <= 0 and crystal.half_mosaicity <= 0:
        return 1.0 / DEFAULT_DOMAIN_SIZE, float(np.radians(DEFAULT_HALF_MOSAICITY))
    return 1.0 / crystal.domain_size if crystal.domain_size > 0 else 0.0, float(np.radians(crystal.half_mosaicity))


def spread_of(crystal: Crystal, beam: Beam) -> Floats:
    """Return the spread (8) of a lattice point and of the spectrum, for `xfelproc.kernels.geometry.displacement`.

    Where no covariance of the turns is known, the isotropic variance is that of the domain size and of the mosaic spread at 4 Å.
    """
    shape, mosaic = mosaic_model(crystal)
    spread = np.zeros(8)
    spread[0] = shape * shape + 1e-9
    spread[1] = (beam.bandwidth / _GAUSSIAN_FWHM) ** 2
    if crystal.mosaic_covariance is None:
        spread[0] += (0.25 * mosaic) ** 2
    else:
        spread[0] = max(crystal.point_variance, 1e-9)
        spread[1] = max(spread[1], crystal.dilation_variance)
        spread[2:] = np.asarray(crystal.mosaic_covariance) * np.radians(1.0) ** 2
    return spread


def envelope_of(crystal: Crystal, beam: Beam, margin: float) -> Floats:
    """Return 1/D (1/Å), η/2 (radians), half the bandwidth and the margin, for `excitation_limit`."""
    shape, mosaic = mosaic_model(crystal)
    return np.array([shape, mosaic, 0.5 * beam.bandwidth, margin])


def polarization_axes(beam: Beam) -> Floats:
    """Return the electric axis, the normal of the plane of polarisation and the fraction (7), as kernels want them."""
    normal = np.asarray(beam.polarization_normal, dtype=np.float64)
    electric = np.cross(normal, np.asarray(beam.direction))
    return np.array([*(electric / np.linalg.norm(electric)), *normal, beam.polarization_fraction])


def predict_still(
    crystal: Crystal, detector: Detector, beam: Beam, d_min: float, margin: float = 1.0, d_max: float = 0.0
) -> ReflectionTable:
    """Return all reflections of ``crystal`` with ``|ΔΨ|`` within ``margin`` times the mosaic envelope that fall on a panel.

    Parameters
    ----------
    d_min, d_max
        Limits of resolution in Å; a ``d_max`` of 0 is none.
    """
    packed = pack_detector(detector)
    s0 = beam.s0
    grid = kernel_geometry.panel_grid(packed, s0)
    envelope = envelope_of(crystal, beam, margin)
    a = np.ascontiguousarray(crystal.a_matrix)
    shape, mosaic, band, _ = envelope
    thickness = 2.0 * margin * (shape + mosaic / d_min + band * 0.5 * beam.wavelength / d_min**2)
    capacity = 200 + int(1.3 * np.pi / d_min**2 * thickness / abs(np.linalg.det(a)))
    arguments = (a, s0, d_min, d_max, centring_vectors(crystal.space_group), envelope, spread_of(crystal, beam))
    while True:
        count, hkl, panel, columns = kernel_prediction.predict_still(*arguments, polarization_axes(beam), packed, *grid, capacity)
        if count <= capacity:
            break
        capacity = count
    columns = columns[:count]
    return ReflectionTable(
        hkl=hkl[:count],
        panel=panel[:count],
        fast=columns[:, 0],
        slow=columns[:, 1],
        d=columns[:, 2],
        delta_psi=np.degrees(columns[:, 3]),
        excitation=columns[:, 4],
        partiality=columns[:, 5],
        polarization=columns[:, 6],
    )


def predict_indices(crystal: Crystal, detector: Detector, beam: Beam, hkl: ArrayLike, panel: ArrayLike) -> Floats:
    """Return (n, 4): fast, slow (px), excitation error (1/Å) and ΔΨ (degrees) of given indices on given panels.

    The position is NaN where the ray misses the panel's plane.
    """
    indices = np.ascontiguousarray(np.asarray(hkl, dtype=np.int32).reshape(-1, 3))
    panels = np.ascontiguousarray(np.broadcast_to(np.asarray(panel, dtype=np.int32), len(indices)))
    out = np.empty((len(indices), 4))
    kernel_prediction.predict_indices(
        np.ascontiguousarray(crystal.a_matrix),
        indices,
        np.ones(len(indices), dtype=bool),
        panels,
        pack_detector(detector),
        beam.s0,
        spread_of(crystal, beam),
        out,
    )
    out[:, 3] = np.degrees(out[:, 3])
    return out


def detector_d_min(detector: Detector, beam: Beam) -> float:
    """Return the best resolution in Å that the corners of the panels reach."""
    sizes = detector.pixel_sizes * detector.image_sizes
    best = np.inf
    for corner in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        d = detector.d_matrices
        lab = d[:, :, 0] * (corner[0] * sizes[:, :1]) + d[:, :, 1] * (corner[1] * sizes[:, 1:]) + d[:, :, 2]
        cosine = lab @ beam.s0 * beam.wavelength / np.linalg.norm(lab, axis=1)
        best = min(best, float(np.min(beam.wavelength / np.sqrt(np.maximum(2.0 * (1.0 - cosine), 1e-12)))))
    return best

"""Pixels to the laboratory and back, parallax included.

A photon of direction s1 enters the sensor's surface at the point (x, y) of the panel and is absorbed further on along its
path. The mean of the exponential law over a sensor of thickness t at an angle θ to the panel's normal is
``o = 1/μ - (t/cosθ + 1/μ) exp(-μ t/cosθ)``, counting photons that pass as absorbed at the entrance (the convention of
DIALS). The pixel that records the photon is at ``(x, y) + o (s1·fast, s1·slow)``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xfelproc.models.experiment import Beam, Detector

Floats = NDArray[np.float64]


def mean_absorption_path(mu: Floats, thickness: Floats, cosine: Floats) -> Floats:
    """Return the mean path (mm) in a sensor of given μ (1/mm) and thickness (mm), times the absorbed fraction; 0 where μ is 0."""
    active = (mu > 0) & (thickness > 0)
    safe_mu = mu + ~active
    depth = thickness / cosine
    path: Floats = np.zeros(np.broadcast(mu, depth).shape)
    np.copyto(path, 1.0 / safe_mu - (depth + 1.0 / safe_mu) * np.exp(-safe_mu * depth), where=active)
    return path


def _parallax(detector: Detector, panel: NDArray[np.int64], xy: Floats) -> Floats:
    """Return (n, 2) mm by which a ray that enters at ``xy`` is recorded further out."""
    d = detector.d_matrices[panel]
    lab = d[:, :, 0] * xy[:, :1] + d[:, :, 1] * xy[:, 1:] + d[:, :, 2]
    s1 = lab / np.linalg.norm(lab, axis=1, keepdims=True)
    along = np.einsum("nij,ni->nj", d[:, :, :2], s1)
    normal = np.cross(d[:, :, 0], d[:, :, 1])
    cosine = np.abs(np.einsum("ni,ni->n", normal, s1))
    sensor = detector.sensors[panel]
    path: Floats = mean_absorption_path(sensor[:, 0], sensor[:, 1], cosine)
    shift: Floats = along * path[:, None]
    return shift


def pixel_to_mm(detector: Detector, panel: ArrayLike, fast: ArrayLike, slow: ArrayLike) -> Floats:
    """Return (n, 2) mm on the panel at which the rays recorded at these pixel coordinates entered."""
    index = np.atleast_1d(np.asarray(panel, dtype=np.int64))
    recorded = np.column_stack(np.broadcast_arrays(np.atleast_1d(fast), np.atleast_1d(slow))).astype(np.float64)
    index = np.broadcast_to(index, len(recorded))
    recorded = recorded * detector.pixel_sizes[index]
    if not detector.sensors.any():
        return recorded
    xy = recorded
    for _ in range(4):
        xy = recorded - _parallax(detector, index, xy)
    return xy


def mm_to_pixel(detector: Detector, panel: ArrayLike, xy: ArrayLike) -> Floats:
    """Return (n, 2) pixel coordinates (fast, slow) that record rays entering at ``xy`` (n, 2) mm on the panel."""
    entered = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
    index = np.broadcast_to(np.atleast_1d(np.asarray(panel, dtype=np.int64)), len(entered))
    if detector.sensors.any():
        entered = entered + _parallax(detector, index, entered)
    return entered / detector.pixel_sizes[index]


def mm_to_lab(detector: Detector, panel: ArrayLike, xy: ArrayLike) -> Floats:
    """Return (n, 3) laboratory positions (mm) of points ``xy`` (n, 2) mm on panels."""
    points = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
    d = detector.d_matrices[np.broadcast_to(np.atleast_1d(np.asarray(panel, dtype=np.int64)), len(points))]
    lab: Floats = d[:, :, 0] * points[:, :1] + d[:, :, 1] * points[:, 1:] + d[:, :, 2]
    return lab


def pixel_to_lab(detector: Detector, panel: ArrayLike, fast: ArrayLike, slow: ArrayLike) -> Floats:
    """Return (n, 3) laboratory positions (mm) on the sensor's surface of the rays recorded at pixel coordinates."""
    return mm_to_lab(detector, panel, pixel_to_mm(detector, panel, fast, slow))


def pixel_to_q(detector: Detector, beam: Beam, panel: ArrayLike, fast: ArrayLike, slow: ArrayLike) -> Floats:
    """Return (n, 3) scattering vectors q = s1 - s0 in 1/Å of the rays recorded at pixel coordinates."""
    lab = pixel_to_lab(detector, panel, fast, slow)
    s1 = lab / (np.linalg.norm(lab, axis=1, keepdims=True) * beam.wavelength)
    q: Floats = s1 - beam.s0
    return q


def ray_to_pixel(detector: Detector, s1: ArrayLike) -> tuple[NDArray[np.int64], Floats]:
    """Return the panel (-1: none) and the (n, 2) pixel coordinates at which rays from the origin along ``s1`` (n, 3) are recorded.

    Where rays meet several panels, the first panel whose pixels hold the point counts.
    """
    rays = np.asarray(s1, dtype=np.float64).reshape(-1, 3)
    panel = np.full(len(rays), -1, dtype=np.int64)
    position = np.full((len(rays), 2), np.nan)
    for number, inverse in enumerate(detector.inverse_d_matrices):
        v = rays @ inverse.T
        ahead = (v[:, 2] > 0) & (panel < 0)
        xy = v[ahead, :2] / v[ahead, 2:]
        pixel = mm_to_pixel(detector, number, xy)
        size = detector.image_sizes[number]
        inside = np.all((pixel >= 0) & (pixel < size), axis=1)
        rows = np.flatnonzero(ahead)[inside]
        panel[rows] = number
        position[rows] = pixel[inside]
    return panel, position


def resolution_map(detector: Detector, beam: Beam) -> NDArray[np.float32]:
    """Return d in Å at the centre of each pixel, in the shape of the stack; parallax is neglected."""
    n, n_slow, n_fast = detector.stack_shape
    out = np.empty((n, n_slow, n_fast), dtype=np.float32)
    fast = np.arange(n_fast) + 0.5
    slow = np.arange(n_slow) + 0.5
    direction = -np.asarray(beam.direction)
    for number, (d, size) in enumerate(zip(detector.d_matrices, detector.pixel_sizes, strict=True)):
        x, y = fast * size[0], slow * size[1]
        along = direction @ d
        dot = (along[0] * x)[None, :] + (along[1] * y)[:, None] + along[2]
        g = d.T @ d
        norm2 = (
            (g[0, 0] * x * x + 2 * g[0, 2] * x)[None, :]
            + (g[1, 1] * y * y + 2 * g[1, 2] * y)[:, None]
            + 2 * g[0, 1] * x[None, :] * y[:, None]
            + g[2, 2]
        )
        sine2 = np.maximum(0.5 * (1.0 - dot / np.sqrt(norm2)), 1e-20)
        out[number] = beam.wavelength / (2.0 * np.sqrt(sine2))
    return out


def polarization_factor(beam: Beam, s1: ArrayLike) -> Floats:
    """Return P of rays ``s1`` (n, 3): the fraction of the full intensity that polarisation lets through.

    ``P = f (1 - (u·e)²) + (1 - f) (1 - (u·n)²)`` with u the unit ray, n the polarisation normal, e = n × direction and f the
    fraction polarised along e: the dipole pattern of each component (Kahn et al. 1982, J. Appl. Cryst. 15, 330).
    """
    rays = np.asarray(s1, dtype=np.float64).reshape(-1, 3)
    unit = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    normal = np.asarray(beam.polarization_normal)
    electric = np.cross(normal, np.asarray(beam.direction))
    electric /= np.linalg.norm(electric)
    f = beam.polarization_fraction
    p: Floats = f * (1 - (unit @ electric) ** 2) + (1 - f) * (1 - (unit @ normal) ** 2)
    return p

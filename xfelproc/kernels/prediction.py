"""Which reflections of a lattice touch the Ewald sphere, and where."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.geometry import displacement, find_panel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@njit(cache=True, nogil=True)
def _inner_axis(a: Floats) -> int:
    """Return the index with the shortest reciprocal axis: lines along it are the fewest."""
    best = 0
    norms = np.empty(3)
    for j in range(3):
        norms[j] = a[0, j] ** 2 + a[1, j] ** 2 + a[2, j] ** 2
    for j in range(1, 3):
        if norms[j] < norms[best]:
            best = j
    return best


@njit(cache=True, nogil=True)
def _absent(centring: Ints, h: int, k: int, m: int) -> bool:
    """Return whether a centring translation (in 1/24 of the cell) forbids an index."""
    for t in range(centring.shape[0]):  # noqa: SIM110  (numba has no generators)
        if (h * centring[t, 0] + k * centring[t, 1] + m * centring[t, 2]) % 24 != 0:
            return True
    return False


@njit(cache=True, nogil=True)
def excitation_limit(length: float, wavelength: float, envelope: Floats) -> float:
    """Return the largest excitation error (1/Å) at |q| = ``length`` at which a reflection is predicted.

    ``envelope`` is 1/D (1/Å), η/2 (radians), half the relative bandwidth and the margin. ΔΨ ≤ d/D + η/2 (Sauter et al. 2014) with
    ε = |q| cosθ ΔΨ; a relative change b of the wavelength moves the sphere by 2 b sin²θ / λ.
    """
    sine = min(1.0, 0.5 * wavelength * length)
    cosine = np.sqrt(1.0 - sine * sine)
    return float(envelope[3] * (cosine * (envelope[0] + envelope[1] * length) + envelope[2] * 2.0 * sine * sine / wavelength))


@njit(cache=True, nogil=True)
def predict_still(
    a: Floats,
    s0: Floats,
    d_min: float,
    d_max: float,
    centring: Ints,
    envelope: Floats,
    spread: Floats,
    polarization: Floats,
    geometry: Floats,
    frame: Floats,
    start: NDArray[np.int32],
    panels: NDArray[np.int32],
    capacity: int,
) -> tuple[int, NDArray[np.int32], NDArray[np.int32], Floats]:
    """Return the number of reflections that diffract to d_min onto a panel, their hkl, panel, and columns.

    The columns are fast, slow, d, ΔΨ (radians), excitation error, partiality and polarisation factor. ``spread`` is that of
    `displacement`. The partiality is the Gaussian in ε whose variance is that of the flat envelope, a third of its half-width
    squared. ``polarization`` is the electric axis, the normal and the fraction (7). If there are more than ``capacity``, only that
    many are written.
    """
    radius = np.sqrt(np.sum(s0 * s0))
    wavelength = 1.0 / radius
    beam = s0 / radius
    axis = _inner_axis(a)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    c = a[:, axis].copy()
    cc = np.sum(c * c)
    across1 = a[:, first] - c * (np.sum(a[:, first] * c) / cc)
    across2 = a[:, second] - c * (np.sum(a[:, second] * c) / cc)
    m11, m12, m22 = np.sum(across1 * across1), np.sum(across1 * across2), np.sum(across2 * across2)
    q_max2, q_min2 = 1.0 / (d_min * d_min), (1.0 / (d_max * d_max) if d_max > 0 else 0.0)
    q_max = min(1.0 / d_min, 2.0 * radius)
    widest = 0.0
    for step in range(33):
        widest = max(widest, excitation_limit(q_max * step / 32, wavelength, envelope))
    widest *= 1.05
    outer2, inner2 = (radius + widest) ** 2, max(0.0, radius - widest) ** 2
    hkl = np.empty((capacity, 3), dtype=np.int32)
    panel = np.empty(capacity, dtype=np.int32)
    columns = np.empty((capacity, 7))
    q, n = np.empty(3), np.empty(3)
    h = np.zeros(3, dtype=np.int64)
    count = 0
    top = int(np.floor(np.sqrt(q_max2 * m22 / (m11 * m22 - m12 * m12))))
    for i in range(-top, top + 1):
        middle = -i * m12 / m22
        reach = (q_max2 - i * i * (m11 - m12 * m12 / m22)) / m22
        if reach < 0.0:
            continue
        reach = np.sqrt(reach)
        for j in range(int(np.ceil(middle - reach)), int(np.floor(middle + reach)) + 1):
            w0 = s0[0] + i * a[0, first] + j * a[0, second]
            w1 = s0[1] + i * a[1, first] + j * a[1, second]
            w2 = s0[2] + i * a[2, first] + j * a[2, second]
            slope = (w0 * c[0] + w1 * c[1] + w2 * c[2]) / cc
            rest = (w0 * w0 + w1 * w1 + w2 * w2) / cc - slope * slope
            outside = outer2 / cc - rest
            if outside < 0.0:
                continue
            far = np.sqrt(outside)
            within = inner2 / cc - rest
            near = np.sqrt(within) if within > 0.0 else -1.0
            for side in range(2):
                low = int(np.ceil(-slope + (near if side else -far)))
                high = int(np.floor(-slope + (far if side else -near)))
                if near < 0.0:
                    if side == 1:
                        break
                    high = int(np.floor(-slope + far))
                for m in range(low, high + 1):
                    x, y, z = w0 + m * c[0], w1 + m * c[1], w2 + m * c[2]
                    q[0], q[1], q[2] = x - s0[0], y - s0[1], z - s0[2]
                    length2 = q[0] * q[0] + q[1] * q[1] + q[2] * q[2]
                    if length2 > q_max2 or length2 <= q_min2 or length2 < 1e-12:
                        continue
                    norm = np.sqrt(x * x + y * y + z * z)
                    excitation = norm - radius
                    length = np.sqrt(length2)
                    limit = excitation_limit(length, wavelength, envelope)
                    if abs(excitation) > limit:
                        continue
                    h[axis], h[first], h[second] = m, i, j
                    if _absent(centring, h[0], h[1], h[2]):
                        continue
                    n[0], n[1], n[2] = x / norm, y / norm, z / norm
                    cosine = n[0] * beam[0] + n[1] * beam[1] + n[2] * beam[2]
                    u, v, w = displacement(n, q, beam, cosine, radius, excitation, spread)
                    x, y, z = x - excitation * u, y - excitation * v, z - excitation * w
                    p, fast, slow = find_panel(geometry, frame, start, panels, x, y, z)
                    if p < 0:
                        continue
                    if count < capacity:
                        hkl[count, 0], hkl[count, 1], hkl[count, 2] = h[0], h[1], h[2]
                        panel[count] = p
                        row = columns[count]
                        row[0], row[1], row[2], row[4] = fast, slow, 1.0 / length, excitation
                        tilt = -(q[0] * beam[0] + q[1] * beam[1] + q[2] * beam[2]) / length
                        row[3] = np.arccos(min(1.0, max(-1.0, tilt))) - np.arccos(min(1.0, length / (2.0 * radius)))
                        row[5] = np.exp(-1.5 * (excitation * envelope[3] / limit) ** 2)
                        row[6] = _polarization(polarization, x, y, z)
                    count += 1
    return count, hkl, panel, columns


@njit(cache=True, nogil=True)
def _polarization(axes: Floats, x: float, y: float, z: float) -> float:
    """Return the polarisation factor of a ray; as `xfelproc.geometry.detector.polarization_factor`."""
    norm2 = x * x + y * y + z * z
    along = x * axes[0] + y * axes[1] + z * axes[2]
    across = x * axes[3] + y * axes[4] + z * axes[5]
    return float(axes[6] * (1.0 - along * along / norm2) + (1.0 - axes[6]) * (1.0 - across * across / norm2))

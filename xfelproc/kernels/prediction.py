"""Which reflections of a lattice touch the Ewald sphere, where given ones do, and the derivatives of that."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.geometry import displacement, find_panel, mean_path, ray_to_panel

Floats = NDArray[np.float64]
Indices = NDArray[np.int32]


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
def _absent(centring: NDArray[np.int64], h: int, k: int, m: int) -> bool:
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
def _widest_excitation(q_max: float, wavelength: float, envelope: Floats) -> float:
    """Return a bound of `excitation_limit` over all |q| up to ``q_max``: the largest of 33, and a margin."""
    widest = 0.0
    for step in range(33):
        widest = max(widest, excitation_limit(q_max * step / 32, wavelength, envelope))
    return 1.05 * widest


@njit(cache=True, nogil=True)
def _crossing(slope: float, outside: float, within: float, side: int) -> tuple[int, int]:
    """Return the first and last point of a lattice line between two spheres, before (0) or behind (1) the inner one.

    The points are those with ``within < (m + slope)² < outside``; a line that misses the inner sphere has all on the first side.
    """
    if outside < 0.0:
        return 0, -1
    far = np.sqrt(outside)
    if within <= 0.0:
        return (0, -1) if side else (int(np.ceil(-slope - far)), int(np.floor(-slope + far)))
    near = np.sqrt(within)
    if side:
        return int(np.ceil(-slope + near)), int(np.floor(-slope + far))
    return int(np.ceil(-slope - far)), int(np.floor(-slope - near))


@njit(cache=True, nogil=True)
def _delta_psi(q: Floats, beam: Floats, length: float, radius: float) -> float:
    """Return ΔΨ (radians) of a reciprocal-lattice point at |q| = ``length``."""
    tilt = -(q[0] * beam[0] + q[1] * beam[1] + q[2] * beam[2]) / length
    return float(np.arccos(min(1.0, max(-1.0, tilt))) - np.arccos(min(1.0, length / (2.0 * radius))))


@njit(cache=True, nogil=True)
def predict_still(
    a: Floats,
    s0: Floats,
    d_min: float,
    d_max: float,
    centring: NDArray[np.int64],
    envelope: Floats,
    spread: Floats,
    polarization: Floats,
    geometry: Floats,
    frame: Floats,
    start: Indices,
    panels: Indices,
    capacity: int,
) -> tuple[int, Indices, Indices, Floats]:
    """Return the number of reflections that diffract to d_min onto a panel, their hkl, panel, and columns.

    The columns are fast, slow, d, ΔΨ (radians), excitation error, partiality and polarisation factor. ``spread`` is that of
    `displacement`. The partiality is the Gaussian in ε whose variance is that of the flat envelope, a third of its half-width
    squared. ``polarization`` is the electric axis, the normal and the fraction (7). If there are more than ``capacity``, only that
    many are written.

    Longer than the house's 60 lines: one nest of loops over lattice lines, whose levels share what they have computed.
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
    widest = _widest_excitation(min(1.0 / d_min, 2.0 * radius), wavelength, envelope)
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
            for side in range(2):
                low, high = _crossing(slope, outer2 / cc - rest, inner2 / cc - rest, side)
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
                        row[3] = _delta_psi(q, beam, length, radius)
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


@njit(cache=True, nogil=True)
def predict_indices(
    a: Floats,
    hkl: Indices,
    rows: NDArray[np.bool_],
    panel: Indices,
    geometry: Floats,
    s0: Floats,
    spread: Floats,
    out: Floats,
) -> None:
    """Write fast, slow, excitation error (1/Å) and ΔΨ (radians) of the indices picked by ``rows`` on given panels.

    ``spread`` is that of `displacement`. ΔΨ is the turn about q × s0 that brings the point on the sphere, positive outside of
    it. A ray that misses the panel's plane gives NaN.
    """
    radius = np.sqrt(np.sum(s0 * s0))
    beam = s0 / radius
    q = np.empty(3)
    n = np.empty(3)
    for i in range(hkl.shape[0]):
        if not rows[i]:
            continue
        for r in range(3):
            q[r] = a[r, 0] * hkl[i, 0] + a[r, 1] * hkl[i, 1] + a[r, 2] * hkl[i, 2]
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = _predict_one(q, n, geometry[panel[i]], s0, radius, beam, spread)


@njit(cache=True, nogil=True)
def _predict_one(
    q: Floats, n: Floats, g: Floats, s0: Floats, radius: float, beam: Floats, spread: Floats
) -> tuple[float, float, float, float]:
    """Return the columns of `predict_indices` for one q on panel ``g``; ``n`` is scratch (3)."""
    length2 = q[0] * q[0] + q[1] * q[1] + q[2] * q[2]
    for r in range(3):
        n[r] = s0[r] + q[r]
    length = np.sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2])
    for r in range(3):
        n[r] /= length
    excitation = length - radius
    cosine = n[0] * beam[0] + n[1] * beam[1] + n[2] * beam[2]
    x, y, z = displacement(n, q, beam, cosine, radius, excitation, spread)
    x = n[0] * length - excitation * x
    y = n[1] * length - excitation * y
    z = n[2] * length - excitation * z
    hit, fast, slow = ray_to_panel(g, x, y, z)
    psi = _delta_psi(q, beam, np.sqrt(length2), radius)
    if not hit:
        return np.nan, np.nan, excitation, psi
    return fast, slow, excitation, psi


@njit(cache=True, nogil=True)
def point_change(j: int, q: Floats, h: Indices, strain: Floats) -> tuple[float, float, float]:
    """Return the change of a lattice point q of index h by turn j about x, y, z, or by strain j - 3 of the matrix A."""
    if j == 0:
        return 0.0, -q[2], q[1]
    if j == 1:
        return q[2], 0.0, -q[0]
    if j == 2:
        return -q[1], q[0], 0.0
    e = strain[j - 3]
    return (
        e[0, 0] * h[0] + e[0, 1] * h[1] + e[0, 2] * h[2],
        e[1, 0] * h[0] + e[1, 1] * h[1] + e[1, 2] * h[2],
        e[2, 0] * h[0] + e[2, 1] * h[1] + e[2, 2] * h[2],
    )


@njit(cache=True, nogil=True)
def still_jacobian(
    a: Floats,
    strain: Floats,
    h: Indices,
    g: Floats,
    s0: Floats,
    spread: Floats,
    n_shift: int,
    pivot: Floats,
    work: Floats,
    out: Floats,
) -> None:
    """Write the derivatives (3, parameters) of fast, slow (px) and excitation error (1/Å) of one reflection on panel ``g``.

    The parameters are three turns (radians, about x, y, z), amplitudes of the changes of A ``strain`` (k, 3, 3), and ``n_shift``
    movements of the detector: translations (mm), then turns about x and y through ``pivot`` (radians). The turn of the
    displacement vector with q is left out (relative size ε/|q|). ``work`` is scratch (5, 3).
    """
    radius = np.sqrt(s0[0] * s0[0] + s0[1] * s0[1] + s0[2] * s0[2])
    q, n, beam, v, unit = work[0], work[1], work[2], work[3], work[4]
    for r in range(3):
        q[r] = a[r, 0] * h[0] + a[r, 1] * h[1] + a[r, 2] * h[2]
        n[r] = s0[r] + q[r]
        beam[r] = s0[r] / radius
    length = np.sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2])
    for r in range(3):
        n[r] /= length
    excitation = length - radius
    cosine = n[0] * beam[0] + n[1] * beam[1] + n[2] * beam[2]
    v[0], v[1], v[2] = displacement(n, q, beam, cosine, radius, excitation, spread)
    for r in range(3):
        unit[r] = length * n[r] - excitation * v[r]
    norm = np.sqrt(unit[0] * unit[0] + unit[1] * unit[1] + unit[2] * unit[2])
    for r in range(3):
        unit[r] /= norm
    k = strain.shape[0]
    _geometry_jacobian(g, unit, norm, n_shift, pivot, 3 + k, out)
    gx, gy, gz, hx, hy, hz = out[0, 0], out[0, 1], out[0, 2], out[1, 0], out[1, 1], out[1, 2]
    for j in range(3 + k):
        x, y, z = point_change(j, q, h, strain)
        change = n[0] * x + n[1] * y + n[2] * z
        x -= change * v[0]
        y -= change * v[1]
        z -= change * v[2]
        out[0, j] = gx * x + gy * y + gz * z
        out[1, j] = hx * x + hy * y + hz * z
        out[2, j] = change


@njit(cache=True, nogil=True)
def _geometry_jacobian(g: Floats, unit: Floats, norm: float, n_shift: int, pivot: Floats, column: int, out: Floats) -> None:
    """Write d(fast, slow)/d(ray) into the columns 0-2 of ``out``, and the detector's derivatives from ``column`` on.

    A ray meets the plane at f·r (n·o)/(n·r) - f·o along each axis f; the parallax adds path(|n·u|) f·u. A turn of the panel
    about the point where the ray meets it leaves that pixel where it is, but for the parallax: a turn about the pivot does what
    the translation of that point does.
    """
    along = g[6] * unit[0] + g[7] * unit[1] + g[8] * unit[2]
    path, slope = mean_path(g[17], g[18], abs(along))
    if along < 0:
        slope = -slope
    for axis in range(2):
        f0, f1, f2 = g[3 * axis], g[3 * axis + 1], g[3 * axis + 2]
        f_u = f0 * unit[0] + f1 * unit[1] + f2 * unit[2]
        for r in range(3):
            f_r = g[3 * axis + r]
            d_f = (f_r - f_u * unit[r]) / norm
            d_n = (g[6 + r] - along * unit[r]) / norm
            plane = g[12] / along * (d_f - f_u * d_n / along)
            out[axis, r] = (plane + path * d_f + slope * d_n * f_u) / g[13 + axis]
            if r < n_shift:
                out[axis, column + r] = (f_u * g[6 + r] / along - f_r) / g[13 + axis]
                out[2, column + r] = 0.0
        if n_shift == 5:
            x, y, z = g[12] / along * unit[0] - pivot[0], g[12] / along * unit[1] - pivot[1], g[12] / along * unit[2] - pivot[2]
            along_x, along_y, along_z = out[axis, column], out[axis, column + 1], out[axis, column + 2]
            out[axis, column + 3] = y * along_z - z * along_y
            out[axis, column + 4] = z * along_x - x * along_z
            n_x, n_y = g[7] * unit[2] - g[8] * unit[1], g[8] * unit[0] - g[6] * unit[2]
            out[axis, column + 3] += (path * (f1 * unit[2] - f2 * unit[1]) + slope * n_x * f_u) / g[13 + axis]
            out[axis, column + 4] += (path * (f2 * unit[0] - f0 * unit[2]) + slope * n_y * f_u) / g[13 + axis]
            out[2, column + 3] = out[2, column + 4] = 0.0

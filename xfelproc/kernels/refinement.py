"""Refinement of a still: orientation, constrained cell and detector shift by robust Gauss-Newton; mosaicity by likelihood."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.geometry import displacement, mean_path, ray_to_panel, spots_to_q

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
QUANTILE = 0.35


@njit(cache=True, nogil=True)
def _radial_axis(g: Floats, beam: Floats, x: float, y: float, z: float) -> tuple[float, float]:
    """Return the unit vector, in pixel axes of panel ``g``, along which a ray (unit) moves when its 2θ grows."""
    dot = x * beam[0] + y * beam[1] + z * beam[2]
    a = -(beam[0] - dot * x)
    b = -(beam[1] - dot * y)
    c = -(beam[2] - dot * z)
    ray = g[6] * x + g[7] * y + g[8] * z
    slip = (g[6] * a + g[7] * b + g[8] * c) / ray  # the plane cuts the ray obliquely
    a, b, c = a - slip * x, b - slip * y, c - slip * z
    u = (g[0] * a + g[1] * b + g[2] * c) / g[13]
    v = (g[3] * a + g[4] * b + g[5] * c) / g[14]
    norm = np.sqrt(u * u + v * v)
    if norm < 1e-12:
        return 1.0, 0.0
    return u / norm, v / norm


@njit(cache=True, nogil=True)
def assign_indices(a: Floats, q: Floats, tolerance: float, hkl: Ints, inside: NDArray[np.bool_]) -> int:
    """Write the nearest index of each q and whether it is within ``tolerance`` in each component; return how many are."""
    inverse = np.linalg.inv(a)
    count = 0
    for i in range(q.shape[0]):
        good = True
        zero = True
        for r in range(3):
            f = inverse[r, 0] * q[i, 0] + inverse[r, 1] * q[i, 1] + inverse[r, 2] * q[i, 2]
            nearest = np.rint(f)
            hkl[i, r] = int(nearest)
            if abs(f - nearest) > tolerance:
                good = False
            if nearest != 0.0:
                zero = False
        inside[i] = good and not zero
        count += inside[i]
    return count


@njit(cache=True, nogil=True)
def predict_indices(
    a: Floats,
    hkl: Ints,
    rows: NDArray[np.bool_],
    panel: Ints,
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
    size = np.sqrt(length2)
    tilt = -(q[0] * beam[0] + q[1] * beam[1] + q[2] * beam[2]) / size
    psi = np.arccos(min(1.0, max(-1.0, tilt))) - np.arccos(min(1.0, size / (2.0 * radius)))
    if not hit:
        return np.nan, np.nan, excitation, psi
    return fast, slow, excitation, psi


@njit(cache=True, nogil=True)
def still_jacobian(
    a: Floats, strain: Floats, h: Ints, g: Floats, s0: Floats, spread: Floats, n_shift: int, work: Floats, out: Floats
) -> None:
    """Write the derivatives (3, parameters) of fast, slow (px) and excitation error (1/Å) of one reflection on panel ``g``.

    The parameters are three turns (radians, about x, y, z), amplitudes of the changes of A ``strain`` (k, 3, 3), and ``n_shift``
    translations of the detector (mm). The turn of the displacement vector with q is left out (relative size ε/|q|).
    ``work`` is scratch (5, 3).
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
    _geometry_jacobian(g, unit, norm, n_shift, 3 + k, out)
    gx, gy, gz, hx, hy, hz = out[0, 0], out[0, 1], out[0, 2], out[1, 0], out[1, 1], out[1, 2]
    for j in range(3 + k):
        if j == 0:
            x, y, z = 0.0, -q[2], q[1]
        elif j == 1:
            x, y, z = q[2], 0.0, -q[0]
        elif j == 2:
            x, y, z = -q[1], q[0], 0.0
        else:
            e = strain[j - 3]
            x = e[0, 0] * h[0] + e[0, 1] * h[1] + e[0, 2] * h[2]
            y = e[1, 0] * h[0] + e[1, 1] * h[1] + e[1, 2] * h[2]
            z = e[2, 0] * h[0] + e[2, 1] * h[1] + e[2, 2] * h[2]
        change = n[0] * x + n[1] * y + n[2] * z
        x -= change * v[0]
        y -= change * v[1]
        z -= change * v[2]
        out[0, j] = gx * x + gy * y + gz * z
        out[1, j] = hx * x + hy * y + hz * z
        out[2, j] = change


@njit(cache=True, nogil=True)
def _geometry_jacobian(g: Floats, unit: Floats, norm: float, n_shift: int, column: int, out: Floats) -> None:
    """Write d(fast, slow)/d(ray) into the columns 0-2 of ``out``, and the translations' derivatives from ``column`` on.

    A ray meets the plane at f·r (n·o)/(n·r) - f·o along each axis f; the parallax adds path(|n·u|) f·u.
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


@njit(cache=True, nogil=True)
def keep_nearest(hkl: Ints, distance2: Floats, rows: NDArray[np.bool_], keep: NDArray[np.bool_]) -> None:
    """Write into ``keep`` which of ``rows`` are the nearest to the prediction of all with the same index."""
    n = hkl.shape[0]
    size = 64
    while size < 3 * n:
        size *= 2
    table = np.full(size, -1, dtype=np.int32)
    for i in range(n):
        keep[i] = rows[i]
        if not rows[i]:
            continue
        key = hkl[i, 0] * 73856093 ^ hkl[i, 1] * 19349663 ^ hkl[i, 2] * 83492791
        slot = key & (size - 1)
        while table[slot] >= 0:
            other = table[slot]
            if hkl[other, 0] == hkl[i, 0] and hkl[other, 1] == hkl[i, 1] and hkl[other, 2] == hkl[i, 2]:
                if distance2[i] < distance2[other]:
                    keep[other] = False
                    table[slot] = i
                else:
                    keep[i] = False
                break
            slot = (slot + 1) & (size - 1)
        else:
            table[slot] = i


@njit(cache=True, nogil=True)
def _quantile(values: Floats, count: int, fraction: float) -> float:
    """Return a quantile of the first ``count`` entries, without interpolation."""
    k = min(count - 1, int(fraction * count))
    return float(np.partition(values[:count], k)[k])


@njit(cache=True, nogil=True)
def solve_spd(matrix: Floats, vector: Floats) -> bool:
    """Solve a symmetric positive definite system in place (Cholesky on the matrix scaled to a unit diagonal)."""
    n = vector.shape[0]
    scale = np.empty(n)
    for i in range(n):
        if not matrix[i, i] > 0.0:
            return False
        scale[i] = 1.0 / np.sqrt(matrix[i, i])
    for i in range(n):
        vector[i] *= scale[i]
        for j in range(n):
            matrix[i, j] *= scale[i] * scale[j]
        matrix[i, i] += 1e-10
    for i in range(n):
        for j in range(i + 1):
            total = matrix[i, j]
            for k in range(j):
                total -= matrix[i, k] * matrix[j, k]
            if i == j:
                if total <= 0.0:
                    return False
                matrix[i, i] = np.sqrt(total)
            else:
                matrix[i, j] = total / matrix[j, j]
    for i in range(n):
        for k in range(i):
            vector[i] -= matrix[i, k] * vector[k]
        vector[i] /= matrix[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            vector[i] -= matrix[k, i] * vector[k]
        vector[i] /= matrix[i, i]
    for i in range(n):
        vector[i] *= scale[i]
    return True


@njit(cache=True, nogil=True)
def _turn(vector: Floats, a: Floats) -> Floats:
    """Return ``a`` turned by a rotation vector (radians; Rodrigues)."""
    angle = np.sqrt(vector[0] ** 2 + vector[1] ** 2 + vector[2] ** 2)
    if angle < 1e-14:
        return a.copy()
    k = np.zeros((3, 3))
    k[0, 1], k[0, 2], k[1, 2] = -vector[2] / angle, vector[1] / angle, -vector[0] / angle
    k[1, 0], k[2, 0], k[2, 1] = -k[0, 1], -k[0, 2], -k[1, 2]
    out = a.copy()
    for r in range(3):
        for c in range(3):
            for m in range(3):
                square = 0.0
                for p in range(3):
                    square += k[r, p] * k[p, m]
                out[r, c] += (np.sin(angle) * k[r, m] + (1.0 - np.cos(angle)) * square) * a[m, c]
    return out


@njit(cache=True, nogil=True)
def _strains(a: Floats, basis: Floats) -> Floats:
    """Return ½ A⁻ᵀ E of each direction E of the metric: the changes of A that keep the symmetry."""
    inverse = np.linalg.inv(a)
    out = np.zeros(basis.shape)
    for j in range(basis.shape[0]):
        for r in range(3):
            for c in range(3):
                for m in range(3):
                    out[j, r, c] += 0.5 * inverse[m, r] * basis[j, m, c]
    return out


@njit(cache=True, nogil=True)
def _constrain(a: Floats, basis: Floats) -> None:
    """Strain ``a`` in place until its metric lies in the space of ``basis``: A += ½ A⁻ᵀ ΔG*, which does not turn it."""
    for _ in range(4):
        metric = a.T @ a
        change = -metric
        for j in range(basis.shape[0]):
            change += np.sum(metric * basis[j]) * basis[j]
        a += 0.5 * (np.linalg.inv(a).T @ change)


@njit(cache=True, nogil=True)
def _restrain_cell(a: Floats, metric: Floats, basis: Floats, sigma: float, normal: Floats, right: Floats) -> None:
    """Add the restraint of the cell to its start: strain ½ G*⁻¹ ΔG*, of relative standard deviation ``sigma``."""
    k = basis.shape[0]
    inverse = np.linalg.inv(metric)
    now = a.T @ a - metric
    for i in range(k):
        left = inverse @ basis[i]
        for j in range(k):
            product = left @ (inverse @ basis[j])
            weight = 0.25 * (product[0, 0] + product[1, 1] + product[2, 2]) / (sigma * sigma)
            normal[3 + i, 3 + j] += weight
            right[3 + i] -= weight * np.sum(now * basis[j])


@njit(cache=True, nogil=True)
def _tukey(ratio2: float, limit: float) -> float:
    """Return the biweight of a squared normalised residual."""
    t = ratio2 / (limit * limit)
    return (1.0 - t) * (1.0 - t) if t < 1.0 else 0.0


@njit(cache=True, nogil=True)
def _weigh(
    keep: NDArray[np.bool_],
    residual: Floats,
    out: Floats,
    snr: Floats,
    s_tangential: float,
    s_radial: float,
    systematic: float,
    wobble: float,
    limit: float,
    weights: Floats,
) -> None:
    """Write the weights of radial and tangential position (1/px²) and of excitation error (Å²); drop spots that have none."""
    base = systematic * systematic
    for i in range(keep.shape[0]):
        if not keep[i]:
            continue
        var_r = base + (s_radial / snr[i]) ** 2
        var_t = base + (s_tangential / snr[i]) ** 2
        w = _tukey(residual[i, 0] ** 2 / var_r + residual[i, 1] ** 2 / var_t, limit)
        w_e = _tukey((out[i, 2] / wobble) ** 2, limit)
        if w * w_e == 0.0:
            keep[i] = False
            continue
        weights[i, 0], weights[i, 1], weights[i, 2] = w / var_r, w / var_t, w_e / (wobble * wobble)


@njit(cache=True, nogil=True)
def _normal_equations(
    a: Floats,
    strain: Floats,
    hkl: Ints,
    keep: NDArray[np.bool_],
    panel: Ints,
    geometry: Floats,
    s0: Floats,
    spread: Floats,
    n_shift: int,
    residual: Floats,
    out: Floats,
    weights: Floats,
    work: Floats,
    rows: Floats,
    normal: Floats,
    right: Floats,
) -> None:
    """Write the normal matrix and right side of a Gauss-Newton step over the spots kept."""
    normal[:] = 0.0
    right[:] = 0.0
    p = right.shape[0]
    for i in range(keep.shape[0]):
        if not keep[i]:
            continue
        still_jacobian(a, strain, hkl[i], geometry[panel[i]], s0, spread, n_shift, work, rows)
        u, v = residual[i, 2], residual[i, 3]
        for j in range(p):
            x, y = rows[0, j], rows[1, j]
            rows[0, j] = u * x + v * y
            rows[1, j] = -v * x + u * y
        for j in range(p):
            jr, jt, jx = weights[i, 0] * rows[0, j], weights[i, 1] * rows[1, j], weights[i, 2] * rows[2, j]
            right[j] += jr * residual[i, 0] + jt * residual[i, 1] - jx * out[i, 2]
            for m in range(j + 1):
                normal[j, m] += jr * rows[0, m] + jt * rows[1, m] + jx * rows[2, m]
    for j in range(p):
        for m in range(j):
            normal[m, j] = normal[j, m]


@njit(cache=True, nogil=True)
def refine_still(
    a_start: Floats,
    basis: Floats,
    geometry_start: Floats,
    panel: Ints,
    fast: Floats,
    slow: Floats,
    snr: Floats,
    s0: Floats,
    spread: Floats,
    n_shift: int,
    settings: Floats,
) -> tuple[Floats, Floats, Ints, NDArray[np.bool_], NDArray[np.bool_], Floats, Floats]:
    """Refine orientation, cell (along ``basis`` of the metric) and detector translation on all spots of a frame.

    Each cycle assigns indices anew, keeps the nearest spot of each index, estimates the scatter that counting statistics do not
    explain, and makes one Gauss-Newton step with biweights on position and on excitation error.

    Parameters
    ----------
    settings
        tolerance of the index; σ·S/N of positions, tangential and radial (px); least systematic σ (px); σ of the excitation error
        (1/Å; 0: from the spots); restraint of the cell (relative) and of the translation (mm); biweight limit; most cycles.

    Returns
    -------
    A, translation (mm), hkl (n, 3), within tolerance (n), kept (n), fast, slow, excitation, ΔΨ (n, 4), and the σ of systematic
    position (px) and of excitation (1/Å) in the last cycle, with the cycles made.
    """
    tolerance, s_tangential, s_radial, s_floor, s_excitation = settings[0], settings[1], settings[2], settings[3], settings[4]
    cell_sigma, shift_sigma, limit, cycles = settings[5], settings[6], settings[7], int(settings[8])
    n, k = panel.shape[0], basis.shape[0]
    p = 3 + k + n_shift
    a = a_start.copy()
    _constrain(a, basis)
    metric = a.T @ a
    geometry = geometry_start.copy()
    shift = np.zeros(3)
    beam = s0 / np.sqrt(np.sum(s0 * s0))
    q = np.empty((n, 3))
    hkl = np.zeros((n, 3), dtype=np.int32)
    inside = np.zeros(n, dtype=np.bool_)
    keep = np.zeros(n, dtype=np.bool_)
    out = np.full((n, 4), np.nan)
    residual = np.zeros((n, 5))  # radial, tangential, radial axis (fast, slow), squared distance
    scratch = np.empty(n)
    weights = np.zeros((n, 3))
    work = np.empty((5, 3))
    rows = np.zeros((3, p))
    normal, right = np.zeros((p, p)), np.zeros(p)
    summary = np.zeros(3)
    for cycle in range(cycles + 1):
        if cycle == 0 or n_shift > 0:
            spots_to_q(geometry, panel, fast, slow, s0, q)
        count = assign_indices(a, q, tolerance, hkl, inside)
        predict_indices(a, hkl, inside, panel, geometry, s0, spread, out)
        _residuals(geometry, panel, fast, slow, beam, s0, q, inside, out, residual)
        keep_nearest(hkl, residual[:, 4], inside, keep)
        systematic, wobble = _scatter(inside, keep, residual, out, snr, s_tangential, s_radial, s_floor, s_excitation, scratch)
        _weigh(keep, residual, out, snr, s_tangential, s_radial, systematic, wobble, limit, weights)
        summary[0], summary[1], summary[2] = systematic, wobble, cycle
        if cycle == cycles or count < 3:
            break
        strain = _strains(a, basis)
        _normal_equations(
            a, strain, hkl, keep, panel, geometry, s0, spread, n_shift, residual, out, weights, work, rows, normal, right
        )
        _restrain_cell(a, metric, basis, cell_sigma, normal, right)
        for j in range(n_shift):
            normal[3 + k + j, 3 + k + j] += 1.0 / shift_sigma**2
            right[3 + k + j] -= shift[j] / shift_sigma**2
        if not solve_spd(normal, right):
            break
        for j in range(k):
            a += right[3 + j] * strain[j]
        a = _turn(right[:3], a)
        change = np.sqrt(right[0] ** 2 + right[1] ** 2 + right[2] ** 2)
        for j in range(n_shift):
            shift[j] += right[3 + k + j]
            change = max(change, abs(right[3 + k + j]) / 100.0)
            for t in range(geometry.shape[0]):
                geometry[t, 9 + j] += right[3 + k + j]
                geometry[t, 12] += right[3 + k + j] * geometry[t, 6 + j]
        if change < 1e-6 + 2e-5 * systematic and cycle < cycles - 1 and cycle > 0:
            cycles = cycle + 1
    return a, shift, hkl, inside, keep, out, summary


@njit(cache=True, nogil=True)
def _residuals(
    geometry: Floats,
    panel: Ints,
    fast: Floats,
    slow: Floats,
    beam: Floats,
    s0: Floats,
    q: Floats,
    inside: NDArray[np.bool_],
    out: Floats,
    residual: Floats,
) -> None:
    """Write observed - predicted along and across the radial direction (px), that direction, and the squared distance."""
    inverse = 1.0 / np.sqrt(np.sum(s0 * s0))
    for i in range(panel.shape[0]):
        if not inside[i]:
            continue
        x, y, z = (q[i, 0] + s0[0]) * inverse, (q[i, 1] + s0[1]) * inverse, (q[i, 2] + s0[2]) * inverse
        u, v = _radial_axis(geometry[panel[i]], beam, x, y, z)
        dx, dy = fast[i] - out[i, 0], slow[i] - out[i, 1]
        residual[i, 0] = u * dx + v * dy
        residual[i, 1] = -v * dx + u * dy
        residual[i, 2], residual[i, 3] = u, v
        residual[i, 4] = dx * dx + dy * dy
        if not np.isfinite(residual[i, 4]):
            inside[i] = False


@njit(cache=True, nogil=True)
def _scatter(
    inside: NDArray[np.bool_],
    keep: NDArray[np.bool_],
    residual: Floats,
    out: Floats,
    snr: Floats,
    s_tangential: float,
    s_radial: float,
    s_floor: float,
    s_excitation: float,
    scratch: Floats,
) -> tuple[float, float]:
    """Return the σ of positions beyond counting statistics (px) and the σ of the excitation error (1/Å), by quantiles.

    A low quantile is taken for the positions: up to a half of the spots within tolerance of an index are there by chance, or
    belong to another lattice. The quantile f of the squared length of a Gaussian of unit variances in the plane is -2 ln(1 - f).
    """
    count = 0
    for i in range(keep.shape[0]):
        if keep[i]:
            counted = 0.5 * (s_tangential * s_tangential + s_radial * s_radial) / (snr[i] * snr[i])
            scratch[count] = residual[i, 4] / (-2.0 * np.log(1.0 - QUANTILE)) - counted
            count += 1
    if count == 0:
        return s_floor, max(s_excitation, 1e-6)
    systematic = np.sqrt(max(s_floor * s_floor, _quantile(scratch, count, QUANTILE)))
    if s_excitation > 0.0:
        return systematic, s_excitation
    count = 0
    for i in range(keep.shape[0]):
        if keep[i]:
            scratch[count] = abs(out[i, 2])
            count += 1
    return systematic, max(1.4826 * _quantile(scratch, count, 0.5), 2e-4)


@njit(cache=True, nogil=True)
def fit_mosaicity(
    psi: Floats, d: Floats, extra: Floats, start: Floats, bounds: Floats, edge: float, prior_sigma: float, cycles: int
) -> Floats:
    """Return 1/D (1/Å) and η/2 (radians) of largest likelihood for the ΔΨ (radians) of spots of resolution ``d`` (Å).

    ΔΨ follows a flat distribution of half-width α = d/D + η/2 + ``extra`` with soft edges,
    ``p = sinh(2e) / (2α (cosh 2e + cosh(2eΔΨ/α)))`` for an ``edge`` of e, after the envelope of Sauter et al. (2014): a
    spot far outside costs no more than linearly. The logarithms of both are fitted by Fisher scoring, with a log-normal
    prior about ``start``, which decides what few spots leave open, within ``bounds`` (2, 2).
    """
    u = np.log(start)
    centre = u.copy()
    weight = 1.0 / (prior_sigma * prior_sigma)
    flat = 2.0 * np.cosh(2.0 * edge)
    for _ in range(cycles):
        shape, mosaic = np.exp(u[0]), np.exp(u[1])
        g0 = g1 = h00 = h01 = h11 = 0.0
        for i in range(psi.shape[0]):
            alpha = shape * d[i] + mosaic + extra[i]
            x = min(2.0 * edge * abs(psi[i]) / alpha, 300.0)
            up = np.exp(x)
            down = 1.0 / up
            force = x * (up - down) / (flat + up + down) - 1.0
            a0, a1 = shape * d[i] / alpha, mosaic / alpha
            g0 += force * a0
            g1 += force * a1
            h00 += 2.0 * a0 * a0
            h01 += 2.0 * a0 * a1
            h11 += 2.0 * a1 * a1
        g0 -= weight * (u[0] - centre[0])
        g1 -= weight * (u[1] - centre[1])
        h00 += weight
        h11 += weight
        determinant = h00 * h11 - h01 * h01
        step0 = (h11 * g0 - h01 * g1) / determinant
        step1 = (h00 * g1 - h01 * g0) / determinant
        largest = max(abs(step0), abs(step1))
        shrink = min(1.0, 1.0 / largest) if largest > 0.0 else 1.0
        u[0] = min(np.log(bounds[0, 1]), max(np.log(bounds[0, 0]), u[0] + shrink * step0))
        u[1] = min(np.log(bounds[1, 1]), max(np.log(bounds[1, 0]), u[1] + shrink * step1))
        if largest < 3e-3:
            break
    return np.exp(u)


@njit(cache=True, nogil=True)
def fit_turns(
    q: Floats, miss: Floats, start: float, dilation: float, noise: float, freedom: float, cycles: int
) -> tuple[Floats, float, float]:
    """Return the covariance (3, 3; radians²) of the turns of a crystal's blocks and the variances of the relative length of q
    and of what is left (1/Å²).

    A spot recorded at ``miss`` (n, 3; 1/Å) from its lattice point q comes from blocks turned by ω, of a cell smaller by δ or at a
    wavelength smaller by δ: miss = ω × q + δ q + noise, all Gaussian. Their covariances are of largest likelihood (expectation
    and maximisation); spots far out have the weights of Student's distribution of ``freedom`` degrees. ``start`` (radians²),
    ``dilation`` and ``noise`` (1/Å²) are first guesses.
    """
    n = q.shape[0]
    s = np.zeros((3, 3))
    for r in range(3):
        s[r, r] = start
    c, g = np.empty((3, 3)), np.empty((3, 3))
    qs, sum_, m = np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3))
    w, u = np.empty(3), np.empty(3)
    for _ in range(cycles):
        sum_[:] = 0.0
        m[:] = 0.0
        rest = 0.0
        longer = 0.0
        for i in range(n):
            x, y, z = q[i, 0], q[i, 1], q[i, 2]
            for r in range(3):  # rows of Q S with Q ω = ω × q
                qs[0, r] = s[1, r] * z - s[2, r] * y
                qs[1, r] = s[2, r] * x - s[0, r] * z
                qs[2, r] = s[0, r] * y - s[1, r] * x
            for r in range(3):
                c[r, 0] = qs[r, 1] * z - qs[r, 2] * y
                c[r, 1] = qs[r, 2] * x - qs[r, 0] * z
                c[r, 2] = qs[r, 0] * y - qs[r, 1] * x
                for t in range(3):
                    c[r, t] += dilation * q[i, r] * q[i, t]
                c[r, r] += noise
            _invert_symmetric(c, g)
            distance = 0.0
            for r in range(3):
                u[r] = g[r, 0] * miss[i, 0] + g[r, 1] * miss[i, 1] + g[r, 2] * miss[i, 2]
                distance += u[r] * miss[i, r]
            weight = (freedom + 3.0) / (freedom + distance)
            ex, ey, ez = y * u[2] - z * u[1], z * u[0] - x * u[2], x * u[1] - y * u[0]
            for r in range(3):
                w[r] = s[r, 0] * ex + s[r, 1] * ey + s[r, 2] * ez
            delta = dilation * (x * u[0] + y * u[1] + z * u[2])
            spread = 0.0
            for r in range(3):
                for t in range(3):
                    spread += q[i, r] * g[r, t] * q[i, t]
            longer += weight * delta * delta + dilation * (1.0 - dilation * spread)
            left = (miss[i, 0] - w[1] * z + w[2] * y - delta * x) ** 2 + (miss[i, 1] - w[2] * x + w[0] * z - delta * y) ** 2
            left += (miss[i, 2] - w[0] * y + w[1] * x - delta * z) ** 2
            rest += weight * left + noise * (3.0 - noise * (g[0, 0] + g[1, 1] + g[2, 2]))
            for r in range(3):
                for t in range(3):
                    sum_[r, t] += weight * w[r] * w[t]
            _add_projected(m, g, x, y, z)
        s = (sum_ - s @ m @ s) / n + s
        dilation = longer / n
        noise = rest / (3.0 * n)
    return s, dilation, noise


@njit(cache=True, nogil=True)
def _invert_symmetric(c: Floats, g: Floats) -> None:
    """Write the inverse of a symmetric 3 x 3 matrix into ``g``."""
    g[0, 0] = c[1, 1] * c[2, 2] - c[1, 2] * c[1, 2]
    g[0, 1] = c[0, 2] * c[1, 2] - c[0, 1] * c[2, 2]
    g[0, 2] = c[0, 1] * c[1, 2] - c[0, 2] * c[1, 1]
    g[1, 1] = c[0, 0] * c[2, 2] - c[0, 2] * c[0, 2]
    g[1, 2] = c[0, 1] * c[0, 2] - c[0, 0] * c[1, 2]
    g[2, 2] = c[0, 0] * c[1, 1] - c[0, 1] * c[0, 1]
    inverse = 1.0 / (c[0, 0] * g[0, 0] + c[0, 1] * g[0, 1] + c[0, 2] * g[0, 2])
    for r in range(3):
        for t in range(r, 3):
            g[r, t] *= inverse
            g[t, r] = g[r, t]


@njit(cache=True, nogil=True)
def _add_projected(m: Floats, g: Floats, x: float, y: float, z: float) -> None:
    """Add Qᵀ g Q to ``m``, with Q ω = ω × q for q = (x, y, z)."""
    for t in range(3):
        a, b, c = 0.0, 0.0, 0.0  # column t of Q, the cross product of the unit vector with q
        if t == 0:
            b, c = -z, y
        elif t == 1:
            a, c = z, -x
        else:
            a, b = -y, x
        u0 = g[0, 0] * a + g[0, 1] * b + g[0, 2] * c
        u1 = g[1, 0] * a + g[1, 1] * b + g[1, 2] * c
        u2 = g[2, 0] * a + g[2, 1] * b + g[2, 2] * c
        m[0, t] += y * u2 - z * u1
        m[1, t] += z * u0 - x * u2
        m[2, t] += x * u1 - y * u0

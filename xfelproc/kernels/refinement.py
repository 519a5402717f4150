"""Refinement of a still: orientation, constrained cell and detector shift by robust Gauss-Newton."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.assignment import assign_indices, keep_nearest
from xfelproc.kernels.geometry import move_panels, spots_to_q
from xfelproc.kernels.prediction import predict_indices, still_jacobian
from xfelproc.kernels.small_matrices import solve_spd

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
def _quantile(values: Floats, count: int, fraction: float) -> float:
    """Return a quantile of the first ``count`` entries, without interpolation."""
    k = min(count - 1, int(fraction * count))
    return float(np.partition(values[:count], k)[k])


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
    pivot: Floats,
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
        still_jacobian(a, strain, hkl[i], geometry[panel[i]], s0, spread, n_shift, pivot, work, rows)
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
def _move(step: Floats, move: Floats, start: Floats, pivot: Floats, geometry: Floats) -> float:
    """Add a step to the detector's translation and tilt and place its panels; return the largest part, 100 mm as a radian."""
    largest = 0.0
    for j in range(step.shape[0]):
        move[j] += step[j]
        largest = max(largest, abs(step[j]) * (0.01 if j < 3 else 1.0))
    if step.shape[0] > 0:
        move_panels(start, move, pivot, geometry)
    return largest


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
    pivot: Floats,
    place: Floats,
    settings: Floats,
) -> tuple[Floats, Floats, Ints, NDArray[np.bool_], NDArray[np.bool_], Floats, Floats]:
    """Refine orientation, cell (along ``basis`` of the metric) and the detector's place on all spots of a frame.

    ``n_shift`` of the detector's translations along x, y, z and turns about x and y through ``pivot`` (mm) are refined.
    ``place`` (2, 5) is where (mm, radians) the restraint holds them, and where they start.

    Each cycle assigns indices anew, keeps the nearest spot of each index, estimates the scatter that counting statistics do not
    explain, and makes one Gauss-Newton step with biweights on position and on excitation error.

    Parameters
    ----------
    settings
        tolerance of the index; σ·S/N of positions, tangential and radial (px); least systematic σ (px); σ of the excitation error
        (1/Å; 0: from the spots); restraint of the cell (relative), of translation (mm) and tilt (radians); biweight limit; cycles.

    Returns
    -------
    A, translation (mm) and tilt (radians) (5), hkl (n, 3), within tolerance (n), kept (n), fast, slow, excitation, ΔΨ (n, 4), and
    the σ of systematic position (px) and of excitation (1/Å) in the last cycle, with the cycles made.

    Longer than the house's 60 lines by its parameters and scratch, which the steps of a cycle share.
    """
    tolerance, s_tangential, s_radial, s_floor, s_excitation = settings[0], settings[1], settings[2], settings[3], settings[4]
    cell_sigma, shift_sigma, tilt_sigma, limit, cycles = settings[5], settings[6], settings[7], settings[8], int(settings[9])
    n, k = panel.shape[0], basis.shape[0]
    p = 3 + k + n_shift
    a = a_start.copy()
    _constrain(a, basis)
    metric = a.T @ a
    geometry = geometry_start.copy()
    shift = place[1].copy()
    if np.any(shift != 0.0):
        move_panels(geometry_start, shift, pivot, geometry)
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
            a,
            strain,
            hkl,
            keep,
            panel,
            geometry,
            s0,
            spread,
            n_shift,
            pivot + shift[:3],
            residual,
            out,
            weights,
            work,
            rows,
            normal,
            right,
        )
        _restrain_cell(a, metric, basis, cell_sigma, normal, right)
        for j in range(n_shift):
            sigma = shift_sigma if j < 3 else tilt_sigma
            normal[3 + k + j, 3 + k + j] += 1.0 / sigma**2
            right[3 + k + j] -= (shift[j] - place[0, j]) / sigma**2
        if not solve_spd(normal, right):
            break
        for j in range(k):
            a += right[3 + j] * strain[j]
        a = _turn(right[:3], a)
        change = max(
            np.sqrt(right[0] ** 2 + right[1] ** 2 + right[2] ** 2), _move(right[3 + k :], shift, geometry_start, pivot, geometry)
        )
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

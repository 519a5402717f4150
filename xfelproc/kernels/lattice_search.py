"""Search for lattices in a set of scattering vectors, the cell being known.

The scores are sums over spots of the truncated parabola ``max(0, 1 - 16 r²)`` of ``r = x - rint(x)``, ``x = q · v``: large
where v is a vector of the real-space lattice (the idea of Gasparotto et al. 2024, J. Appl. Cryst. 57, 931).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.small_matrices import any_normal, determinant3, frame_about, invert3, polar3, solve3

Doubles = NDArray[np.float64]
Singles = NDArray[np.float32]


@njit(cache=True, nogil=True, fastmath=True)  # scores of a search: the order of the sum does not matter to the result that is kept
def score_directions(directions: Singles, length: float, q: Singles, weight: Singles, score: Singles) -> None:
    """Write to ``score`` (n,) how periodic the spots are along ``length`` × ``directions`` (n, 3).

    ``q`` is (3, m) with m a multiple of 16 and ``weight`` (m,), padded with zeros.
    """
    one, sharpness, zero = np.float32(1.0), np.float32(16.0), np.float32(0.0)
    scale = np.float32(length)
    qx, qy, qz = q[0], q[1], q[2]
    for i in range(directions.shape[0]):
        x, y, z = directions[i, 0] * scale, directions[i, 1] * scale, directions[i, 2] * scale
        total = zero
        for j in range(qx.shape[0]):
            p = qx[j] * x + qy[j] * y + qz[j] * z
            r = p - np.rint(p)
            total += weight[j] * max(zero, one - sharpness * r * r)
        score[i] = total


@njit(cache=True, nogil=True, fastmath=True)  # a step of a search; what it finds is fitted again without
def _normal_sums(v: Doubles, qx: Doubles, qy: Doubles, qz: Doubles, weight: Doubles) -> tuple[float, ...]:
    """Return the score of ``v`` and Σ w q qᵀ (six), Σ w q h (three) with w the score of each spot."""
    vx, vy, vz = v[0], v[1], v[2]
    score = xx = xy = yy = xz = yz = zz = bx = by = bz = 0.0
    for i in range(qx.shape[0]):
        x, y, z = qx[i], qy[i], qz[i]
        p = x * vx + y * vy + z * vz
        h = np.rint(p)
        r = p - h
        w = weight[i] * max(0.0, 1.0 - 16.0 * r * r)
        wx, wy, wz = w * x, w * y, w * z
        score += w
        xx += wx * x
        xy += wx * y
        yy += wy * y
        xz += wx * z
        yz += wy * z
        zz += wz * z
        bx += wx * h
        by += wy * h
        bz += wz * h
    return score, xx, xy, yy, xz, yz, zz, bx, by, bz


@njit(cache=True, nogil=True)
def refine_vector(v: Doubles, q: Doubles, weight: Doubles, length: float, stiffness: float, n_iterations: int) -> float:
    """Refine one lattice vector ``v`` (3,) in place to the spots ``q`` (3, n); return its score.

    Least squares of q · v against the nearest integers, weighted by the score of each spot; ``stiffness`` holds the
    length at ``length`` (it matters where spots say little about it, as along the beam).
    """
    m = np.empty((3, 3))
    b = np.empty(3)
    for _ in range(n_iterations):
        norm = math.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
        ux, uy, uz = v[0] / norm, v[1] / norm, v[2] / norm
        _, xx, xy, yy, xz, yz, zz, bx, by, bz = _normal_sums(v, q[0], q[1], q[2], weight)
        m[0, 0], m[1, 1], m[2, 2] = xx + stiffness * ux * ux, yy + stiffness * uy * uy, zz + stiffness * uz * uz
        m[0, 1] = m[1, 0] = xy + stiffness * ux * uy
        m[0, 2] = m[2, 0] = xz + stiffness * ux * uz
        m[1, 2] = m[2, 1] = yz + stiffness * uy * uz
        pull = stiffness * length
        b[0], b[1], b[2] = bx + pull * ux, by + pull * uy, bz + pull * uz
        solve3(m, b, v)
    return float(_normal_sums(v, q[0], q[1], q[2], weight)[0])


@njit(cache=True, nogil=True)
def refine_axes(
    axes: Doubles, q: Doubles, weight: Doubles, length: float, stiffness: float, n_iterations: int, n_keep: int
) -> Doubles:
    """Refine candidate vectors (k, 3), drop repeats (±, within 1 %), return the best ``n_keep`` of them, best first."""
    n = axes.shape[0]
    refined = axes.copy()
    score = np.empty(n)
    columns = np.ascontiguousarray(q.T)
    for i in range(n):
        score[i] = refine_vector(refined[i], columns, weight, length, stiffness, n_iterations)
    order = np.argsort(-score)
    kept = np.empty((min(n_keep, n), 3))
    count = 0
    near = 0.01 * length
    for i in order:
        v = refined[i]
        norm = math.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
        new = abs(norm / length - 1.0) < 0.1
        for k in range(count):
            plus = (v[0] - kept[k, 0]) ** 2 + (v[1] - kept[k, 1]) ** 2 + (v[2] - kept[k, 2]) ** 2
            minus = (v[0] + kept[k, 0]) ** 2 + (v[1] + kept[k, 1]) ** 2 + (v[2] + kept[k, 2]) ** 2
            if min(plus, minus) < near * near:
                new = False
                break
        if new:
            kept[count] = v
            count += 1
            if count == kept.shape[0]:
                break
    return kept[:count]


@njit(cache=True, nogil=True, fastmath=True)  # scores of a search
def _scan_rotation(along: Singles, e2: Singles, e3: Singles, weight: Singles, turn: Singles, score: Singles) -> None:
    """Write the score of q · (b∥ + c e2 + s e3) for each c, s of ``turn`` (n, 2)."""
    one, sharpness, zero = np.float32(1.0), np.float32(16.0), np.float32(0.0)
    for i in range(score.shape[0]):
        c, s = turn[i, 0], turn[i, 1]
        total = zero
        for j in range(along.shape[0]):
            p = along[j] + e2[j] * c + e3[j] * s
            r = p - np.rint(p)
            total += weight[j] * max(zero, one - sharpness * r * r)
        score[i] = total


@njit(cache=True, nogil=True)
def _best_maxima(score: Singles, n_keep: int) -> NDArray[np.int64]:
    """Return the positions of the ``n_keep`` largest local maxima of a cyclic sequence, largest first."""
    n = score.shape[0]
    best = np.full(n_keep, -1, dtype=np.int64)
    for i in range(n):
        if score[i] < score[i - 1] or score[i] < score[(i + 1) % n]:
            continue
        k = n_keep
        while k > 0 and (best[k - 1] < 0 or score[best[k - 1]] < score[i]):
            k -= 1
        if k < n_keep:
            for j in range(n_keep - 1, k, -1):
                best[j] = best[j - 1]
            best[k] = i
    return best


@njit(cache=True, nogil=True)
def _distance2(inverse: Doubles, q: Doubles, h: Doubles) -> float:
    """Return |q - A h|² with A = ``inverse``, the inverse of a basis."""
    d2 = 0.0
    for k in range(3):
        d2 += (q[k] - (inverse[k, 0] * h[0] + inverse[k, 1] * h[1] + inverse[k, 2] * h[2])) ** 2
    return d2


@njit(cache=True, nogil=True)
def fit_lattice(basis: Doubles, reference: Doubles, q: Doubles, weight: Doubles, tolerances: Doubles, shape_sigma: float) -> None:
    """Fit ``basis`` (rows a, b, c, Å) in place to the spots it explains, one weighted least-squares step a tolerance.

    Each step assigns h = rint(basis q) and solves q ≈ A h with weights ``(1 - (|Δq| / tolerance)²)²``. The reference basis,
    rotated to the present one, is a prior: each reciprocal axis is held with a relative σ of ``shape_sigma`` against
    a σ of spots of half the last tolerance.
    """
    inverse = np.empty((3, 3))
    reference_a = np.empty((3, 3))
    rotation = np.empty((3, 3))
    invert3(reference, reference_a)
    ss = np.empty((3, 3))
    st = np.empty((3, 3))
    h = np.empty(3)
    sigma = 0.5 * tolerances[-1]
    for tolerance in tolerances:
        invert3(basis, inverse)
        ss[:] = 0.0
        st[:] = 0.0
        polar3(inverse @ reference, rotation)
        for k in range(3):
            length2 = reference_a[0, k] ** 2 + reference_a[1, k] ** 2 + reference_a[2, k] ** 2
            kappa = (sigma / shape_sigma) ** 2 / length2
            ss[k, k] = kappa
            for j in range(3):
                st[j, k] = kappa * (
                    rotation[j, 0] * reference_a[0, k] + rotation[j, 1] * reference_a[1, k] + rotation[j, 2] * reference_a[2, k]
                )
        for i in range(q.shape[0]):
            for k in range(3):
                h[k] = np.rint(basis[k, 0] * q[i, 0] + basis[k, 1] * q[i, 1] + basis[k, 2] * q[i, 2])
            f = 1.0 - _distance2(inverse, q[i], h) / (tolerance * tolerance)
            if f <= 0.0:
                continue
            w = weight[i] * f * f
            for k in range(3):
                for j in range(3):
                    ss[k, j] += w * h[k] * h[j]
                    st[k, j] += w * q[i, k] * h[j]
        if determinant3(ss) <= 0.0:
            return
        invert3(ss, rotation)
        inverse[:] = st @ rotation
        if abs(determinant3(inverse)) < 1e-12:
            return
        invert3(inverse, basis)


@njit(cache=True, nogil=True)
def fit_lattice_and_shift(basis: Doubles, q: Doubles, slope: Doubles, weight: Doubles, tolerances: Doubles, shift: Doubles) -> None:
    """Fit ``basis`` (rows a, b, c) and a translation of the detector, both in place: q + slope · shift ≈ A h.

    ``slope`` (n, 3, 2) is the derivative of q by the translation (1/Å a mm), ``shift`` (2,) in mm. As `fit_lattice`, without the
    prior on the cell. A follows from the shift by least squares, which leaves two equations for the shift.
    """
    inverse, solver, a = np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3))
    h, d, m, b = np.empty(3), np.empty(3), np.empty((2, 2)), np.empty(2)
    sums = np.empty((3, 3, 3))  # Σ w (q, slope_x, slope_y) hᵀ
    ss = np.empty((3, 3))
    for tolerance in tolerances:
        invert3(basis, inverse)
        ss[:], sums[:], m[:], b[:] = 0.0, 0.0, 0.0, 0.0
        for i in range(q.shape[0]):
            for k in range(3):
                d[k] = q[i, k] + slope[i, k, 0] * shift[0] + slope[i, k, 1] * shift[1]
            for k in range(3):
                h[k] = np.rint(basis[k, 0] * d[0] + basis[k, 1] * d[1] + basis[k, 2] * d[2])
            f = 1.0 - _distance2(inverse, d, h) / (tolerance * tolerance)
            if f <= 0.0:
                continue
            w = weight[i] * f * f
            for k in range(3):
                for j in range(3):
                    ss[k, j] += w * h[k] * h[j]
                    sums[0, k, j] += w * q[i, k] * h[j]
                    sums[1, k, j] += w * slope[i, k, 0] * h[j]
                    sums[2, k, j] += w * slope[i, k, 1] * h[j]
                for j in range(2):
                    b[j] -= w * slope[i, k, j] * q[i, k]
                    for other in range(2):
                        m[j, other] += w * slope[i, k, j] * slope[i, k, other]
        if determinant3(ss) <= 1e-9:
            return
        invert3(ss, solver)
        for j in range(2):
            for k in range(3):
                a[k] = sums[1 + j, k] @ solver
            b[j] += (a * sums[0]).sum()
            for other in range(2):
                m[j, other] -= (a * sums[1 + other]).sum()
        determinant = m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0]
        if determinant <= 1e-12 * m[0, 0] * m[1, 1]:
            return
        shift[0] = (b[0] * m[1, 1] - b[1] * m[0, 1]) / determinant
        shift[1] = (b[1] * m[0, 0] - b[0] * m[1, 0]) / determinant
        inverse[:] = (sums[0] + shift[0] * sums[1] + shift[1] * sums[2]) @ solver
        if abs(determinant3(inverse)) < 1e-12:
            return
        invert3(inverse, basis)


@njit(cache=True, nogil=True)
def score_lattice(basis: Doubles, q: Doubles, weight: Doubles, tolerance: float) -> float:
    """Return the weighted sum of ``1 - (|Δq| / tolerance)²`` over the spots nearer to a lattice point than that."""
    inverse = np.empty((3, 3))
    invert3(basis, inverse)
    total = 0.0
    h = np.empty(3)
    for i in range(q.shape[0]):
        for k in range(3):
            h[k] = np.rint(basis[k, 0] * q[i, 0] + basis[k, 1] * q[i, 1] + basis[k, 2] * q[i, 2])
        total += weight[i] * max(0.0, 1.0 - _distance2(inverse, q[i], h) / (tolerance * tolerance))
    return total


@njit(cache=True, nogil=True)
def _complete(
    axis: Doubles,
    second: Doubles,
    local: Doubles,
    lengths: Doubles,
    columns: Doubles,
    weight: Doubles,
    stiffness: Doubles,
    basis: Doubles,
) -> None:
    """Write to ``basis`` a first axis, the second one refined in place, and the third, refined from where ``local`` has it."""
    refine_vector(second, columns, weight, lengths[1], stiffness[1], 3)
    third = local[2] @ frame_about(axis, second)
    refine_vector(third, columns, weight, lengths[2], stiffness[2], 3)
    basis[0], basis[1], basis[2] = axis, second, third


@njit(cache=True, nogil=True)
def complete_bases(
    axes: Doubles,
    reference: Doubles,
    q: Doubles,
    weight: Doubles,
    n_steps: int,
    n_rotations: int,
    both_senses: bool,
    stiffness: Doubles,
    tolerances: Doubles,
    shape_sigma: float,
    enough: float,
) -> tuple[Doubles, Doubles]:
    """Find the other two axes of lattices whose first axis is near one of ``axes`` (k, 3).

    The reference basis (rows; first axis the one searched) is turned about each axis, in both senses unless a twofold axis
    of the lattice makes them equal; the second axis is scored at ``n_steps`` of a turn, the best ``n_rotations`` are refined, the
    third axis follows from the reference. A lattice that explains the fraction ``enough`` of the weights ends the search.
    Returns bases (m, 3, 3), rows a, b, c, and their scores (m,) at the last tolerance.
    """
    n = q.shape[0]
    bases = np.zeros((2 * axes.shape[0] * n_rotations, 3, 3))
    scores = np.full(bases.shape[0], -1.0)
    scan = np.empty(n_steps, dtype=np.float32)
    along, across, up = np.empty(n, dtype=np.float32), np.empty(n, dtype=np.float32), np.empty(n, dtype=np.float32)
    weight32 = weight.astype(np.float32)
    ref_frame = frame_about(reference[0], reference[1])
    local = reference @ ref_frame.T  # rows a, b, c in the frame (e1, e2, e3) of the reference
    turn = np.empty((n_steps, 2), dtype=np.float32)
    for j in range(n_steps):
        turn[j, 0] = local[1, 1] * math.cos(2.0 * math.pi * j / n_steps)
        turn[j, 1] = local[1, 1] * math.sin(2.0 * math.pi * j / n_steps)
    columns = np.ascontiguousarray(q.T)
    lengths = np.array([math.sqrt((reference[k] ** 2).sum()) for k in range(3)])
    wanted = enough * weight.sum()
    place = 0
    for i in range(axes.shape[0]):
        for sign in (1.0, -1.0):
            if sign < 0.0 and not both_senses:
                break
            axis = sign * axes[i]
            frame = frame_about(axis, any_normal(axis))
            projected = q @ frame.T
            for j in range(n):
                along[j] = projected[j, 0] * local[1, 0]
                across[j] = projected[j, 1]
                up[j] = projected[j, 2]
            _scan_rotation(along, across, up, weight32, turn, scan)
            for best in _best_maxima(scan, n_rotations):
                if best < 0:
                    continue
                phi = 2.0 * math.pi * best / n_steps
                second = local[1, 0] * frame[0] + local[1, 1] * (math.cos(phi) * frame[1] + math.sin(phi) * frame[2])
                _complete(axis, second, local, lengths, columns, weight, stiffness, bases[place])
                fit_lattice(bases[place], reference, q, weight, tolerances, shape_sigma)
                scores[place] = score_lattice(bases[place], q, weight, tolerances[-1])
                place += 1
                if scores[place - 1] > wanted:
                    return bases[:place], scores[:place]
    return bases[:place], scores[:place]


@njit(cache=True, nogil=True)
def lattice_distances(basis: Doubles, q: Doubles) -> tuple[NDArray[np.int32], Doubles, Doubles]:
    """Return for each spot the nearest indices (n, 3), the largest |Δhkl| and |Δq| (1/Å)."""
    inverse = np.empty((3, 3))
    invert3(basis, inverse)
    n = q.shape[0]
    hkl = np.empty((n, 3), dtype=np.int32)
    fraction = np.zeros(n)
    distance = np.empty(n)
    h = np.empty(3)
    for i in range(n):
        for k in range(3):
            x = basis[k, 0] * q[i, 0] + basis[k, 1] * q[i, 1] + basis[k, 2] * q[i, 2]
            h[k] = np.rint(x)
            hkl[i, k] = int(h[k])
            fraction[i] = max(fraction[i], abs(x - h[k]))
        distance[i] = math.sqrt(_distance2(inverse, q[i], h))
    return hkl, fraction, distance

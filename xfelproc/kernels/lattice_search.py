"""Search for lattices in a set of scattering vectors, the cell being known.

The scores are sums over spots of the truncated parabola ``max(0, 1 - 16 r²)`` of ``r = x - rint(x)``, ``x = q · v``: large
where v is a vector of the real-space lattice (the idea of Gasparotto et al. 2024, J. Appl. Cryst. 57, 931).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.small_matrices import determinant3, invert3, polar3, solve3

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


@njit(cache=True, nogil=True)
def refine_vector(v: Doubles, q: Doubles, weight: Doubles, length: float, stiffness: float, n_iterations: int) -> float:
    """Refine one lattice vector ``v`` (3,) in place; return its score.

    Least squares of q · v against the nearest integers, weighted by the score of each spot; ``stiffness`` holds the
    length at ``length`` (it matters where spots say little about it, as along the beam).
    """
    m = np.empty((3, 3))
    b = np.empty(3)
    score = 0.0
    for iteration in range(n_iterations + 1):
        norm = math.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
        for k in range(3):
            u = v[k] / norm
            b[k] = stiffness * length * u
            for j in range(k + 1):
                m[k, j] = stiffness * u * v[j] / norm
        score = 0.0
        for i in range(q.shape[0]):
            x, y, z = q[i, 0], q[i, 1], q[i, 2]
            p = x * v[0] + y * v[1] + z * v[2]
            h = np.rint(p)
            r = p - h
            f = 1.0 - 16.0 * r * r
            if f <= 0.0:
                continue
            w = weight[i] * f
            score += w
            m[0, 0] += w * x * x
            m[1, 0] += w * x * y
            m[1, 1] += w * y * y
            m[2, 0] += w * x * z
            m[2, 1] += w * y * z
            m[2, 2] += w * z * z
            b[0] += w * x * h
            b[1] += w * y * h
            b[2] += w * z * h
        if iteration < n_iterations:
            m[0, 1], m[0, 2], m[1, 2] = m[1, 0], m[2, 0], m[2, 1]
            solve3(m, b, v)
    return score


@njit(cache=True, nogil=True)
def refine_axes(
    axes: Doubles, q: Doubles, weight: Doubles, length: float, stiffness: float, n_iterations: int, n_keep: int
) -> Doubles:
    """Refine candidate vectors (k, 3), drop repeats (±, within 1 %), return the best ``n_keep`` of them, best first."""
    n = axes.shape[0]
    refined = axes.copy()
    score = np.empty(n)
    for i in range(n):
        score[i] = refine_vector(refined[i], q, weight, length, stiffness, n_iterations)
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


@njit(cache=True, nogil=True)
def _frame_about(axis: Doubles, other: Doubles) -> Doubles:
    """Return orthonormal rows (e1, e2, e3): e1 along ``axis``, e2 in the plane of ``axis`` and ``other``, right-handed."""
    frame = np.empty((3, 3))
    norm = math.sqrt(axis[0] ** 2 + axis[1] ** 2 + axis[2] ** 2)
    for k in range(3):
        frame[0, k] = axis[k] / norm
    along = other[0] * frame[0, 0] + other[1] * frame[0, 1] + other[2] * frame[0, 2]
    for k in range(3):
        frame[1, k] = other[k] - along * frame[0, k]
    norm = math.sqrt(frame[1, 0] ** 2 + frame[1, 1] ** 2 + frame[1, 2] ** 2)
    for k in range(3):
        frame[1, k] /= norm
    frame[2, 0] = frame[0, 1] * frame[1, 2] - frame[0, 2] * frame[1, 1]
    frame[2, 1] = frame[0, 2] * frame[1, 0] - frame[0, 0] * frame[1, 2]
    frame[2, 2] = frame[0, 0] * frame[1, 1] - frame[0, 1] * frame[1, 0]
    return frame


@njit(cache=True, nogil=True)
def _any_normal(axis: Doubles) -> Doubles:
    """Return a vector that is not parallel to ``axis``."""
    k = 0
    for j in range(1, 3):
        if abs(axis[j]) < abs(axis[k]):
            k = j
    out = np.zeros(3)
    out[k] = 1.0
    return out


@njit(cache=True, nogil=True, fastmath=True)  # scores of a search
def _scan_rotation(along: Singles, e2: Singles, e3: Singles, weight: Singles, radius: float, score: Singles) -> None:
    """Write the score of q · (b∥ + radius (cos φ e2 + sin φ e3)) at equal steps of φ over a turn."""
    one, sharpness, zero = np.float32(1.0), np.float32(16.0), np.float32(0.0)
    n = score.shape[0]
    for i in range(n):
        phi = 2.0 * math.pi * i / n
        c, s = np.float32(radius * math.cos(phi)), np.float32(radius * math.sin(phi))
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
    d = np.empty(3)
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
            d2 = 0.0
            for k in range(3):
                d[k] = q[i, k] - (inverse[k, 0] * h[0] + inverse[k, 1] * h[1] + inverse[k, 2] * h[2])
                d2 += d[k] * d[k]
            f = 1.0 - d2 / (tolerance * tolerance)
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
def score_lattice(basis: Doubles, q: Doubles, weight: Doubles, tolerance: float) -> float:
    """Return the weighted sum of ``1 - (|Δq| / tolerance)²`` over the spots nearer to a lattice point than that."""
    inverse = np.empty((3, 3))
    invert3(basis, inverse)
    total = 0.0
    h = np.empty(3)
    for i in range(q.shape[0]):
        for k in range(3):
            h[k] = np.rint(basis[k, 0] * q[i, 0] + basis[k, 1] * q[i, 1] + basis[k, 2] * q[i, 2])
        d2 = 0.0
        for k in range(3):
            d2 += (q[i, k] - (inverse[k, 0] * h[0] + inverse[k, 1] * h[1] + inverse[k, 2] * h[2])) ** 2
        total += weight[i] * max(0.0, 1.0 - d2 / (tolerance * tolerance))
    return total


@njit(cache=True, nogil=True)
def complete_bases(
    axes: Doubles,
    reference: Doubles,
    q: Doubles,
    weight: Doubles,
    n_steps: int,
    n_rotations: int,
    stiffness: Doubles,
    tolerances: Doubles,
    shape_sigma: float,
) -> tuple[Doubles, Doubles]:
    """Find the other two axes of lattices whose first axis is near one of ``axes`` (k, 3).

    The reference basis (rows; first axis the one searched) is turned about each axis in both senses; the second axis
    is scored at ``n_steps`` of a turn, the best ``n_rotations`` are refined, the third axis follows from the reference.

    Returns
    -------
    bases, scores
        (2 k n_rotations, 3, 3) rows a, b, c and the scores at the last tolerance; a score of -1 marks an unused place.
    """
    n = q.shape[0]
    n_axes = axes.shape[0]
    bases = np.zeros((2 * n_axes * n_rotations, 3, 3))
    scores = np.full(2 * n_axes * n_rotations, -1.0)
    scan = np.empty(n_steps, dtype=np.float32)
    along, across, up = np.empty(n, dtype=np.float32), np.empty(n, dtype=np.float32), np.empty(n, dtype=np.float32)
    weight32 = weight.astype(np.float32)
    ref_frame = _frame_about(reference[0], reference[1])
    local = reference @ ref_frame.T  # rows a, b, c in the frame (e1, e2, e3) of the reference
    place = 0
    for i in range(n_axes):
        for sign in (1.0, -1.0):
            axis = sign * axes[i]
            frame = _frame_about(axis, _any_normal(axis))
            projected = q @ frame.T
            for j in range(n):
                along[j] = projected[j, 0] * local[1, 0]
                across[j] = projected[j, 1]
                up[j] = projected[j, 2]
            _scan_rotation(along, across, up, weight32, local[1, 1], scan)
            for best in _best_maxima(scan, n_rotations):
                if best < 0:
                    continue
                phi = 2.0 * math.pi * best / n_steps
                basis = bases[place]
                second = local[1, 0] * frame[0] + local[1, 1] * (math.cos(phi) * frame[1] + math.sin(phi) * frame[2])
                refine_vector(second, q, weight, math.sqrt((reference[1] ** 2).sum()), stiffness[1], 3)
                turned = _frame_about(axis, second)
                third = local[2] @ turned
                refine_vector(third, q, weight, math.sqrt((reference[2] ** 2).sum()), stiffness[2], 3)
                basis[0], basis[1], basis[2] = axis, second, third
                fit_lattice(basis, reference, q, weight, tolerances, shape_sigma)
                scores[place] = score_lattice(basis, q, weight, tolerances[-1])
                place += 1
    return bases, scores


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
        d2 = 0.0
        for k in range(3):
            d2 += (q[i, k] - (inverse[k, 0] * h[0] + inverse[k, 1] * h[1] + inverse[k, 2] * h[2])) ** 2
        distance[i] = math.sqrt(d2)
    return hkl, fraction, distance

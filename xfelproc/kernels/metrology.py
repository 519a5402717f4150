"""Metrology: positions and ΔΨ of indexed spots, their derivatives, and normal equations of the panels without the crystals.

Every crystal has local parameters (a turn, and the amplitudes of its cell's free strains); groups of panels have six each, in
their own axes (translation in mm, rotation vector in radians about their centre). The residuals are observed minus predicted
along fast and slow (px), and -ΔΨ (radians). Reduced equations: S = C - Bᵀ A⁻¹ B (Blobel 2006, NIM A 566, 5).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.geometry import mean_path

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

N_STATISTICS = 12
"""Columns of the sums a panel: spots, used, Σ of fast, slow, fast², slow², radial, tangential, radial², tangential², ΔΨ, ΔΨ²."""
N_BINS = 256
"""Bins of the histograms of normalised residuals."""
BINS_AN_OCTAVE = 16.0
FIRST_OCTAVE = -6.0
"""Lower end of the histograms, log2."""
N_TOTALS = 12
"""Sums a half-set: see `add_crystals`."""
_MOST_CYCLES = 12
_SMALL_DECREASE = 1e-3  # of half the weighted sum of squares, at which the local parameters are at their optimum
_TURN_RIDGE = 1.0  # 1/radian²: keeps the turn of a crystal of two spots finite


@njit(cache=True, nogil=True)
def onto_sphere(q: Floats, beam: Floats, radius: float, turn: bool, ray: Floats) -> float:
    """Write where the reflection of lattice point ``q`` goes, and how that changes with q; return ΔΨ (radians; NaN: nowhere).

    With ``turn`` the point is turned on the sphere about q × s0, at its |q|: the blocks of the crystal are turned (mosaic spread);
    else it is met along s0 + q: the point is extended (small domains). ``beam`` is the unit vector of travel.

    ``ray`` (15): unit vector u of the ray (0-2), e (3-5), tangent t (6-8), p (9-11), du = t (p·dq) + κ e (e·dq); κ (12); and the
    coefficients of dΔΨ = (m0 c + m1 beam)·dq + m2 q·dq with c the direction of q across the beam: written out as vector by
    `psi_gradient` from (13) |q across| and (14) q along.
    """
    along = q[0] * beam[0] + q[1] * beam[1] + q[2] * beam[2]
    square = q[0] * q[0] + q[1] * q[1] + q[2] * q[2]
    cx, cy, cz = q[0] - along * beam[0], q[1] - along * beam[1], q[2] - along * beam[2]
    across = math.sqrt(cx * cx + cy * cy + cz * cz)
    a = 0.5 * square / radius
    b2 = square - a * a
    if across <= 0.0 or b2 <= 0.0:
        return math.nan
    b = math.sqrt(b2)
    cx /= across
    cy /= across
    cz /= across
    ray[3] = beam[1] * cz - beam[2] * cy
    ray[4] = beam[2] * cx - beam[0] * cz
    ray[5] = beam[0] * cy - beam[1] * cx
    if turn:
        forward, side = (radius - a) / radius, b / radius
        slope = (radius - a) / (radius * b)
        ray[6] = (slope * cx - beam[0] / radius) / radius
        ray[7] = (slope * cy - beam[1] / radius) / radius
        ray[8] = (slope * cz - beam[2] / radius) / radius
        ray[9], ray[10], ray[11] = q[0], q[1], q[2]
        ray[12] = side / across
    else:
        norm = math.sqrt((radius + along) ** 2 + across * across)
        forward, side = (radius + along) / norm, across / norm
        ray[9] = (forward * cx - side * beam[0]) / norm
        ray[10] = (forward * cy - side * beam[1]) / norm
        ray[11] = (forward * cz - side * beam[2]) / norm
        ray[6], ray[7], ray[8] = ray[9] * norm, ray[10] * norm, ray[11] * norm
        ray[12] = 1.0 / norm
    ray[0] = forward * beam[0] + side * cx
    ray[1] = forward * beam[1] + side * cy
    ray[2] = forward * beam[2] + side * cz
    ray[13], ray[14] = across, along
    return math.atan2(across, -along) - math.atan2(b, a)


@njit(cache=True, nogil=True)
def psi_gradient(q: Floats, beam: Floats, radius: float, ray: Floats, out: Floats) -> None:
    """Write dΔΨ/dq (3) of the point that `onto_sphere` was given."""
    across, along = ray[13], ray[14]
    square = across * across + along * along
    a = 0.5 * square / radius
    b = math.sqrt(square - a * a)
    for r in range(3):
        c = (q[r] - along * beam[r]) / across
        out[r] = (-along * c + across * beam[r] + a / b * q[r]) / square


@njit(cache=True, nogil=True)
def onto_panel(g: Floats, ray: Floats, out: Floats) -> bool:
    """Write pixel coordinates of a ray on packed panel ``g`` and their derivatives; return whether it meets the panel's plane.

    ``out`` (20): fast, slow (0, 1), their derivatives with respect to the ray's unit vector (2-7), to the panel's translation along
    the laboratory's axes (8-13, px/mm) and to its turns about them at the point that is met (14-19, px/radian: parallax alone).
    """
    x, y, z = ray[0], ray[1], ray[2]
    along = g[6] * x + g[7] * y + g[8] * z
    if along * g[12] <= 0.0:
        return False
    scale = g[12] / along
    path, slope = mean_path(g[17], g[18], abs(along))
    if along < 0.0:
        slope = -slope
    for axis in range(2):
        f0, f1, f2 = g[3 * axis], g[3 * axis + 1], g[3 * axis + 2]
        f_u = f0 * x + f1 * y + f2 * z
        offset = f0 * g[9] + f1 * g[10] + f2 * g[11]
        pixel = 1.0 / g[13 + axis]
        out[axis] = (scale * f_u - offset + path * f_u) * pixel
        onto = (slope - scale / along) * f_u
        out[2 + 3 * axis] = ((scale + path) * f0 + onto * g[6]) * pixel
        out[3 + 3 * axis] = ((scale + path) * f1 + onto * g[7]) * pixel
        out[4 + 3 * axis] = ((scale + path) * f2 + onto * g[8]) * pixel
        slip = f_u / along
        out[8 + 3 * axis] = (slip * g[6] - f0) * pixel
        out[9 + 3 * axis] = (slip * g[7] - f1) * pixel
        out[10 + 3 * axis] = (slip * g[8] - f2) * pixel
        lean = slope * f_u * pixel
        path_px = path * pixel
        out[14 + 3 * axis] = path_px * (f1 * z - f2 * y) + lean * (g[7] * z - g[8] * y)
        out[15 + 3 * axis] = path_px * (f2 * x - f0 * z) + lean * (g[8] * x - g[6] * z)
        out[16 + 3 * axis] = path_px * (f0 * y - f1 * x) + lean * (g[6] * y - g[7] * x)
    return True


@njit(cache=True, nogil=True)
def local_rows(
    q: Floats,
    h: Ints,
    strain: Floats,
    n_strain: int,
    beam: Floats,
    radius: float,
    ray: Floats,
    spot: Floats,
    gradient: Floats,
    rows: Floats,
) -> None:
    """Write derivatives (3, 3 + strains) of fast, slow (px) and ΔΨ (radians) to the crystal's turn and strains."""
    psi_gradient(q, beam, radius, ray, gradient)
    k = ray[12]
    t0 = spot[2] * ray[6] + spot[3] * ray[7] + spot[4] * ray[8]
    t1 = spot[5] * ray[6] + spot[6] * ray[7] + spot[7] * ray[8]
    e0 = k * (spot[2] * ray[3] + spot[3] * ray[4] + spot[4] * ray[5])
    e1 = k * (spot[5] * ray[3] + spot[6] * ray[4] + spot[7] * ray[5])
    for j in range(3 + n_strain):
        if j == 0:
            x, y, z = 0.0, -q[2], q[1]
        elif j == 1:
            x, y, z = q[2], 0.0, -q[0]
        elif j == 2:
            x, y, z = -q[1], q[0], 0.0
        else:
            s = strain[j - 3]
            x = s[0, 0] * h[0] + s[0, 1] * h[1] + s[0, 2] * h[2]
            y = s[1, 0] * h[0] + s[1, 1] * h[1] + s[1, 2] * h[2]
            z = s[2, 0] * h[0] + s[2, 1] * h[1] + s[2, 2] * h[2]
        radial = ray[9] * x + ray[10] * y + ray[11] * z
        sideways = ray[3] * x + ray[4] * y + ray[5] * z
        rows[0, j] = t0 * radial + e0 * sideways
        rows[1, j] = t1 * radial + e1 * sideways
        rows[2, j] = gradient[0] * x + gradient[1] * y + gradient[2] * z


@njit(cache=True, nogil=True)
def group_rows(frame: Floats, g: Floats, ray: Floats, spot: Floats, rows: Floats, column: int) -> None:
    """Write derivatives of fast, slow to the six moves of the panel's group (``frame``: axes as rows 0-8, centre 9-11)."""
    scale = g[12] / (g[6] * ray[0] + g[7] * ray[1] + g[8] * ray[2])
    x, y, z = scale * ray[0] - frame[9], scale * ray[1] - frame[10], scale * ray[2] - frame[11]
    for axis in range(2):
        t0, t1, t2 = spot[8 + 3 * axis], spot[9 + 3 * axis], spot[10 + 3 * axis]
        r0 = y * t2 - z * t1 + spot[14 + 3 * axis]
        r1 = z * t0 - x * t2 + spot[15 + 3 * axis]
        r2 = x * t1 - y * t0 + spot[16 + 3 * axis]
        for i in range(3):
            f0, f1, f2 = frame[3 * i], frame[3 * i + 1], frame[3 * i + 2]
            rows[axis, column + i] = f0 * t0 + f1 * t1 + f2 * t2
            rows[axis, column + 3 + i] = f0 * r0 + f1 * r1 + f2 * r2


@njit(cache=True, nogil=True)
def robust(square: float, bound: float, kind: int) -> tuple[float, float]:
    """Return weight and loss (half the squared residual where it is small) of a squared normalised residual.

    ``kind`` 0: least squares; 1: Huber, linear beyond ``bound``; 2: Tukey's biweight, constant beyond ``bound``.
    """
    if kind == 2:
        t = square / (bound * bound)
        if t >= 1.0:
            return 0.0, bound * bound / 6.0
        return (1.0 - t) * (1.0 - t), 0.5 * square * (1.0 - t + t * t / 3.0)
    if kind == 1 and square > bound * bound:
        r = math.sqrt(square)
        return bound / r, bound * (r - 0.5 * bound)
    return 1.0, 0.5 * square


@njit(cache=True, nogil=True)
def influence_slope(square: float, bound: float, kind: int, dimensions: float) -> float:
    """Return the mean derivative of weight times residual, a component, of a residual of 1 or 2 ``dimensions``."""
    weight, _ = robust(square, bound, kind)
    if kind == 2:
        t = min(1.0, square / (bound * bound))
        return weight - 4.0 * t * (1.0 - t) / dimensions
    if kind == 1 and square > bound * bound:
        return weight * (1.0 - 1.0 / dimensions)
    return weight


@njit(cache=True, nogil=True)
def bin_of(value: float) -> int:
    """Return the bin of a normalised residual: ``BINS_AN_OCTAVE`` to each factor of 2, the outer ones hold all beyond."""
    if not value > 0.0:
        return 0
    place = (math.log2(value) - FIRST_OCTAVE) * BINS_AN_OCTAVE
    return int(min(N_BINS - 1.0, max(0.0, place)))


@njit(cache=True, nogil=True)
def _strains(a: Floats, basis: Floats, n: int, out: Floats) -> None:
    """Write ½ A⁻ᵀ E for ``n`` directions E of the reciprocal metric: the changes of A that keep the symmetry."""
    inverse = np.linalg.inv(a)
    for j in range(n):
        for r in range(3):
            for c in range(3):
                total = 0.0
                for m in range(3):
                    total += inverse[m, r] * basis[j, m, c]
                out[j, r, c] = 0.5 * total


@njit(cache=True, nogil=True)
def _symmetrize(a: Floats, basis: Floats, n: int) -> Floats:
    """Return A strained, not turned, until its metric is one of ``n`` directions ``basis``: A += ½ A⁻ᵀ ΔG*."""
    out = a.copy()
    for _ in range(4):
        metric = out.T @ out
        change = -metric
        for j in range(n):
            change += np.sum(metric * basis[j]) * basis[j]
        out += 0.5 * (np.linalg.inv(out).T @ change)
    return out


@njit(cache=True, nogil=True)
def _move_lattice(a: Floats, step: Floats, strain: Floats, n_strain: int) -> Floats:
    """Return A strained by amplitudes ``step[3:]`` and then turned by ``step[:3]`` (radians; Rodrigues)."""
    strained = a.copy()
    for j in range(n_strain):
        strained += step[3 + j] * strain[j]
    x, y, z = step[0], step[1], step[2]
    angle = math.sqrt(x * x + y * y + z * z)
    sine = math.sin(angle) / angle if angle > 1e-9 else 1.0
    versine = (1.0 - math.cos(angle)) / (angle * angle) if angle > 1e-4 else 0.5
    out = np.empty((3, 3))
    for c in range(3):
        u, v, w = strained[0, c], strained[1, c], strained[2, c]
        p, q, r = y * w - z * v, z * u - x * w, x * v - y * u
        out[0, c] = u + sine * p + versine * (y * r - z * q)
        out[1, c] = v + sine * q + versine * (z * p - x * r)
        out[2, c] = w + sine * r + versine * (x * q - y * p)
    return out


@njit(cache=True, nogil=True)
def _cell_weight(metric: Floats, basis: Floats, n: int, sigma: float, out: Floats) -> None:
    """Write the weight (n, n) of the cell's restraint: relative standard deviation ``sigma`` of the strain ½ G*⁻¹ ΔG*."""
    inverse = np.linalg.inv(metric)
    for i in range(n):
        left = inverse @ basis[i]
        for j in range(n):
            product = left @ (inverse @ basis[j])
            out[i, j] = 0.25 * (product[0, 0] + product[1, 1] + product[2, 2]) / (sigma * sigma)


@njit(cache=True, nogil=True)
def _restrain(
    a: Floats, metric: Floats, basis: Floats, n: int, weight: Floats, normal: Floats, right: Floats, away: Floats
) -> float:
    """Add the restraint of the cell to the local equations; return its loss."""
    change = a.T @ a - metric
    for j in range(n):
        away[j] = np.sum(change * basis[j])
    loss = 0.0
    for i in range(n):
        pull = 0.0
        for j in range(n):
            normal[3 + i, 3 + j] += weight[i, j]
            pull += weight[i, j] * away[j]
        right[3 + i] -= pull
        loss += 0.5 * pull * away[i]
    for r in range(3):
        normal[r, r] += _TURN_RIDGE
    return loss


@njit(cache=True, nogil=True)
def _psi_of(
    a: Floats, hkl: Ints, first: int, last: int, beam: Floats, radius: float, ray: Floats, q: Floats, scratch: Floats
) -> float:
    """Return the σ (radians) of ΔΨ of a lattice as it is: from its median, for as many degrees of freedom as it has."""
    count = 0
    for i in range(first, last):
        for r in range(3):
            q[r] = a[r, 0] * hkl[i, 0] + a[r, 1] * hkl[i, 1] + a[r, 2] * hkl[i, 2]
        psi = onto_sphere(q, beam, radius, True, ray)
        if not math.isnan(psi):
            scratch[count] = abs(psi)
            count += 1
    if count == 0:
        return math.nan
    freedom = max(1.0, count - 2.0)  # two of the three turns bear on ΔΨ
    return 1.4826 * float(np.median(scratch[:count])) * math.sqrt(count / freedom)


@njit(cache=True, nogil=True)
def _evaluate(
    a: Floats,
    hkl: Ints,
    panel: Ints,
    observed: Floats,
    geometry: Floats,
    bounds: Floats,
    first: int,
    last: int,
    strain: Floats,
    n_strain: int,
    beam: Floats,
    radius: float,
    psi_sigma: float,
    settings: Floats,
    q: Floats,
    gradient: Floats,
    rays: Floats,
    spots: Floats,
    rows: Floats,
    residual: Floats,
    weights: Floats,
    normal: Floats,
    right: Floats,
) -> float:
    """Predict the spots of a lattice, write the local normal equations, and return the loss.

    ``weights`` (n, 5): of fast, slow (1/px²) and ΔΨ (1/radian²), then the squared normalised residuals of position and ΔΨ.
    """
    p = 3 + n_strain
    normal[:p, :p] = 0.0
    right[:p] = 0.0
    kind, floor2 = int(settings[1]), settings[2] * settings[2]
    loss = 0.0
    for i in range(first, last):
        n = i - first
        for r in range(3):
            q[r] = a[r, 0] * hkl[i, 0] + a[r, 1] * hkl[i, 1] + a[r, 2] * hkl[i, 2]
        psi = onto_sphere(q, beam, radius, settings[0] > 0.0, rays[n])
        bound = bounds[panel[i]]
        if math.isnan(psi) or not onto_panel(geometry[panel[i]], rays[n], spots[n]):
            weights[n, :3] = 0.0
            weights[n, 3] = weights[n, 4] = math.inf
            residual[n] = math.nan
            continue
        residual[n, 0] = observed[i, 0] - spots[n, 0]
        residual[n, 1] = observed[i, 1] - spots[n, 1]
        residual[n, 2] = -psi
        w0, w1 = 1.0 / (observed[i, 2] + floor2), 1.0 / (observed[i, 3] + floor2)
        square = residual[n, 0] ** 2 * w0 + residual[n, 1] ** 2 * w1
        weight, part = robust(square, bound, kind)
        loss += part
        square_psi = (psi / psi_sigma) ** 2
        weight_psi, part = robust(square_psi, bounds[-1], kind)
        loss += part
        weights[n, 0], weights[n, 1], weights[n, 2] = weight * w0, weight * w1, weight_psi / (psi_sigma * psi_sigma)
        weights[n, 3], weights[n, 4] = square, square_psi
        local_rows(q, hkl[i], strain, n_strain, beam, radius, rays[n], spots[n], gradient, rows[n])
        for j in range(p):
            j0, j1, j2 = weights[n, 0] * rows[n, 0, j], weights[n, 1] * rows[n, 1, j], weights[n, 2] * rows[n, 2, j]
            right[j] += j0 * residual[n, 0] + j1 * residual[n, 1] + j2 * residual[n, 2]
            for m in range(j + 1):
                normal[j, m] += j0 * rows[n, 0, m] + j1 * rows[n, 1, m] + j2 * rows[n, 2, m]
    for j in range(p):
        for m in range(j):
            normal[m, j] = normal[j, m]
    return loss


@njit(cache=True, nogil=True)
def _factor(matrix: Floats, n: int) -> bool:
    """Replace the lower triangle of a matrix by its Cholesky factor; return whether it is positive definite."""
    for i in range(n):
        for j in range(i + 1):
            total = matrix[i, j]
            for k in range(j):
                total -= matrix[i, k] * matrix[j, k]
            if i == j:
                if not total > 0.0:
                    return False
                matrix[i, i] = math.sqrt(total)
            else:
                matrix[i, j] = total / matrix[j, j]
    return True


@njit(cache=True, nogil=True)
def _forward(factor: Floats, vector: Floats, n: int) -> None:
    """Solve L x = b in place."""
    for i in range(n):
        for k in range(i):
            vector[i] -= factor[i, k] * vector[k]
        vector[i] /= factor[i, i]


@njit(cache=True, nogil=True)
def _backward(factor: Floats, vector: Floats, n: int) -> None:
    """Solve Lᵀ x = b in place."""
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            vector[i] -= factor[k, i] * vector[k]
        vector[i] /= factor[i, i]


@njit(cache=True, nogil=True)
def _gather_groups(panel: Ints, group: Ints, first: int, last: int, slot: Ints, touched: Ints) -> int:
    """Write the groups that hold spots, ascending, and the place of each in ``slot``; return how many."""
    count = 0
    for i in range(first, last):
        g = group[panel[i]]
        if g >= 0 and slot[g] < 0:
            slot[g] = 0
            touched[count] = g
            count += 1
    touched[:count].sort()
    for m in range(count):
        slot[touched[m]] = m
    return count


@njit(cache=True, nogil=True)
def _reduce(
    factor: Floats,
    right: Floats,
    p: int,
    coupling: Floats,
    own: Floats,
    pull: Floats,
    touched: Ints,
    count: int,
    line: Floats,
    normal: Floats,
    gradient: Floats,
) -> None:
    """Eliminate a crystal: add C - Wᵀ W, W = L⁻¹ B, to the packed lower triangle, and g - Wᵀ L⁻¹ b to the gradient.

    ``coupling`` (p, 6 count) is B and becomes W; ``own`` (count, 6, 6) are the diagonal blocks of C, ``pull`` (6 count) is g.
    """
    width = 6 * count
    for i in range(p):
        for k in range(i):
            f = factor[i, k]
            for c in range(width):
                coupling[i, c] -= f * coupling[k, c]
        f = 1.0 / factor[i, i]
        for c in range(width):
            coupling[i, c] *= f
    for m in range(count):
        for r in range(6):
            column, row = 6 * m + r, 6 * touched[m] + r
            total = pull[column]
            for k in range(p):
                total -= coupling[k, column] * right[k]
            gradient[row] += total
            end = 6 * (m + 1)
            _line(coupling, p, column, end, line)
            base = row * (row + 1) // 2
            for other in range(m):
                place = base + 6 * touched[other]
                for c in range(6):
                    normal[place + c] += line[6 * other + c]
            place = base + 6 * touched[m]
            for c in range(r + 1):
                normal[place + c] += line[6 * m + c] + own[m, r, c]


@njit(cache=True, nogil=True)
def _line(w: Floats, p: int, column: int, end: int, out: Floats) -> None:
    """Write -Σ w[k, column] w[k, :end] over the p rows, three at a time."""
    k = 0
    rest = p % 3
    if rest == 0:
        for c in range(end):
            out[c] = 0.0
    elif rest == 1:
        f0 = w[0, column]
        for c in range(end):
            out[c] = -f0 * w[0, c]
        k = 1
    else:
        f0, f1 = w[0, column], w[1, column]
        for c in range(end):
            out[c] = -(f0 * w[0, c] + f1 * w[1, c])
        k = 2
    while k < p:
        f0, f1, f2 = w[k, column], w[k + 1, column], w[k + 2, column]
        for c in range(end):
            out[c] -= f0 * w[k, c] + f1 * w[k + 1, c] + f2 * w[k + 2, c]
        k += 3


@njit(cache=True, nogil=True)
def _add_statistics(
    ray: Floats,
    spot: Floats,
    residual: Floats,
    weights: Floats,
    bound: float,
    sums: Floats,
    histogram: NDArray[np.int64],
    psi_histogram: NDArray[np.int64],
) -> None:
    """Add a spot to the sums of its panel and to the histograms."""
    sums[0] += 1.0
    histogram[bin_of(math.sqrt(weights[3]))] += 1
    psi_histogram[bin_of(math.sqrt(weights[4]))] += 1
    if not weights[3] < bound * bound:
        return
    u = spot[2] * ray[6] + spot[3] * ray[7] + spot[4] * ray[8]
    v = spot[5] * ray[6] + spot[6] * ray[7] + spot[7] * ray[8]
    norm = math.sqrt(u * u + v * v)
    radial = (u * residual[0] + v * residual[1]) / norm
    tangential = (u * residual[1] - v * residual[0]) / norm
    sums[1] += 1.0
    sums[2] += residual[0]
    sums[3] += residual[1]
    sums[4] += residual[0] * residual[0]
    sums[5] += residual[1] * residual[1]
    sums[6] += radial
    sums[7] += tangential
    sums[8] += radial * radial
    sums[9] += tangential * tangential
    sums[10] -= residual[2]
    sums[11] += residual[2] * residual[2]


@njit(cache=True, nogil=True)
def _add_totals(
    weights: Floats, bound: float, bound_psi: float, reference: float, reference_psi: float, kind: int, totals: Floats
) -> float:
    """Add a spot to the sums 2-7 and 10 of its half-set; return its reference loss."""
    square, square_psi = weights[3], weights[4]
    weight, _ = robust(square, bound, kind)
    totals[2] += weight * weight * square
    totals[3] += 2.0 * weight
    totals[4] += 2.0 * influence_slope(square, bound, kind, 2.0)
    weight, _ = robust(square_psi, bound_psi, kind)
    totals[5] += weight * weight * square_psi
    totals[6] += weight
    totals[7] += influence_slope(square_psi, bound_psi, kind, 1.0)
    totals[10] += 1.0
    return robust(square, reference, kind)[1] + robust(square_psi, reference_psi, kind)[1]


@njit(cache=True, nogil=True)
def add_crystals(
    lattices: Floats,
    bases: Floats,
    n_bases: Ints,
    symmetry: Ints,
    wavelengths: Floats,
    halves: Ints,
    starts: NDArray[np.int64],
    hkl: Ints,
    panel: Ints,
    observed: Floats,
    geometry: Floats,
    bounds: Floats,
    reference: Floats,
    group: Ints,
    frames: Floats,
    beam: Floats,
    settings: Floats,
    normal: Floats,
    gradient: Floats,
    totals: Floats,
    statistics: Floats,
    histogram: NDArray[np.int64],
    psi_histogram: NDArray[np.int64],
    refined: Floats,
    residuals: Floats,
) -> None:
    """Bring each lattice to its optimum for the detector given, and add it, eliminated, to the normal equations of its half-set.

    Parameters
    ----------
    lattices, symmetry, wavelengths, halves
        A (n, 3, 3) in 1/Å, row of ``bases`` (s, 6, 3, 3; ``n_bases`` of the 6 used), Å, half-set.
    starts
        (n + 1) bounds of the crystals in the spots.
    hkl, panel, observed
        Spots: index (m, 3), panel, and fast, slow (px), their variances (px²) as (m, 4).
    geometry, bounds, reference, group, frames
        Packed panels; bounds of the normalised residual on each panel, and those of the reference loss (that of ΔΨ comes
        last); group (-1: none) of each panel; axes and centre of each group (g, 12).
    settings
        turn (1) or point (0); kind of `robust`; σ floor (px); σ of ΔΨ (radians; 0: each crystal's own) and its floor; σ of the
        cell (relative); spots a crystal needs; common σ of ΔΨ (radians), and how many spots it counts for.
    normal, gradient, totals
        (2, packed lower triangle), (2, 6 g), (2, 12): loss and reference loss, with the restraints; then, over the residuals of
        positions (two a spot), Σ of weight² residual², of weights and of `influence_slope`, the same of ΔΨ (5-7); local parameters,
        crystals, spots, crystals left out.
    statistics, histogram, psi_histogram
        (panel, 12), (panel, bins), (bins).
    refined, residuals
        Written: A (n, 3, 3) and fast, slow (px), ΔΨ (radians) observed - predicted (m, 3); NaN where a crystal is left out.

    Longer than the house's 60 lines by its parameters and scratch, which the steps share.
    """
    most = 1
    for c in range(lattices.shape[0]):
        most = max(most, starts[c + 1] - starts[c])
    n_groups = frames.shape[0]
    q, slope, away = np.empty(3), np.empty(3), np.empty(6)
    rays, spots, rows = np.empty((most, 15)), np.empty((most, 20)), np.empty((most, 3, 9))
    residual, weights, scratch = np.empty((most, 3)), np.empty((most, 5)), np.empty(most)
    local, right, step, kept = np.empty((9, 9)), np.empty(9), np.empty(9), np.empty((9, 9))
    strain, cell_weight = np.empty((6, 3, 3)), np.empty((6, 6))
    slot, touched = np.full(n_groups, -1, dtype=np.int32), np.empty(n_groups, dtype=np.int32)
    widest = 6 * min(n_groups, most)
    coupling, own, pull, line = np.empty((9, widest)), np.empty((widest // 6, 6, 6)), np.empty(widest), np.empty(widest)
    moves = np.empty((2, 6))
    kind = int(settings[1])
    for c in range(lattices.shape[0]):
        first, last, half = starts[c], starts[c + 1], halves[c]
        basis, n_strain, radius = bases[symmetry[c]], n_bases[symmetry[c]], 1.0 / wavelengths[c]
        p = 3 + n_strain
        residuals[first:last] = math.nan
        refined[c] = lattices[c]
        a = _symmetrize(lattices[c], basis, n_strain)
        psi_sigma = settings[3]
        if psi_sigma <= 0.0:
            psi_sigma = _psi_of(a, hkl, first, last, beam, radius, rays[0], q, scratch)
            count = settings[8]
            psi_sigma = math.sqrt(((last - first) * psi_sigma**2 + count * settings[7] ** 2) / (last - first + count))
            psi_sigma = max(psi_sigma, settings[4])
        if last - first < settings[6] or not psi_sigma > 0.0:
            totals[half, 11] += 1.0
            continue
        metric = a.T @ a
        _cell_weight(metric, basis, n_strain, settings[5], cell_weight)
        best, held, good = math.inf, 0.0, False
        kept_a = a
        for cycle in range(_MOST_CYCLES + 1):
            _strains(a, basis, n_strain, strain)
            loss = _evaluate(
                a,
                hkl,
                panel,
                observed,
                geometry,
                bounds,
                first,
                last,
                strain,
                n_strain,
                beam,
                radius,
                psi_sigma,
                settings,
                q,
                slope,
                rays,
                spots,
                rows,
                residual,
                weights,
                local,
                right,
            )
            restraint = _restrain(a, metric, basis, n_strain, cell_weight, local, right, away)
            loss += restraint
            if not loss <= best + _SMALL_DECREASE and cycle < _MOST_CYCLES:
                # a worse place: half the step from the best
                step[:p] *= 0.5
                _strains(kept_a, basis, n_strain, strain)
                a = _move_lattice(kept_a, step, strain, n_strain)
                continue
            best, held, kept_a = loss, restraint, a
            kept[:p, :p] = local[:p, :p]
            step[:p] = right[:p]
            good = _factor(kept, p)
            if not good:
                break
            _forward(kept, step, p)
            decrease = 0.0
            for j in range(p):
                decrease += 0.5 * step[j] * step[j]
            if decrease < _SMALL_DECREASE or cycle == _MOST_CYCLES:
                break
            _backward(kept, step, p)
            a = _move_lattice(a, step, strain, n_strain)
        if not good:
            totals[half, 11] += 1.0
            continue
        refined[c] = a
        count = _gather_groups(panel, group, first, last, slot, touched)
        coupling[:p, : 6 * count] = 0.0
        own[:count] = 0.0
        pull[: 6 * count] = 0.0
        for i in range(first, last):
            n = i - first
            residuals[i] = residual[n]
            if not math.isfinite(weights[n, 3]):
                statistics[panel[i], 0] += 1.0
                continue
            _add_statistics(
                rays[n],
                spots[n],
                residual[n],
                weights[n],
                bounds[panel[i]],
                statistics[panel[i]],
                histogram[panel[i]],
                psi_histogram,
            )
            held += _add_totals(weights[n], bounds[panel[i]], bounds[-1], reference[panel[i]], reference[-1], kind, totals[half])
            w0, w1 = weights[n, 0], weights[n, 1]
            g = group[panel[i]]
            if g < 0 or w0 == 0.0:
                continue
            m = slot[g]
            group_rows(frames[g], geometry[panel[i]], rays[n], spots[n], moves, 0)
            for r in range(6):
                j0, j1 = w0 * moves[0, r], w1 * moves[1, r]
                pull[6 * m + r] += j0 * residual[n, 0] + j1 * residual[n, 1]
                for s in range(r + 1):
                    own[m, r, s] += j0 * moves[0, s] + j1 * moves[1, s]
                for k in range(p):
                    coupling[k, 6 * m + r] += j0 * rows[n, 0, k] + j1 * rows[n, 1, k]
        # `step` holds L⁻¹ b of the last evaluation
        _reduce(kept, step, p, coupling, own, pull, touched, count, line, normal[half], gradient[half])
        for m in range(count):
            slot[touched[m]] = -1
        totals[half, 0] += best
        totals[half, 1] += held
        totals[half, 8] += p
        totals[half, 9] += 1.0

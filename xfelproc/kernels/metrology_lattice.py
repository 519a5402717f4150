"""Metrology: the local parameters of one lattice (a turn, and the amplitudes of its cell's free strains) and their equations."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.metrology_arrays import Model, Scratch, Spots
from xfelproc.kernels.metrology_rows import local_rows, onto_panel, onto_sphere
from xfelproc.kernels.robust import influence_slope, robust
from xfelproc.kernels.small_matrices import cholesky, invert3, solve_lower, solve_upper

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

SMALL_DECREASE = 1e-4
"""Of the loss, promised by the next step, at which a lattice is at its optimum."""
_START_DECREASE = 1e-2  # the same of the loss that finds the start
_MOST_CYCLES = 24
_START_BOUND = 0.15  # part of the bounds beyond which the start's loss is linear: nearly least absolute deviations
_TURN_RIDGE = 1.0  # 1/radian²: keeps the turn of a crystal of two spots finite
_MOST_RELAXATION = 1.8  # a majoriser's step may be made up to twice as long


@njit(cache=True, nogil=True)
def copy_matrix(a: Floats, out: Floats) -> None:
    """Copy a 3 x 3 matrix. Assignments of arrays take long to compile, for the words of their errors."""
    for r in range(3):
        for c in range(3):
            out[r, c] = a[r, c]


@njit(cache=True, nogil=True)
def metric_of(a: Floats, out: Floats) -> None:
    """Write AᵀA."""
    for r in range(3):
        for c in range(3):
            out[r, c] = a[0, r] * a[0, c] + a[1, r] * a[1, c] + a[2, r] * a[2, c]


@njit(cache=True, nogil=True)
def along_basis(change: Floats, direction: Floats) -> float:
    """Return how much of a direction is in a change of the metric: the sum of the elements' products."""
    total = 0.0
    for r in range(3):
        for c in range(3):
            total += change[r, c] * direction[r, c]
    return total


@njit(cache=True, nogil=True)
def strains_of(a: Floats, basis: Floats, n: int, out: Floats) -> None:
    """Write ½ A⁻ᵀ E for ``n`` directions E of the reciprocal metric: the changes of A that keep the symmetry."""
    inverse = np.empty((3, 3))
    invert3(a, inverse)
    for j in range(n):
        for r in range(3):
            for c in range(3):
                total = 0.0
                for m in range(3):
                    total += inverse[m, r] * basis[j, m, c]
                out[j, r, c] = 0.5 * total


@njit(cache=True, nogil=True)
def symmetrize(a: Floats, basis: Floats, n: int) -> Floats:
    """Return A strained, not turned, until its metric is one of ``n`` directions ``basis``: A += ½ A⁻ᵀ ΔG*."""
    out = np.empty((3, 3))
    copy_matrix(a, out)
    metric, change, inverse = np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3))
    for _ in range(4):
        metric_of(out, metric)
        for r in range(3):
            for c in range(3):
                change[r, c] = -metric[r, c]
        for j in range(n):
            amount = along_basis(metric, basis[j])
            for r in range(3):
                for c in range(3):
                    change[r, c] += amount * basis[j, r, c]
        invert3(out, inverse)
        for r in range(3):
            for c in range(3):
                out[r, c] += 0.5 * (inverse[0, r] * change[0, c] + inverse[1, r] * change[1, c] + inverse[2, r] * change[2, c])
    return out


@njit(cache=True, nogil=True)
def move_lattice(a: Floats, step: Floats, strain: Floats, n_strain: int) -> Floats:
    """Return A strained by amplitudes ``step[3:]`` and then turned by ``step[:3]`` (radians; Rodrigues)."""
    strained = np.empty((3, 3))
    copy_matrix(a, strained)
    for j in range(n_strain):
        for r in range(3):
            for c in range(3):
                strained[r, c] += step[3 + j] * strain[j, r, c]
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
def cell_weight(a: Floats, basis: Floats, n: int, sigma: float, out: Floats) -> None:
    """Write the weight (n, n) of the cell's restraint: relative standard deviation ``sigma`` of the strain ½ G*⁻¹ ΔG*."""
    metric, inverse = np.empty((3, 3)), np.empty((3, 3))
    metric_of(a, metric)
    invert3(metric, inverse)
    strains = np.zeros((6, 3, 3))
    for j in range(n):
        for r in range(3):
            for c in range(3):
                for m in range(3):
                    strains[j, r, c] += inverse[r, m] * basis[j, m, c]
    for i in range(n):
        for j in range(n):
            trace = 0.0
            for r in range(3):
                for c in range(3):
                    trace += strains[i, r, c] * strains[j, c, r]
            out[i, j] = 0.25 * trace / (sigma * sigma)


@njit(cache=True, nogil=True)
def restrain(
    a: Floats, metric: Floats, basis: Floats, n: int, weight: Floats, normal: Floats, right: Floats, away: Floats
) -> float:
    """Add the restraint of the cell to the local equations; return its loss."""
    change = np.empty((3, 3))
    metric_of(a, change)
    for r in range(3):
        for c in range(3):
            change[r, c] -= metric[r, c]
    for j in range(n):
        away[j] = along_basis(change, basis[j])
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
def median_of(values: Floats, n: int) -> float:
    """Return the median of ``values[:n]``, which are sorted (Shell 1959)."""
    gap = n // 2
    while gap > 0:
        for i in range(gap, n):
            value, j = values[i], i
            while j >= gap and values[j - gap] > value:
                values[j] = values[j - gap]
                j -= gap
            values[j] = value
        gap //= 2
    return 0.5 * float(values[(n - 1) // 2] + values[n // 2])


@njit(cache=True, nogil=True)
def psi_spread(
    a: Floats, hkl: Ints, first: int, last: int, beam: Floats, radius: float, ray: Floats, q: Floats, values: Floats
) -> float:
    """Return the σ (radians) of ΔΨ of a lattice as it is: from its median, for as many degrees of freedom as it has."""
    count = int(first - first)  # a bare 0 would compile what it is given to twice
    for i in range(first, last):
        for r in range(3):
            q[r] = a[r, 0] * hkl[i, 0] + a[r, 1] * hkl[i, 1] + a[r, 2] * hkl[i, 2]
        psi = onto_sphere(q, beam, radius, 0.0, ray)
        if not math.isnan(psi):
            values[count] = abs(psi)
            count += 1
    if count == 0:
        return math.nan
    freedom = max(1.0, count - 2.0)  # two of the three turns bear on ΔΨ
    return 1.4826 * median_of(values, count) * math.sqrt(count / freedom)


@njit(cache=True, nogil=True)
def evaluate(
    a: Floats,
    spots: Spots,
    first: int,
    last: int,
    n_strain: int,
    radius: float,
    psi_sigma: float,
    model: Model,
    scratch: Scratch,
    kind: int,
    part: float,
) -> tuple[float, float]:
    """Predict the spots of a lattice, write the local normal equations, and return the loss and the relaxation of the step.

    ``part`` of the bounds is used. The normal matrix has the weights, not the second derivatives of the loss: steps by it never
    raise the loss, but are too short by their ratio, which is the relaxation.

    The scratch's weights (n, 5) are of fast, slow (1/px²) and ΔΨ (1/radian²), then the squared normalised residuals of position
    and ΔΨ.
    """
    p, q, hkl, panel, bounds = 3 + n_strain, scratch.q, spots.hkl, spots.panel, model.bounds
    normal, right, weights, residual = scratch.local, scratch.right, scratch.weights, scratch.residual
    normal[:p, :p] = 0.0
    right[:p] = 0.0
    loss, total, slopes = 0.0, 1e-9, 1e-9
    for i in range(first, last):
        n = i - first
        for r in range(3):
            q[r] = a[r, 0] * hkl[i, 0] + a[r, 1] * hkl[i, 1] + a[r, 2] * hkl[i, 2]
        psi = onto_sphere(q, model.beam, radius, model.settings[0], scratch.rays[n])
        if math.isnan(psi) or not onto_panel(model.geometry[panel[i]], scratch.rays[n], scratch.places[n]):
            weights[n, :3] = 0.0
            weights[n, 3] = weights[n, 4] = math.inf
            residual[n] = math.nan
            continue
        residual[n, 0] = spots.observed[i, 0] - scratch.places[n, 0]
        residual[n, 1] = spots.observed[i, 1] - scratch.places[n, 1]
        residual[n, 2] = -psi
        bound, bound_psi = part * bounds[panel[i]], part * bounds[-1]
        loss += weigh(spots.observed[i], residual[n], psi_sigma, model.settings[2], bound, bound_psi, kind, weights[n])
        if kind > 0:
            square, square_psi = weights[n, 3], weights[n, 4]
            total += 2.0 * robust(square, bound, kind)[0] + robust(square_psi, bound_psi, kind)[0]
            slopes += 2.0 * influence_slope(square, bound, kind, 2.0) + influence_slope(square_psi, bound_psi, kind, 1.0)
        ray, place, rows = scratch.rays[n], scratch.places[n], scratch.rows[n]
        local_rows(q, hkl[i], scratch.strain, n_strain, model.beam, radius, ray, place, scratch.slope, rows)
        add_local(rows, residual[n], weights[n], p, normal, right)
    for j in range(p):
        for m in range(j):
            normal[m, j] = normal[j, m]
    return loss, total / max(slopes, total / _MOST_RELAXATION)


@njit(cache=True, nogil=True)
def weigh(
    observed: Floats,
    residual: Floats,
    psi_sigma: float,
    floor: float,
    bound: float,
    bound_psi: float,
    kind: int,
    weights: Floats,
) -> float:
    """Write the weights of a spot (see `evaluate`) and return its loss."""
    w0, w1 = 1.0 / (observed[2] + floor * floor), 1.0 / (observed[3] + floor * floor)
    square, square_psi = residual[0] ** 2 * w0 + residual[1] ** 2 * w1, (residual[2] / psi_sigma) ** 2
    weight, own = robust(square, bound, kind)
    weight_psi, own_psi = robust(square_psi, bound_psi, kind)
    weights[0], weights[1], weights[2] = weight * w0, weight * w1, weight_psi / (psi_sigma * psi_sigma)
    weights[3], weights[4] = square, square_psi
    return own + own_psi


@njit(cache=True, nogil=True)
def add_local(rows: Floats, residual: Floats, weights: Floats, p: int, normal: Floats, right: Floats) -> None:
    """Add a spot to the lower triangle of the local normal matrix, and to the right side."""
    for j in range(p):
        j0, j1, j2 = weights[0] * rows[0, j], weights[1] * rows[1, j], weights[2] * rows[2, j]
        right[j] += j0 * residual[0] + j1 * residual[1] + j2 * residual[2]
        for m in range(j + 1):
            normal[j, m] += j0 * rows[0, m] + j1 * rows[1, m] + j2 * rows[2, m]


@njit(cache=True, nogil=True)
def optimum(
    start: Floats,
    basis: Floats,
    n_strain: int,
    spots: Spots,
    first: int,
    last: int,
    radius: float,
    psi_sigma: float,
    model: Model,
    scratch: Scratch,
) -> tuple[Floats, float, float, bool]:
    """Return the lattice at its optimum, its loss, the part of the restraint in it, and whether there is one.

    Written are, at the optimum, all that `evaluate` writes, and in the scratch's factor and step the factor L of the local normal
    matrix and L⁻¹ b. A loss that redescends has many optima: the one found must not hang on where the lattice starts, or it changes
    abruptly as panels move. The start is the optimum of nearly the sum of the absolute residuals, of which there is one.
    """
    p, kind, step, strain = 3 + n_strain, int(model.settings[1]), scratch.step, scratch.strain
    metric = np.empty((3, 3))
    metric_of(start, metric)
    a, kept, best, held, good = start, start, math.inf, 0.0, False
    for stage in range(0 if kind == 2 else 1, 2):
        best = math.inf
        stage_kind, part, small = (1, _START_BOUND, _START_DECREASE) if stage == 0 else (kind, 1.0, SMALL_DECREASE)
        for cycle in range(_MOST_CYCLES + 1):
            strains_of(a, basis, n_strain, strain)
            loss, relaxation = evaluate(a, spots, first, last, n_strain, radius, psi_sigma, model, scratch, stage_kind, part)
            restraint = restrain(a, metric, basis, n_strain, scratch.cell, scratch.local, scratch.right, scratch.away)
            loss += restraint
            if not loss <= best + small and cycle < _MOST_CYCLES:
                # a worse place: half the step from the best
                for j in range(p):
                    step[j] *= 0.5
                strains_of(kept, basis, n_strain, strain)
                a = move_lattice(kept, step, strain, n_strain)
                continue
            best, held, kept = loss, restraint, a
            for j in range(p):
                step[j] = scratch.right[j]
                for m in range(p):
                    scratch.factor[j, m] = scratch.local[j, m]
            good = cholesky(scratch.factor, p)
            if not good:
                return kept, best, held, False
            solve_lower(scratch.factor, step, p)
            decrease = 0.0
            for j in range(p):
                decrease += 0.5 * relaxation * step[j] * step[j]
            if decrease < small or cycle == _MOST_CYCLES:
                break
            solve_upper(scratch.factor, step, p)
            for j in range(p):
                step[j] *= relaxation
            a = move_lattice(a, step, strain, n_strain)
    return kept, best, held, good

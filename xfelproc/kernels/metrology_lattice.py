"""Metrology: the local parameters of one lattice (a turn, and the amplitudes of its cell's free strains) and their equations."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.metrology_rows import local_rows, onto_panel, onto_sphere
from xfelproc.kernels.robust import influence_slope, robust
from xfelproc.kernels.small_matrices import cholesky, solve_lower, solve_upper

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
def strains_of(a: Floats, basis: Floats, n: int, out: Floats) -> None:
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
def symmetrize(a: Floats, basis: Floats, n: int) -> Floats:
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
def move_lattice(a: Floats, step: Floats, strain: Floats, n_strain: int) -> Floats:
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
def cell_weight(metric: Floats, basis: Floats, n: int, sigma: float, out: Floats) -> None:
    """Write the weight (n, n) of the cell's restraint: relative standard deviation ``sigma`` of the strain ½ G*⁻¹ ΔG*."""
    inverse = np.linalg.inv(metric)
    for i in range(n):
        left = inverse @ basis[i]
        for j in range(n):
            product = left @ (inverse @ basis[j])
            out[i, j] = 0.25 * (product[0, 0] + product[1, 1] + product[2, 2]) / (sigma * sigma)


@njit(cache=True, nogil=True)
def restrain(
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
def psi_spread(
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
def evaluate(
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
    kind: int,
    part: float,
) -> tuple[float, float]:
    """Predict the spots of a lattice, write the local normal equations, and return the loss and the relaxation of the step.

    ``part`` of the bounds is used. The normal matrix has the weights, not the second derivatives of the loss: steps by it never
    raise the loss, but are too short by their ratio, which is the relaxation.

    ``weights`` (n, 5): of fast, slow (1/px²) and ΔΨ (1/radian²), then the squared normalised residuals of position and ΔΨ.
    """
    p = 3 + n_strain
    normal[:p, :p] = 0.0
    right[:p] = 0.0
    floor2 = settings[2] * settings[2]
    loss, total, slopes = 0.0, 1e-9, 1e-9
    for i in range(first, last):
        n = i - first
        for r in range(3):
            q[r] = a[r, 0] * hkl[i, 0] + a[r, 1] * hkl[i, 1] + a[r, 2] * hkl[i, 2]
        psi = onto_sphere(q, beam, radius, settings[0] > 0.0, rays[n])
        bound, bound_psi = part * bounds[panel[i]], part * bounds[-1]
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
        weight, own = robust(square, bound, kind)
        square_psi = (psi / psi_sigma) ** 2
        weight_psi, own_psi = robust(square_psi, bound_psi, kind)
        loss += own + own_psi
        if kind > 0:
            total += 2.0 * weight + weight_psi
            slopes += 2.0 * influence_slope(square, bound, kind, 2.0) + influence_slope(square_psi, bound_psi, kind, 1.0)
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
    return loss, total / max(slopes, total / _MOST_RELAXATION)


@njit(cache=True, nogil=True)
def optimum(
    start: Floats,
    basis: Floats,
    n_strain: int,
    weight_of_cell: Floats,
    hkl: Ints,
    panel: Ints,
    observed: Floats,
    geometry: Floats,
    bounds: Floats,
    first: int,
    last: int,
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
    strain: Floats,
    factor: Floats,
    step: Floats,
) -> tuple[Floats, float, float, bool]:
    """Return the lattice at its optimum, its loss, the part of the restraint in it, and whether there is one.

    Written are, at the optimum, all that `evaluate` writes, the factor L of the local normal matrix and L⁻¹ b. A loss that
    redescends has many optima: the one found must not hang on where the lattice starts, or it changes abruptly as panels move.
    The start is the optimum of nearly the sum of the absolute residuals, of which there is one.
    """
    p, kind = 3 + n_strain, int(settings[1])
    local, right, away = np.empty((9, 9)), np.empty(9), np.empty(6)
    a, metric = start, start.T @ start
    kept, best, held, good = a, math.inf, 0.0, False
    for stage in range(0 if kind == 2 else 1, 2):
        best = math.inf
        stage_kind, part, small = (1, _START_BOUND, _START_DECREASE) if stage == 0 else (kind, 1.0, SMALL_DECREASE)
        for cycle in range(_MOST_CYCLES + 1):
            strains_of(a, basis, n_strain, strain)
            loss, relaxation = evaluate(
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
                gradient,
                rays,
                spots,
                rows,
                residual,
                weights,
                local,
                right,
                stage_kind,
                part,
            )
            restraint = restrain(a, metric, basis, n_strain, weight_of_cell, local, right, away)
            loss += restraint
            if not loss <= best + small and cycle < _MOST_CYCLES:
                # a worse place: half the step from the best
                step[:p] *= 0.5
                strains_of(kept, basis, n_strain, strain)
                a = move_lattice(kept, step, strain, n_strain)
                continue
            best, held, kept = loss, restraint, a
            factor[:p, :p] = local[:p, :p]
            step[:p] = right[:p]
            good = cholesky(factor, p)
            if not good:
                return kept, best, held, False
            solve_lower(factor, step, p)
            decrease = 0.0
            for j in range(p):
                decrease += 0.5 * relaxation * step[j] * step[j]
            if decrease < small or cycle == _MOST_CYCLES:
                break
            solve_upper(factor, step, p)
            step[:p] *= relaxation
            a = move_lattice(a, step, strain, n_strain)
    return kept, best, held, good

"""Metrology: normal equations of the panels, from which the crystals are eliminated.

Every crystal has local parameters (a turn, and the amplitudes of its cell's free strains); groups of panels have six each, in
their own axes (translation in mm, rotation vector in radians about their centre). The residuals are observed minus predicted
along fast and slow (px), and -ΔΨ (radians). Reduced equations: S = C - Bᵀ A⁻¹ B (Blobel 2006, NIM A 566, 5).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.metrology_arrays import Held, Lattices, Model, Scratch, Spots, Sums, held_for, most_spots, scratch_for
from xfelproc.kernels.metrology_lattice import cell_weight, copy_matrix, optimum, psi_spread, symmetrize
from xfelproc.kernels.metrology_normal import BATCH, add_products, eliminate, gather_groups
from xfelproc.kernels.metrology_rows import group_rows
from xfelproc.kernels.robust import bin_of, influence_slope, robust

Floats = NDArray[np.float64]

N_STATISTICS = 12
"""Columns of the sums a panel: spots, used, Σ of fast, slow, fast², slow², radial, tangential, radial², tangential², ΔΨ, ΔΨ²."""
N_TOTALS = 14
"""Sums a half-set: see `xfelproc.kernels.metrology_arrays.Sums`."""


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
def _add_blend(ray: Floats, spot: Floats, residual: Floats, weights: Floats, totals: Floats) -> None:
    """Add what a spot says of the blend: its residual's component along what the blend moves, and that squared, weighted."""
    fast = (spot[2] * ray[6] + spot[3] * ray[7] + spot[4] * ray[8]) * ray[16]
    slow = (spot[5] * ray[6] + spot[6] * ray[7] + spot[7] * ray[8]) * ray[16]
    totals[12] += weights[0] * fast * residual[0] + weights[1] * slow * residual[1]
    totals[13] += weights[0] * fast * fast + weights[1] * slow * slow


@njit(cache=True, nogil=True)
def _psi_sigma(
    a: Floats, spots: Spots, first: int, last: int, beam: Floats, radius: float, settings: Floats, scratch: Scratch
) -> float:
    """Return the σ of ΔΨ (radians) to count with: the one given, or the lattice's own, drawn to the common one."""
    if settings[3] > 0.0:
        return float(settings[3])
    own = psi_spread(a, spots.hkl, first, last, beam, radius, scratch.rays[0], scratch.q, scratch.values)
    count = settings[8]
    drawn = math.sqrt(((last - first) * own**2 + count * settings[7] ** 2) / (last - first + count))
    return max(drawn, float(settings[4]))


@njit(cache=True, nogil=True)
def _add_rows(row: Floats, w0: float, w1: float, rows: Floats, p: int, moves: Floats, m: int, held: Held, n_held: int) -> None:
    """Add a spot of residual ``row`` to the coupling, the own block and the pull of its group, the lattice's ``m``-th."""
    for r in range(6):
        j0, j1 = w0 * moves[0, r], w1 * moves[1, r]
        held.pull[6 * m + r] += j0 * row[0] + j1 * row[1]
        for s in range(r + 1):
            held.own[n_held, m, r, s] += j0 * moves[0, s] + j1 * moves[1, s]
        for k in range(p):
            held.coupling[n_held, k, 6 * m + r] += j0 * rows[0, k] + j1 * rows[1, k]


@njit(cache=True, nogil=True)
def _hold(
    spots: Spots, first: int, last: int, half: int, p: int, model: Model, scratch: Scratch, held: Held, n_held: int, sums: Sums
) -> float:
    """Add a lattice at its optimum to the sums, and hold its part of the normal matrix back; return the reference loss."""
    count = gather_groups(spots.panel, model.group, first, last, held.slot, held.touched[n_held])
    held.coupling[n_held, :p, : 6 * count] = 0.0
    held.own[n_held, :count] = 0.0
    held.pull[: 6 * count] = 0.0
    bounds, reference, kind, loss = model.bounds, model.reference, int(model.settings[1]), 0.0
    for i in range(first, last):
        n, panel = i - first, spots.panel[i]
        ray, place, residual, weights = scratch.rays[n], scratch.places[n], scratch.residual[n], scratch.weights[n]
        if not math.isfinite(weights[3]):
            sums.statistics[panel, 0] += 1.0
            continue
        _add_statistics(
            ray, place, residual, weights, bounds[panel], sums.statistics[panel], sums.histogram[panel], sums.psi_histogram
        )
        loss += _add_totals(weights, bounds[panel], bounds[-1], reference[panel], reference[-1], kind, sums.totals[half])
        group = model.group[panel]
        if weights[0] == 0.0:
            continue
        _add_blend(ray, place, residual, weights, sums.totals[half])
        if group >= 0:
            group_rows(model.frames[group], model.geometry[panel], ray, held.moves, 0)
            _add_rows(residual, weights[0], weights[1], scratch.rows[n], p, held.moves, held.slot[group], held, n_held)
    # the scratch's step holds L⁻¹ b of the optimum
    eliminate(scratch.factor, scratch.step, p, held.coupling[n_held], held.pull, held.touched[n_held], count, sums.gradient[half])
    for m in range(count):
        held.slot[held.touched[n_held, m]] = -1
    held.halves[n_held], held.counts[n_held], held.sizes[n_held] = half, count, p
    return loss


@njit(cache=True, nogil=True)
def _release(held: Held, n_held: int, n_groups: int, normal: Floats) -> None:
    """Add the lattices that are held back to the normal matrices."""
    add_products(held.coupling, held.own, held.touched, held.counts, held.sizes, held.halves, n_held, n_groups, held.line, normal)


@njit(cache=True, nogil=True)
def add_crystals(lattices: Lattices, spots: Spots, model: Model, sums: Sums, refined: Floats, residuals: Floats) -> None:
    """Bring each lattice to its optimum for the detector given, and add it, eliminated, to the normal equations of its half-set.

    ``refined`` and ``residuals`` are written: A (n, 3, 3) and fast, slow (px), ΔΨ (radians) observed - predicted (m, 3); NaN where
    a crystal is left out.
    """
    most, n_groups = most_spots(lattices.starts), model.frames.shape[0]
    n_held = int(most - most)  # a bare 0 would compile what it is given to twice, for its own type
    scratch, held = scratch_for(most), held_for(n_groups, most)
    for c in range(lattices.A.shape[0]):
        first, last, half = lattices.starts[c], lattices.starts[c + 1], lattices.halves[c]
        basis, n_strain = lattices.bases[lattices.symmetry[c]], lattices.n_bases[lattices.symmetry[c]]
        radius, totals = 1.0 / lattices.wavelengths[c], sums.totals[half]
        residuals[first:last] = math.nan
        copy_matrix(lattices.A[c], refined[c])
        a = symmetrize(lattices.A[c], basis, n_strain)
        psi_sigma = _psi_sigma(a, spots, first, last, model.beam, radius, model.settings, scratch)
        if last - first < model.settings[6] or not psi_sigma > 0.0:
            totals[11] += 1.0
            continue
        cell_weight(a, basis, n_strain, model.settings[5], scratch.cell)
        a, best, restraint, good = optimum(a, basis, n_strain, spots, first, last, radius, psi_sigma, model, scratch)
        if not good:
            totals[11] += 1.0
            continue
        copy_matrix(a, refined[c])
        for i in range(first, last):
            for r in range(3):
                residuals[i, r] = scratch.residual[i - first, r]
        loss = _hold(spots, first, last, half, 3 + n_strain, model, scratch, held, n_held, sums)
        n_held += 1
        if n_held == BATCH:
            _release(held, n_held, n_groups, sums.normal)
            n_held = 0
        totals[0] += best
        totals[1] += restraint + loss
        totals[8] += 3 + n_strain
        totals[9] += 1.0
    _release(held, n_held, n_groups, sums.normal)

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

from xfelproc.kernels.metrology_lattice import cell_weight, optimum, psi_spread, symmetrize
from xfelproc.kernels.metrology_normal import BATCH, add_products, eliminate, gather_groups
from xfelproc.kernels.metrology_rows import group_rows
from xfelproc.kernels.robust import bin_of, influence_slope, robust

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

N_STATISTICS = 12
"""Columns of the sums a panel: spots, used, Σ of fast, slow, fast², slow², radial, tangential, radial², tangential², ΔΨ, ΔΨ²."""
N_TOTALS = 12
"""Sums a half-set: see `add_crystals`."""


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
    q, slope = np.empty(3), np.empty(3)
    rays, spots, rows = np.empty((most, 15)), np.empty((most, 8)), np.empty((most, 3, 9))
    residual, weights, scratch = np.empty((most, 3)), np.empty((most, 5)), np.empty(most)
    step, kept = np.empty(9), np.empty((9, 9))
    strain, weight_of_cell = np.empty((6, 3, 3)), np.empty((6, 6))
    slot = np.full(n_groups, -1, dtype=np.int32)
    widest = 6 * min(n_groups, most)
    coupling, own, pull = np.empty((BATCH, 9, widest)), np.empty((BATCH, widest // 6, 6, 6)), np.empty(widest)
    among, line, moves = np.empty((BATCH, widest // 6), dtype=np.int32), np.empty(widest), np.empty((2, 6))
    counts, sizes, half_of = np.zeros(BATCH, dtype=np.int32), np.zeros(BATCH, dtype=np.int32), np.zeros(BATCH, dtype=np.int32)
    held_back = 0
    kind = int(settings[1])
    for c in range(lattices.shape[0]):
        first, last, half = starts[c], starts[c + 1], halves[c]
        basis, n_strain, radius = bases[symmetry[c]], n_bases[symmetry[c]], 1.0 / wavelengths[c]
        p = 3 + n_strain
        residuals[first:last] = math.nan
        refined[c] = lattices[c]
        a = symmetrize(lattices[c], basis, n_strain)
        psi_sigma = settings[3]
        if psi_sigma <= 0.0:
            psi_sigma = psi_spread(a, hkl, first, last, beam, radius, rays[0], q, scratch)
            count = settings[8]
            psi_sigma = math.sqrt(((last - first) * psi_sigma**2 + count * settings[7] ** 2) / (last - first + count))
            psi_sigma = max(psi_sigma, settings[4])
        if last - first < settings[6] or not psi_sigma > 0.0:
            totals[half, 11] += 1.0
            continue
        cell_weight(a.T @ a, basis, n_strain, settings[5], weight_of_cell)
        a, best, held, good = optimum(
            a,
            basis,
            n_strain,
            weight_of_cell,
            hkl,
            panel,
            observed,
            geometry,
            bounds,
            first,
            last,
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
            strain,
            kept,
            step,
        )
        if not good:
            totals[half, 11] += 1.0
            continue
        refined[c] = a
        count = gather_groups(panel, group, first, last, slot, among[held_back])
        coupling[held_back, :p, : 6 * count] = 0.0
        own[held_back, :count] = 0.0
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
            group_rows(frames[g], geometry[panel[i]], rays[n], moves, 0)
            for r in range(6):
                j0, j1 = w0 * moves[0, r], w1 * moves[1, r]
                pull[6 * m + r] += j0 * residual[n, 0] + j1 * residual[n, 1]
                for s in range(r + 1):
                    own[held_back, m, r, s] += j0 * moves[0, s] + j1 * moves[1, s]
                for k in range(p):
                    coupling[held_back, k, 6 * m + r] += j0 * rows[n, 0, k] + j1 * rows[n, 1, k]
        # `step` holds L⁻¹ b of the optimum
        eliminate(kept, step, p, coupling[held_back], pull, among[held_back], count, gradient[half])
        for m in range(count):
            slot[among[held_back, m]] = -1
        half_of[held_back], counts[held_back], sizes[held_back] = half, count, p
        held_back += 1
        if held_back == BATCH:
            add_products(coupling, own, among, counts, sizes, half_of, held_back, n_groups, line, normal)
            held_back = 0
        totals[half, 0] += best
        totals[half, 1] += held
        totals[half, 8] += p
        totals[half, 9] += 1.0
    add_products(coupling, own, among, counts, sizes, half_of, held_back, n_groups, line, normal)

"""Metrology: the arrays that its kernels share, by name."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.metrology_normal import BATCH

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Counts = NDArray[np.int64]


class Lattices(NamedTuple):
    """Lattices as they are given.

    ``A`` (n, 3, 3) in 1/Å; row of the ``bases`` (s, 6, 3, 3; ``n_bases`` of the 6 used); Å; half-set; (n + 1) bounds in the spots.
    """

    A: Floats
    bases: Floats
    n_bases: Ints
    symmetry: Ints
    wavelengths: Floats
    halves: Ints
    starts: Counts


class Spots(NamedTuple):
    """Indices (m, 3), panels (m), and fast, slow (px), their variances (px²) as (m, 4)."""

    hkl: Ints
    panel: Ints
    observed: Floats


class Model(NamedTuple):
    """The detector and what is made of residuals.

    Packed panels; bounds of the normalised residual on each panel, and those of the reference loss (that of ΔΨ comes last); group
    (-1: none) of each panel; axes and centre of each group (g, 12); unit vector of the beam's travel; and ``settings``: the blend
    of `xfelproc.kernels.metrology_rows.onto_sphere`; kind of `xfelproc.kernels.robust.robust`; σ floor (px); σ of ΔΨ (radians; 0:
    each crystal's own) and its floor; σ of the cell (relative); spots a crystal needs; common σ of ΔΨ (radians), and how many
    spots it counts for.
    """

    geometry: Floats
    bounds: Floats
    reference: Floats
    group: Ints
    frames: Floats
    beam: Floats
    settings: Floats


class Sums(NamedTuple):
    """What is added up: the halves' packed lower triangles (2, ...), gradients (2, 6 g) and totals (2, 14), (panel, 12) statistics,
    (panel, bins) and (bins) histograms of the residuals.

    Totals are loss and reference loss, with the restraints; then, over the residuals of positions (two a spot), Σ of weight²
    residual², of weights and of `xfelproc.kernels.robust.influence_slope`, the same of ΔΨ (5-7); local parameters, crystals, spots,
    crystals left out; and gradient and information (12, 13) of the blend.
    """

    normal: Floats
    gradient: Floats
    totals: Floats
    statistics: Floats
    histogram: Counts
    psi_histogram: Counts


class Scratch(NamedTuple):
    """Room for one lattice: its spots' rays, places, rows, residuals and weights, and its local equations."""

    q: Floats
    slope: Floats
    rays: Floats
    places: Floats
    rows: Floats
    residual: Floats
    weights: Floats
    values: Floats
    strain: Floats
    cell: Floats
    local: Floats
    right: Floats
    away: Floats
    factor: Floats
    step: Floats


class Held(NamedTuple):
    """Room for the lattices that are held back: see `xfelproc.kernels.metrology_normal`."""

    coupling: Floats
    own: Floats
    touched: Ints
    counts: Ints
    sizes: Ints
    halves: Ints
    pull: Floats
    line: Floats
    moves: Floats
    slot: Ints


@njit(cache=True, nogil=True)
def most_spots(starts: Counts) -> Any:
    """Return the spots of the largest lattice."""
    most = 1
    for c in range(len(starts) - 1):
        most = max(most, starts[c + 1] - starts[c])
    return most


@njit(cache=True, nogil=True)
def scratch_for(most: int) -> Scratch:
    """Return room for a lattice of at most so many spots."""
    return Scratch(
        np.empty(3),
        np.empty(3),
        np.empty((most, 17)),
        np.empty((most, 8)),
        np.empty((most, 3, 9)),
        np.empty((most, 3)),
        np.empty((most, 5)),
        np.empty(most),
        np.empty((6, 3, 3)),
        np.empty((6, 6)),
        np.empty((9, 9)),
        np.empty(9),
        np.empty(6),
        np.empty((9, 9)),
        np.empty(9),
    )


@njit(cache=True, nogil=True)
def held_for(n_groups: int, most: int) -> Held:
    """Return room for `BATCH` lattices of at most so many spots."""
    wide = min(n_groups, most)
    return Held(
        np.empty((BATCH, 9, 6 * wide)),
        np.empty((BATCH, wide, 6, 6)),
        np.empty((BATCH, wide), dtype=np.int32),
        np.zeros(BATCH, dtype=np.int32),
        np.zeros(BATCH, dtype=np.int32),
        np.zeros(BATCH, dtype=np.int32),
        np.empty(6 * wide),
        np.empty(6 * wide),
        np.empty((2, 6)),
        np.full(n_groups, -1, dtype=np.int32),
    )

"""Merging of observations that are scaled and have their errors: weighted means, and nothing is refined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.observed import ObservedStatistics, ReflectionSums
from xfelproc.algorithms.merging.reduction import inverse_d2, mix, possible_reflections
from xfelproc.algorithms.merging.statistics import GroupSums, shell_edges, shell_statistics
from xfelproc.algorithms.merging.symmetry_notes import extinct
from xfelproc.models.tables import MergedTable, ShellTable

Floats = NDArray[np.float64]


def halves_of_batches(batch: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the half-set (0 or 1) of each observation (n,) by a hash of its batch number."""
    return (mix(batch.astype(np.uint64)) & np.uint64(1)).astype(np.uint8)


def absent(sums: ReflectionSums, group: gemmi.SpaceGroup) -> NDArray[np.bool_]:
    """Return which reflections (g,) the space group extinguishes."""
    return extinct(sums.hkl, group) if len(sums.hkl) else np.zeros(0, dtype=bool)


def absence_words(sums: ReflectionSums, group: gemmi.SpaceGroup, dropped: bool) -> tuple[str, ...]:
    """Return what is to be said of reflections that the space group extinguishes."""
    gone = absent(sums, group)
    if not gone.any():
        return ()
    every = sums.column((0, 1, 2, 3))[gone]
    signal, count = float(np.mean(every[:, 3] / np.sqrt(every[:, 2]))), int(every[:, 0].sum())
    what = "left out" if dropped else "merged as they are, --no-absences leaves them out"
    return (f"{count} observations are of reflections that {group.xhm()} forbids (their mean I/σ is {signal:.1f}): {what}",)


def merged_observations(sums: ReflectionSums, cell: Sequence[float]) -> tuple[MergedTable, GroupSums]:
    """Return the weighted means of observations, their σ by the weights, and what the statistics want of them."""
    columns: dict[str, Any] = {"hkl": sums.hkl, "centric": sums.centric, "d": inverse_d2(sums.hkl, cell) ** -0.5}
    sets = {"": (0, 1, 2, 3), "_plus": (0, 1), "_minus": (2, 3)}
    for name, chosen in sets.items():
        value, sigma, count = _means(sums.column(chosen))
        number = f"n{name}" if name else "multiplicity"
        columns |= {f"intensity{name}": value, f"sigma{name}": sigma, number: count}
    for half in (0, 1):
        value, sigma, count = _means(sums.column((half, half + 2)))
        columns |= {f"half{half + 1}": value, f"sigma_half{half + 1}": sigma, f"n_half{half + 1}": count}
    quarters = [_means(sums.column((column,)))[0] for column in range(4)]
    every = sums.column((0, 1, 2, 3))
    nothing = np.full((len(sums.hkl), 2), np.nan)
    return MergedTable(None, **columns), GroupSums(
        residual=nothing[:, 0],
        total=nothing[:, 0],
        n_rejected=np.zeros(len(sums.hkl), dtype=np.int64),
        anomalous=np.stack([quarters[half] - quarters[2 + half] for half in (0, 1)], axis=1),
        chi2=np.maximum(every[:, 4] - columns["intensity"] * every[:, 3], 0.0),
        control=nothing,
    )


def _means(sums: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[:, 3] / sums[:, 2], np.where(sums[:, 0] > 0, 1.0 / np.sqrt(sums[:, 2]), np.nan), sums[:, 0].astype(np.int64)


def given_statistics(
    sums: ReflectionSums, cell: Sequence[float], group: gemmi.SpaceGroup, n_shells: int
) -> tuple[MergedTable, ObservedStatistics, ShellTable, ShellTable]:
    """Return merged reflections, the statistics over their observations, and tables of all statistics by shell and over all.

    The shells are of equal volume, from the lowest to the highest resolution of the data. What the space group extinguishes counts
    as possible where it is merged.
    """
    merged, more = merged_observations(sums, cell)
    inverse_d = np.sqrt(inverse_d2(sums.hkl, cell))
    d_min, d_max = 1.0 / inverse_d.max(), 1.0 / inverse_d.min()
    edges = shell_edges(d_min, max(d_max, 1.01 * d_min), n_shells)
    possible = possible_reflections(cell, group, (1.0 - 1e-6) * d_min, (1.0 + 1e-6) * d_max)
    every = np.concatenate([possible, sums.hkl[absent(sums, group)]])
    shells, overall = shell_statistics(merged, more, inverse_d2(every, cell) ** -0.5, edges)
    observed = ObservedStatistics(cell, edges)
    observed.add(sums)
    return merged, observed, *observed.added_to(shells, overall)

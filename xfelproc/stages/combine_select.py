"""Which lattices are combined: filters, then a subset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfelproc.io.nodes import Partial
from xfelproc.stages.combine_settings import Combine

SHELLS = 20


@dataclass(frozen=True)
class Selection:
    """Numbers of the lattices that are kept, ascending, and how many each filter left out, by its name."""

    kept: NDArray[np.int64]
    left_out: Mapping[str, int]
    cell: tuple[float, ...] | None
    """Consensus of the lattices: what the filter of cells compared with."""


def significant_resolution(d: NDArray[np.float64], i_over_sigma: NDArray[np.float64], cutoff: float) -> float:
    """Return the resolution (Å) to which the mean I/σ of shells of equal volume stays at ``cutoff`` or above; inf: nowhere."""
    if not len(d):
        return float("inf")
    volume = 1.0 / d.astype(np.float64) ** 3
    low, high = float(volume.min()), float(volume.max())
    shell = np.minimum(((volume - low) * (SHELLS / max(high - low, 1e-300))).astype(np.int64), SHELLS - 1)
    count, total = np.bincount(shell, minlength=SHELLS), np.bincount(shell, i_over_sigma, minlength=SHELLS)
    good = (count == 0) | (total >= cutoff * count)
    n_good = SHELLS if good.all() else int(np.argmin(good))
    return float((low + (high - low) * n_good / SHELLS) ** (-1.0 / 3.0)) if n_good else float("inf")


def consensus_cell(cells: NDArray[np.float64], groups: NDArray[np.uint32]) -> tuple[NDArray[np.float64], np.uint32]:
    """Return the median cell (6,) of the lattices of the most frequent space group, and that group's number."""
    names, counts = np.unique(groups, return_counts=True)
    group = names[int(np.argmax(counts))]
    return np.median(cells[groups == group], axis=0), group


def tukey_limit(values: NDArray[np.float64], factor: float) -> float:
    """Return the upper quartile and ``factor`` interquartile ranges more (Tukey 1977)."""
    lower, upper = np.percentile(values, [25.0, 75.0])
    return float(upper + factor * (upper - lower))


def select(facts: Partial, settings: Combine) -> Selection:
    """Return the lattices to combine.

    Parameters
    ----------
    facts
        One row a lattice: cell (n, 6), group, rmsd, n_reflections, resolution.
    settings
        Filters and subset.
    """
    number = facts["n_reflections"]
    passed = number >= settings.min_reflections
    left_out = {"too few reflections": int(np.count_nonzero(~passed))}
    if settings.max_reflections is not None:
        passed = _also(passed, number <= settings.max_reflections, left_out, "too many reflections")
    cell: tuple[float, ...] | None = None
    if passed.any() and not (settings.max_length_difference is None and settings.max_angle_difference is None):
        middle, group = consensus_cell(facts["cell"][passed], facts["group"][passed])
        cell = tuple(middle.tolist())
        passed = _also(passed, facts["group"] == group, left_out, "another space group")
        passed = _also(passed, _near(facts["cell"], middle, settings), left_out, "another cell")
    if passed.any() and settings.rmsd_iqr is not None:
        limit = tukey_limit(facts["rmsd"][passed], settings.rmsd_iqr)
        passed = _also(passed, facts["rmsd"] <= limit, left_out, "large RMSD")
    kept = np.flatnonzero(passed)
    if settings.n_subset is not None and len(kept) > settings.n_subset:
        left_out["not in the subset"] = len(kept) - settings.n_subset
        kept = np.sort(_subset(facts, kept, settings, settings.n_subset))
    return Selection(kept, {name: count for name, count in left_out.items() if count}, cell)


def _also(passed: NDArray[np.bool_], good: NDArray[np.bool_], left_out: dict[str, int], name: str) -> NDArray[np.bool_]:
    left_out[name] = int(np.count_nonzero(passed & ~good))
    return passed & good


def _near(cells: NDArray[np.float64], middle: NDArray[np.float64], settings: Combine) -> NDArray[np.bool_]:
    lengths = np.abs(cells[:, :3] / middle[:3] - 1.0).max(axis=1, initial=0.0)
    angles = np.abs(cells[:, 3:] - middle[3:]).max(axis=1, initial=0.0)
    near = np.ones(len(cells), dtype=bool)
    if settings.max_length_difference is not None:
        near &= lengths <= settings.max_length_difference
    if settings.max_angle_difference is not None:
        near &= angles <= settings.max_angle_difference
    return near


def _subset(facts: Partial, kept: NDArray[np.int64], settings: Combine, n: int) -> NDArray[np.int64]:
    if settings.subset == "random":
        return np.random.default_rng(settings.seed).permutation(kept)[:n]
    order = -facts["n_reflections"][kept] if settings.subset == "reflections" else facts["resolution"][kept]
    return kept[np.argsort(order, kind="stable")[:n]]

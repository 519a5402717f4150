"""The tables that merging yields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.lattice_scales import Columns, Means, correlation_sums, correlations, form_means
from xfelproc.algorithms.merging.observations import Observations
from xfelproc.algorithms.merging.outliers import spread_of_means
from xfelproc.algorithms.merging.reduction import Indices, free_flags, inverse_d2
from xfelproc.algorithms.merging.scaling import Masks, Partial, ScaleState, by_group
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.algorithms.merging.statistics import GroupSums
from xfelproc.kernels.merging import absolute_residuals, group_means
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.tables import MergedTable, ScaledLatticeTable, UnmergedTable

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Scaled:
    """A bucket at the end: outliers and lattices left out are inactive; ``spread`` (n_groups,) is on the variances of the means.

    ``observations`` are in the order of the columns, ``isym`` (n,) is theirs; ``unique`` (n_groups, 3) are the reflections.
    """

    columns: Columns
    means: Means
    spread: Floats
    observations: Observations
    isym: NDArray[np.int32]
    unique: Indices


def scaled_bucket(
    columns: Columns,
    masks: Masks,
    state: ScaleState,
    groups: slice,
    observations: Observations,
    isym: NDArray[np.int32],
    unique: Indices,
    settings: Merge,
) -> tuple[Scaled, Partial]:
    """Return a bucket under the final state, and the sums over its lattices (`add` joins those of buckets).

    Parameters
    ----------
    columns, masks, state, groups
        As for `scaling.run_pass`.
    observations, isym, unique
        See `Scaled`.
    settings
        Error terms.
    """
    active = columns.without(masks.active)
    means = form_means(active, state.scales, state.values[groups], settings)
    sums, pairs = correlation_sums(active, means, by_group(state.typical, columns, state))
    spread = spread_of_means(active, means, by_group(state.spread, columns, state))
    weights = np.bincount(active.lattice[active.active], minlength=active.n_lattices)
    return Scaled(active, means, spread, observations, isym, unique), {"sums": sums, "pairs": pairs, "weights": weights}


def _mean_of(scaled: Scaled, rows: Bools) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return mean (NaN: none), its standard deviation and the count of each group over some of its active rows."""
    columns, means = scaled.columns, scaled.means
    numerator, denominator, count = group_means(
        columns.starts, columns.intensity, means.variance, means.scale, columns.active & rows
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        sigma = np.where(count > 0, np.sqrt(scaled.spread / denominator), np.nan)
        return numerator / denominator, sigma, count


def merged_rows(scaled: Scaled, group: gemmi.SpaceGroup, settings: Merge) -> Partial:
    """Return the merged reflections of a bucket and the sums that the statistics want, by name, one row a reflection.

    `merged_table` makes tables of those of all buckets.
    """
    columns, means = scaled.columns, scaled.means
    everything = np.ones(len(columns.lattice), dtype=bool)
    centric = np.asarray(group.operations().centric_flag_array(scaled.unique), dtype=bool).reshape(-1)
    # a centric reflection is its own Friedel mate: all of it counts as I(+), as gemmi does
    plus = (scaled.isym % 2 == 1) | centric[columns.group]
    second = scaled.observations.half[columns.lattice] == 1
    value, sigma, count = _mean_of(scaled, everything)
    plus_value, plus_sigma, plus_count = _mean_of(scaled, plus)
    minus_value, minus_sigma, minus_count = _mean_of(scaled, ~plus)
    half1, sigma_half1, n_half1 = _mean_of(scaled, ~second)
    half2, sigma_half2, n_half2 = _mean_of(scaled, second)
    residual, total = absolute_residuals(columns.starts, columns.intensity, means.scale, columns.active, means.value)
    anomalous = np.full((len(count), 2), np.nan)
    if settings.anomalous:
        for i, rows in enumerate((~second, second)):
            anomalous[:, i] = _mean_of(scaled, rows & plus)[0] - _mean_of(scaled, rows & ~plus)[0]
    return {
        "hkl": scaled.unique,
        "intensity": value,
        "sigma": sigma,
        "multiplicity": count,
        "intensity_plus": plus_value,
        "sigma_plus": plus_sigma,
        "n_plus": plus_count,
        "intensity_minus": minus_value,
        "sigma_minus": minus_sigma,
        "n_minus": minus_count,
        "half1": half1,
        "half2": half2,
        "sigma_half1": sigma_half1,
        "sigma_half2": sigma_half2,
        "n_half1": n_half1,
        "n_half2": n_half2,
        "centric": centric,
        "residual": residual,
        "total": total,
        "n_rejected": np.diff(columns.starts) - count,
        "anomalous": anomalous,
    }


def merged_table(rows: Partial, cell: Sequence[float], group: gemmi.SpaceGroup, settings: Merge) -> tuple[MergedTable, GroupSums]:
    """Return merged reflections and the sums that the statistics want, from `merged_rows` of all buckets."""
    hkl = rows["hkl"]
    d = 1.0 / np.sqrt(np.maximum(inverse_d2(hkl, cell), 1e-300))
    shells = d if settings.free_choice == "thin_shells" else None
    known: dict[str, Any] = {c.name: rows[c.name] for c in MergedTable.SCHEMA if c.name in rows}
    table = MergedTable(None, **known, d=d, free=free_flags(hkl, group, settings.free_fraction, shells))
    keep = rows["multiplicity"] >= settings.min_multiplicity
    nothing = np.full(len(hkl), np.nan)
    # the buckets of `merged_rows` know neither χ² nor a control
    rows = {"chi2": nothing, "control": np.full((len(hkl), 2), np.nan)} | rows
    return table.select(keep), GroupSums(**{f.name: rows[f.name][keep] for f in fields(GroupSums)})


def unmerged_table(scaled: Scaled) -> UnmergedTable:
    """Return the observations of a bucket on the common scale, those left out flagged."""
    columns, means, observations = scaled.columns, scaled.means, scaled.observations
    outlier = np.where(columns.active, 0, int(ReflectionFlag.OUTLIER)).astype(np.uint16)
    return UnmergedTable(
        None,
        lattice=columns.lattice,
        hkl=observations.hkl,
        hkl_asu=scaled.unique[columns.group],
        isym=scaled.isym,
        panel=observations.panel,
        fast=observations.fast,
        slow=observations.slow,
        intensity=columns.intensity / means.scale,
        sigma=np.sqrt(means.variance) / means.scale,
        scale=means.full,
        partiality=columns.partiality,
        polarization=observations.polarization,
        excitation=observations.excitation,
        half=observations.half[columns.lattice],
        flags=observations.flags | outlier,
    )


def lattice_table(
    state: ScaleState, sums: Partial, offered: NDArray[np.int64], half: NDArray[np.uint8], widths: Floats
) -> ScaledLatticeTable:
    """Return what scaling found for each lattice.

    Parameters
    ----------
    state
        The final one.
    sums
        Of `scaled_bucket`, over all buckets.
    offered
        (n_lattices,) observations of each.
    half
        (n_lattices,) half-set of each.
    widths
        The two common widths.
    """
    n, merged = len(offered), sums["weights"]
    return ScaledLatticeTable(
        n,
        scale=state.scale,
        b_factor=state.b_factor,
        width=np.full(n, widths[0]),
        width_slope=np.full(n, widths[1]),
        n_observations=merged,
        n_rejected=offered - merged,
        correlation=correlations(sums["sums"], sums["pairs"]),
        half=half,
        used=state.used & (merged > 0),
    )

"""The tables that merging yields."""

from __future__ import annotations

from collections.abc import Sequence

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.observations import Observations
from xfelproc.algorithms.merging.partiality import Widths
from xfelproc.algorithms.merging.reduction import Reduced, free_flags, inverse_d2
from xfelproc.algorithms.merging.scaled import Scaled
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.algorithms.merging.statistics import GroupSums
from xfelproc.kernels.merging import absolute_residuals, group_means
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.tables import MergedTable, ScaledLatticeTable, UnmergedTable

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def _mean_of(scaled: Scaled, rows: Bools) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return mean (NaN: none), its standard deviation and the count of each group over some of its active rows."""
    columns, means = scaled.columns, scaled.means
    numerator, denominator, count = group_means(
        columns.starts, columns.intensity, means.variance, means.scale, columns.active & rows
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        sigma = np.where(count > 0, np.sqrt(scaled.spread / denominator), np.nan)
        return numerator / denominator, sigma, count


def merged_table(
    scaled: Scaled, observations: Observations, reduced: Reduced, cell: Sequence[float], group: gemmi.SpaceGroup, settings: Merge
) -> tuple[MergedTable, GroupSums]:
    """Return merged reflections and the sums that the statistics want."""
    columns, means = scaled.columns, scaled.means
    everything = np.ones(len(columns.lattice), dtype=bool)
    centric = np.asarray(group.operations().centric_flag_array(reduced.unique), dtype=bool).reshape(-1)
    # a centric reflection is its own Friedel mate: all of it counts as I(+), as gemmi does
    plus = (reduced.isym[reduced.order] % 2 == 1) | centric[columns.group]
    second = observations.half[columns.lattice] == 1
    value, sigma, count = _mean_of(scaled, everything)
    plus_value, plus_sigma, plus_count = _mean_of(scaled, plus)
    minus_value, minus_sigma, minus_count = _mean_of(scaled, ~plus)
    d = 1.0 / np.sqrt(np.maximum(inverse_d2(reduced.unique, cell), 1e-300))
    shells = d if settings.free_choice == "thin_shells" else None
    table = MergedTable(
        None,
        hkl=reduced.unique,
        d=d,
        intensity=value,
        sigma=sigma,
        multiplicity=count,
        intensity_plus=plus_value,
        sigma_plus=plus_sigma,
        n_plus=plus_count,
        intensity_minus=minus_value,
        sigma_minus=minus_sigma,
        n_minus=minus_count,
        half1=_mean_of(scaled, ~second)[0],
        half2=_mean_of(scaled, second)[0],
        centric=centric,
        free=free_flags(reduced.unique, group, settings.free_fraction, shells),
    )
    residual, total = absolute_residuals(columns.starts, columns.intensity, means.scale, columns.active, means.value)
    anomalous = np.full((len(count), 2), np.nan)
    if settings.anomalous:
        for i, rows in enumerate((~second, second)):
            anomalous[:, i] = _mean_of(scaled, rows & plus)[0] - _mean_of(scaled, rows & ~plus)[0]
    rejected = np.diff(reduced.starts) - count
    keep = count >= settings.min_multiplicity
    return table.select(keep), GroupSums(residual[keep], total[keep], rejected[keep], anomalous[keep])


def unmerged_table(scaled: Scaled, observations: Observations, reduced: Reduced) -> UnmergedTable:
    """Return all observations on the common scale, those left out flagged."""
    columns, means, order = scaled.columns, scaled.means, reduced.order
    outlier = np.where(columns.active, 0, int(ReflectionFlag.OUTLIER)).astype(np.uint16)
    return UnmergedTable(
        None,
        lattice=columns.lattice,
        hkl=observations.hkl[order],
        hkl_asu=reduced.unique[columns.group],
        isym=reduced.isym[order],
        panel=observations.panel[order],
        fast=observations.fast[order],
        slow=observations.slow[order],
        intensity=columns.intensity / means.scale,
        sigma=np.sqrt(means.variance) / means.scale,
        scale=means.full,
        partiality=columns.partiality,
        polarization=observations.polarization[order],
        excitation=observations.excitation[order],
        half=observations.half[columns.lattice],
        flags=observations.flags[order] | outlier,
    )


def lattice_table(scaled: Scaled, observations: Observations, widths: Widths) -> ScaledLatticeTable:
    """Return what scaling found for each lattice."""
    columns = scaled.columns
    merged = np.bincount(columns.lattice[columns.active], minlength=columns.n_lattices)
    offered = np.bincount(columns.lattice, minlength=columns.n_lattices)
    return ScaledLatticeTable(
        columns.n_lattices,
        scale=scaled.scales.scale,
        b_factor=scaled.scales.b_factor,
        width=widths.constant,
        width_slope=widths.slope,
        n_observations=merged,
        n_rejected=offered - merged,
        correlation=scaled.correlation,
        half=observations.half,
        used=scaled.used & (merged > 0),
    )

"""From observations of many lattices to merged intensities and their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gemmi import SpaceGroup
from numpy.typing import NDArray

from xfelproc.algorithms.merging.observations import Observations, concatenate
from xfelproc.algorithms.merging.partiality import Widths, fit_common_width
from xfelproc.algorithms.merging.reduction import find_space_group, inverse_d2, possible_reflections, reduce_indices
from xfelproc.algorithms.merging.scaled import Scaled, scale_observations
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.algorithms.merging.statistics import GroupSums, shell_edges, shell_statistics
from xfelproc.algorithms.merging.symmetry_notes import checked_cell, mtz_title, symmetry_warnings, without_absences
from xfelproc.algorithms.merging.tables import lattice_table, merged_table, unmerged_table
from xfelproc.models.tables import MergedTable, ScaledLatticeTable, ShellTable, UnmergedTable

Floats = NDArray[np.float64]

SMALLEST_PARTIALITY = 1e-6
"""Below it an observation says nothing, whatever the user asks for."""


@dataclass(frozen=True)
class MergeResult:
    """Merged intensities with all that report and files say about them."""

    merged: MergedTable
    unmerged: UnmergedTable
    lattices: ScaledLatticeTable
    shells: ShellTable
    overall: ShellTable
    cell: tuple[float, float, float, float, float, float]
    space_group: str
    proposal: bool
    """The space group is the lattice's holohedry, nobody's statement."""
    ambiguity: tuple[str, ...]
    """Operators of an indexing ambiguity that is not resolved."""
    warnings: tuple[str, ...]
    title: str
    """At most 70 characters, for the MTZ's title."""


def merge(
    parts: Sequence[Observations],
    cell: Sequence[float],
    space_group: str,
    settings: Merge,
    *,
    proposal: bool = False,
    ambiguity: Sequence[str] = (),
) -> MergeResult:
    """Return the merged observations of consecutive shards; see `merge_observations`."""
    return merge_observations(concatenate(parts), cell, space_group, settings, proposal=proposal, ambiguity=ambiguity)


def merge_observations(
    observations: Observations,
    cell: Sequence[float],
    space_group: str,
    settings: Merge,
    *,
    proposal: bool = False,
    ambiguity: Sequence[str] = (),
) -> MergeResult:
    """Scale and merge observations.

    Parameters
    ----------
    observations
        Of all lattices, from `prepare` and `concatenate`.
    cell
        Cell of the merged data, Å and degrees.
    space_group
        Hermann-Mauguin symbol; ``settings.space_group`` goes before it.
    settings
        Section ``[merge]``.
    proposal
        The space group is only the holohedry of the lattice.
    ambiguity
        Operators (as "k,h,-l") of an indexing ambiguity that was not resolved.

    Raises
    ------
    ConfigError
        If the space group or the cell is impossible, or an ambiguity's operator is empty.
    """
    group = find_space_group(settings.space_group or space_group)
    proposal = proposal and settings.space_group is None
    unit_cell = checked_cell(cell)
    observations, warnings = without_absences(observations, group)
    observations, partiality, widths = _with_partiality(observations, settings)
    reduced = reduce_indices(observations.hkl, group)
    scaled = scale_observations(observations, partiality, reduced, settings)
    merged, sums = merged_table(scaled, observations, reduced, unit_cell, group, settings)
    shells, overall = _statistics(merged, sums, observations, unit_cell, group, settings)
    return MergeResult(
        merged=merged,
        unmerged=unmerged_table(scaled, observations, reduced),
        lattices=lattice_table(scaled, observations, widths),
        shells=shells,
        overall=overall,
        cell=unit_cell,
        space_group=str(group.xhm()),
        proposal=proposal,
        ambiguity=tuple(ambiguity),
        warnings=tuple(symmetry_warnings(group, proposal, ambiguity) + warnings + _scaling_warnings(scaled, settings)),
        title=mtz_title(proposal, ambiguity),
    )


def _with_partiality(observations: Observations, settings: Merge) -> tuple[Observations, Floats, Widths]:
    """Return the observations that are full enough, their partialities, and the widths of the lattices."""
    gaussian = settings.partiality == "gaussian"
    constant, slope = fit_common_width(observations) if gaussian else (np.nan, np.nan)
    widths = Widths(np.full(observations.n_lattices, constant), np.full(observations.n_lattices, slope))
    if gaussian:
        partiality = widths.partiality(observations)
    elif settings.partiality == "model":
        partiality = observations.partiality
    else:
        partiality = np.ones(len(observations))
    keep = partiality >= max(settings.min_partiality, SMALLEST_PARTIALITY)
    return observations.select(keep), partiality[keep], widths


def _scaling_warnings(scaled: Scaled, settings: Merge) -> list[str]:
    words = []
    if not scaled.scales.converged:
        words.append(f"scaling did not converge in {settings.max_cycles} cycles: raise merge.max_cycles, or look at the scales")
    bad = int(np.count_nonzero(~scaled.used))
    if bad:
        words.append(f"{bad} lattices correlate to the others by less than {settings.min_lattice_cc}: left out")
    return words


def _statistics(
    merged: MergedTable, sums: GroupSums, observations: Observations, cell: Sequence[float], group: SpaceGroup, settings: Merge
) -> tuple[ShellTable, ShellTable]:
    d_min, d_max = settings.d_min or 1.0, settings.d_max or 100.0
    if len(observations):
        # a hair wider than the observations, so that rounding puts none of them outside
        d_min = settings.d_min or (1.0 - 1e-6) / np.sqrt(float(observations.inverse_d2.max()))
        d_max = settings.d_max or (1.0 + 1e-6) / np.sqrt(float(observations.inverse_d2.min()))
    possible = possible_reflections(cell, group, d_min, d_max)
    d = 1.0 / np.sqrt(inverse_d2(possible, cell))
    return shell_statistics(merged, sums, d, shell_edges(d_min, max(d_max, 1.01 * d_min), settings.n_shells))

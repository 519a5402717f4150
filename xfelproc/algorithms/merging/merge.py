"""From observations of many lattices to merged intensities and their statistics.

`merge_observations` has all observations in memory. A run's merging goes through the same steps with the observations in files:
a sample of them (`sample`), a part of the shards after the other (`part_of`), buckets of reflections (`scaling`, `tables`), and at
the end `result_of`, which has the size of the unique reflections and of the lattices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.lattice_scales import Columns
from xfelproc.algorithms.merging.observations import Observations, concatenate
from xfelproc.algorithms.merging.reduction import find_space_group, inverse_d2, possible_reflections, reduce_indices
from xfelproc.algorithms.merging.sample import Beginning, Sample, begin, priorities, starting_scales, with_partiality
from xfelproc.algorithms.merging.scaling import Partial, Phase, ScaleState, advance, initial_state, run_pass
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.algorithms.merging.statistics import GroupSums, shell_edges, shell_statistics
from xfelproc.algorithms.merging.symmetry_notes import Absences, checked_cell, mtz_title, symmetry_warnings, without_absences
from xfelproc.algorithms.merging.tables import lattice_table, merged_rows, merged_table, scaled_bucket, unmerged_table
from xfelproc.models.tables import MergedTable, ScaledLatticeTable, ShellTable, UnmergedTable

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MergeResult:
    """Merged intensities with all that report and files say about them."""

    merged: MergedTable
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
    unmerged: UnmergedTable


@dataclass(frozen=True)
class Symmetry:
    """The group to merge in, whether it is only proposed, and operators (as "k,h,-l") of an ambiguity that is not resolved."""

    group: gemmi.SpaceGroup
    proposal: bool = False
    ambiguity: tuple[str, ...] = ()

    @classmethod
    def chosen(cls, space_group: str, settings: Merge, proposal: bool = False, ambiguity: Sequence[str] = ()) -> Symmetry:
        """Return the symmetry where ``settings.space_group`` goes before a Hermann-Mauguin symbol.

        Raises
        ------
        ConfigError
            If there is no such group.
        """
        group = find_space_group(settings.space_group or space_group)
        return cls(group, proposal and settings.space_group is None, tuple(ambiguity))


@dataclass(frozen=True)
class Final:
    """Scaled data of a run, of the size of its unique reflections and its lattices.

    ``rows`` and ``sums`` are of all buckets (`tables.merged_rows`, `tables.scaled_bucket`); ``offered`` and ``half`` are
    (n_lattices,); ``limits`` are the extremes of 1/d² of the observations, None if there are none.
    """

    state: ScaleState
    rows: Partial
    sums: Partial
    offered: NDArray[np.int64]
    half: NDArray[np.uint8]
    limits: tuple[float, float] | None
    absences: Absences
    beginning: Beginning


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
    symmetry = Symmetry.chosen(space_group, settings, proposal, ambiguity)
    checked_cell(cell)
    final, unmerged = scale_in_memory(observations, priorities(0, observations.n_lattices), symmetry.group, settings)
    return result_of(final, cell, symmetry, settings, unmerged)


def scale_in_memory(
    observations: Observations, priority: NDArray[np.uint64], group: gemmi.SpaceGroup, settings: Merge
) -> tuple[Final, UnmergedTable]:
    """Return the scaled data of observations that are one bucket; ``priority`` (n_lattices,) is that of `sample`."""
    observations, absences = without_absences(observations, group)
    beginning = begin(Sample.of(observations, priority), 1, group, settings)
    kept, partiality = with_partiality(observations, beginning.widths, settings)
    scale = starting_scales(kept, partiality, beginning)
    offered = np.bincount(kept.lattice, minlength=kept.n_lattices)
    reduced = reduce_indices(kept.hkl, group)
    ordered = kept.select(reduced.order)
    columns = columns_of(ordered, partiality[reduced.order], reduced.starts)
    state, masks, groups = initial_state(scale, offered, beginning, settings), None, slice(0, len(reduced.unique))
    while state.phase != Phase.OUTPUT:
        result, changed = run_pass(columns, masks, state, groups, beginning, settings)
        masks = changed or masks
        state = advance(state, result, settings)
    if masks is None:
        raise RuntimeError("scaling ended before its first pass")
    isym = reduced.isym[reduced.order]
    scaled, sums = scaled_bucket(columns, masks, state, groups, ordered, isym, reduced.unique, settings)
    limits = (float(kept.inverse_d2.min()), float(kept.inverse_d2.max())) if len(kept) else None
    rows = merged_rows(scaled, group, settings)
    return Final(state, rows, sums, offered, kept.half, limits, absences, beginning), unmerged_table(scaled)


def columns_of(ordered: Observations, partiality: Floats, starts: NDArray[np.int64]) -> Columns:
    """Return the columns of observations that are sorted by reflection, all active; ``starts`` bounds the reflections."""
    return Columns(
        starts=starts,
        group=np.repeat(np.arange(len(starts) - 1), np.diff(starts)),
        lattice=ordered.lattice,
        intensity=ordered.intensity,
        fixed=ordered.variance_fixed,
        gain=ordered.variance_gain,
        partiality=partiality,
        inverse_d2=ordered.inverse_d2,
        active=np.ones(len(ordered), dtype=bool),
        n_lattices=ordered.n_lattices,
    )


def result_of(
    final: Final, cell: Sequence[float], symmetry: Symmetry, settings: Merge, unmerged: UnmergedTable | None = None
) -> MergeResult:
    """Return tables, statistics and warnings; ``unmerged`` None where the observations were written piece by piece.

    Raises
    ------
    ConfigError
        If the cell is impossible.
    """
    unit_cell, group = checked_cell(cell), symmetry.group
    merged, sums = merged_table(final.rows, unit_cell, group, settings)
    shells, overall = _statistics(merged, sums, final.limits, unit_cell, group, settings)
    warnings = symmetry_warnings(group, symmetry.proposal, symmetry.ambiguity) + final.absences.warnings(group)
    return MergeResult(
        merged=merged,
        lattices=lattice_table(final.state, final.sums, final.offered, final.half, final.beginning.widths),
        shells=shells,
        overall=overall,
        cell=unit_cell,
        space_group=str(group.xhm()),
        proposal=symmetry.proposal,
        ambiguity=symmetry.ambiguity,
        warnings=(*warnings, *_scaling_warnings(final.state, settings)),
        title=mtz_title(symmetry.proposal, symmetry.ambiguity),
        unmerged=UnmergedTable(0) if unmerged is None else unmerged,
    )


def _scaling_warnings(state: ScaleState, settings: Merge) -> list[str]:
    words = []
    if not state.converged:
        words.append(f"scaling did not converge in {settings.max_cycles} cycles: raise merge.max_cycles, or look at the scales")
    bad = int(np.count_nonzero(~state.used))
    if bad:
        words.append(f"{bad} lattices correlate to the others by less than {settings.min_lattice_cc}: left out")
    return words


def _statistics(
    merged: MergedTable,
    sums: GroupSums,
    limits: tuple[float, float] | None,
    cell: Sequence[float],
    group: gemmi.SpaceGroup,
    settings: Merge,
) -> tuple[ShellTable, ShellTable]:
    d_min, d_max = settings.d_min or 1.0, settings.d_max or 100.0
    if limits is not None:
        # a hair wider than the observations, so that rounding puts none of them outside
        d_min = settings.d_min or (1.0 - 1e-6) / np.sqrt(limits[1])
        d_max = settings.d_max or (1.0 + 1e-6) / np.sqrt(limits[0])
    possible = possible_reflections(cell, group, d_min, d_max)
    d = 1.0 / np.sqrt(inverse_d2(possible, cell))
    return shell_statistics(merged, sums, d, shell_edges(d_min, max(d_max, 1.01 * d_min), settings.n_shells))

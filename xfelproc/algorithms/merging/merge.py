"""From observations of many lattices to merged intensities and their statistics.

`merge_observations` has all observations in memory, as one block. A run's merging goes through the same steps with the blocks in
files (`stages.merge_leaves`, `stages.merge_cycles`), and at the end `result_of`, which has the size of the unique reflections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.cycle import CycleState
from xfelproc.algorithms.merging.filters import Consensus, counts_by_reason, filter_record, filter_warnings
from xfelproc.algorithms.merging.final import merged_rows
from xfelproc.algorithms.merging.in_memory import block_in_memory, scale_blocks
from xfelproc.algorithms.merging.lattice_block import LatticeFacts
from xfelproc.algorithms.merging.lattice_rows import described
from xfelproc.algorithms.merging.observations import Observations, concatenate
from xfelproc.algorithms.merging.observed import ObservedStatistics, edges_of, sums_of_table
from xfelproc.algorithms.merging.output import output_block
from xfelproc.algorithms.merging.quality import control_warnings, quality_of
from xfelproc.algorithms.merging.reduction import find_space_group, inverse_d2, pack, possible_reflections
from xfelproc.algorithms.merging.reference import Arrays, Sums
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.algorithms.merging.statistics import GroupSums, shell_edges, shell_statistics
from xfelproc.algorithms.merging.symmetry_notes import Absences, checked_cell, mtz_title, symmetry_warnings, without_absences
from xfelproc.algorithms.merging.tables import merged_table
from xfelproc.models.tables import MergedTable, ScaledLatticeTable, ShellTable, UnmergedTable


@dataclass(frozen=True)
class MergeResult:
    """Merged intensities with all that report and files say about them."""

    merged: MergedTable
    lattices: ScaledLatticeTable
    """Empty where lattices were written piece by piece."""
    n_lattices: int
    n_used: int
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
    quality: dict[str, Any]
    """For ``merge.json``, see `quality.quality_of`."""


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
    """Scaled data of a run, of the size of its unique reflections: the last state, and the sums of `final.final_sums`."""

    state: CycleState
    sums: Sums
    absences: Absences
    n_lattices: int
    n_used: int
    reasons: NDArray[np.int64]
    """Lattices by `lattice_models.Reason`."""


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
    facts: LatticeFacts | None = None,
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
    facts
        What is known of the lattices; None: nothing, so that orientations stay as they are.
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
    unit_cell = checked_cell(cell)
    facts = facts or LatticeFacts.unknown(observations.n_lattices, unit_cell)
    absences = without_absences(observations, symmetry.group)[1]
    block, state = block_in_memory(observations, facts, unit_cell, symmetry.group, settings)
    consensus = Consensus.of(facts.cell, facts.wavelength, symmetry.group.xhm()) if len(facts.cell) else None
    scaled = scale_blocks([block], state, consensus=consensus)
    reasons = counts_by_reason(scaled.models[0].reason)
    unmerged, lattices, sums = output_block(block, scaled.models[0], scaled.state)
    if consensus is not None:
        lattices = described(lattices, block, scaled.models[0], scaled.state, consensus)
    final = Final(scaled.state, sums, absences, len(lattices), int(np.count_nonzero(lattices["used"])), reasons)
    result = result_of(final, unit_cell, symmetry, settings)
    unmerged = unmerged.select(np.argsort(pack(unmerged["hkl_asu"]), kind="stable"))
    statistics = ObservedStatistics(result.cell, edges_of(result.shells))
    statistics.add(sums_of_table(unmerged, symmetry.group))
    shells, overall = statistics.added_to(result.shells, result.overall)
    return replace(result, lattices=lattices, unmerged=unmerged, shells=shells, overall=overall)


def result_of(final: Final, cell: Sequence[float], symmetry: Symmetry, settings: Merge) -> MergeResult:
    """Return tables, statistics and warnings; lattices and observations are not in it.

    Raises
    ------
    ConfigError
        If the cell is impossible.
    """
    unit_cell, group = checked_cell(cell), symmetry.group
    rows = merged_rows(final.sums, final.state)
    merged, sums = merged_table(rows, unit_cell, group, settings)
    shells, overall = _statistics(merged, sums, rows, unit_cell, group, settings)
    warnings = symmetry_warnings(group, symmetry.proposal, symmetry.ambiguity) + final.absences.warnings(group)
    return MergeResult(
        merged=merged,
        lattices=ScaledLatticeTable(0),
        n_lattices=final.n_lattices,
        n_used=final.n_used,
        shells=shells,
        overall=overall,
        cell=unit_cell,
        space_group=str(group.xhm()),
        proposal=symmetry.proposal,
        ambiguity=symmetry.ambiguity,
        warnings=(*warnings, *_scaling_warnings(final, settings), *control_warnings(shells)),
        title=mtz_title(symmetry.proposal, symmetry.ambiguity),
        unmerged=UnmergedTable(0),
        quality=quality_of(final.state, final.sums, shells) | {"left_out": filter_record(final.reasons)},
    )


def _scaling_warnings(final: Final, settings: Merge) -> list[str]:
    words = []
    if settings.scale and not final.state.converged:
        words.append(f"scaling did not converge in {settings.max_cycles} cycles: raise merge.max_cycles, or look at the scales")
    empty = final.n_lattices - final.n_used - int(final.reasons[1:].sum())
    if empty > 0:
        words.append(f"{empty} lattices have nothing to merge: left out")
    return words + filter_warnings(final.reasons)


def _statistics(
    merged: MergedTable, sums: GroupSums, rows: Arrays, cell: Sequence[float], group: gemmi.SpaceGroup, settings: Merge
) -> tuple[ShellTable, ShellTable]:
    d_min, d_max = settings.d_min or 1.0, settings.d_max or 100.0
    if len(rows["hkl"]):
        measured = inverse_d2(rows["hkl"], cell)
        # a hair wider than the reflections, so that rounding puts none of them outside
        d_min = settings.d_min or (1.0 - 1e-6) / np.sqrt(measured.max())
        d_max = settings.d_max or (1.0 + 1e-6) / np.sqrt(measured.min())
    possible = possible_reflections(cell, group, d_min, d_max)
    d = 1.0 / np.sqrt(inverse_d2(possible, cell))
    shells, overall = shell_statistics(merged, sums, d, shell_edges(d_min, max(d_max, 1.01 * d_min), settings.n_shells))
    if settings.anomalous:
        return shells, overall
    return _without_anomalous(shells), _without_anomalous(overall)


def _without_anomalous(shells: ShellTable) -> ShellTable:
    nothing = np.full(len(shells), np.nan)
    return shells.replace(anomalous_signal=nothing, bijvoet_ratio=nothing, n_bijvoet=np.zeros(len(shells)))

"""Merging, from leaves to sums over unique reflections: the passes of scaling and post-refinement as folds over the leaves.

A pass takes one leaf after the other (`algorithms.merging.lattice_block.LatticeBlock`): the models of its lattices are refined
against the reference in the state, published beside the leaf, and the observations are added up by unique reflection. What goes
from leaf to leaf, and to the dispatcher, has the size of the unique reflections; the lattices' models never leave their leaf.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xfelproc.algorithms.merging.cycle import CycleState, accumulate_block, begin_block, refine_block, start
from xfelproc.algorithms.merging.filters import Consensus, counts_by_reason, filtered
from xfelproc.algorithms.merging.group_sums import group_sums
from xfelproc.algorithms.merging.influence import Cut
from xfelproc.algorithms.merging.lattice_block import LatticeBlock, UniqueReflections
from xfelproc.algorithms.merging.lattice_rows import described
from xfelproc.algorithms.merging.output import output_block
from xfelproc.algorithms.merging.reference import Sums, add_sums
from xfelproc.algorithms.merging.sample import Sample, begin
from xfelproc.algorithms.merging.unique import Locator
from xfelproc.io.columns import write_columns
from xfelproc.io.exchange.mtz_pieces import unmerged_rows
from xfelproc.io.nodes import Partial
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.tables import UnmergedTable
from xfelproc.stages.merge_parts import MergeJob


@dataclass(frozen=True)
class Begin:
    """The first state, from the survey of the leaves: one task."""

    job: MergeJob

    @property
    def lineage(self) -> str:
        """Hash of the parameters."""
        return self.job.hash("begin")

    def accumulate(self, blocks: Iterable[Partial]) -> Partial:
        """Return it; the one block is the survey."""
        (survey,) = blocks
        job = self.job
        unique = UniqueReflections.of(survey["keys"], np.median(survey["cells"], axis=0).tolist(), job.group)
        return start(unique, begin(Sample.from_arrays(survey), job.settings), job.settings, job.group).arrays()


@dataclass(frozen=True)
class LeafNumbers:
    """The leaves as blocks of a fold: what is opened is the number of a leaf's first shard, one of ``first``."""

    job: MergeJob
    first: tuple[int, ...]

    def lineage(self, block: int) -> str:
        """Return the hash of what the leaf was made of."""
        return self.job.hash("leaf", self.first[block])

    def open(self, block: int) -> int:
        """Return the number of the leaf's first shard."""
        return self.first[block]


@dataclass(frozen=True)
class Pass:
    """One pass over the leaves, each given by the number of its first shard.

    Pass 0 finds the unique reflection of each observation and begins the models of the lattices; ``state`` is where the state
    before this pass is, ``number`` its own. ``consensus`` is what lattices are compared to before they are scaled.
    """

    job: MergeJob
    state: Path
    number: int
    consensus: Consensus
    cut: Cut | None = None
    """What is left out for its ΔCC1/2 before this pass."""

    @property
    def lineage(self) -> str:
        """Hash of all that the pass depends on: what is merged, and how often it was passed over before."""
        return self.job.hash("pass", self.number)

    def accumulate(self, blocks: Iterable[int]) -> Partial:
        """Return the sums over consecutive leaves; blocks and models are published by leaf."""
        state = self._state()
        locator = Locator(state.unique.hkl, self.job.group) if self.number == 0 else None
        total: Sums | None = None
        for first in blocks:
            one = self._leaf(first, state, locator)
            total = one if total is None else add_sums(total, one)
        if total is None:
            raise ValueError("a pass over no leaves")
        return total

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return the sums over both."""
        return add_sums(first, second)

    def _state(self) -> CycleState:
        arrays = self.job.read(self.state, self.job.hash("state", self.number))
        return CycleState.from_arrays(arrays, self.job.settings)

    def _leaf(self, first: int, state: CycleState, locator: Locator | None) -> Sums:
        job = self.job
        if locator is not None:
            block = placed(job.read_columns(job.leaf(first), job.hash("leaf", first)), locator)
            write_columns(job.block(first), job.hash("block", first), block.arrays())
            models = filtered(block, begin_block(block, state), self.consensus, job.settings)
        else:
            block = job.read_block(first)
            models = refine_block(block, job.read_models(self.number - 1, first), state)
            if self.cut is not None:
                models = self.cut.applied(block, models, job.read_influences(self.number, first))
        write_columns(job.models(self.number, first), job.hash("models", self.number, first), models.arrays())
        return accumulate_block(block, models, state)


@dataclass(frozen=True)
class Output:
    """The last pass over the leaves: rows of the unmerged MTZ, sorted into buckets of unique reflections, and the final sums.

    ``passes`` is the number of passes before; ``lattices`` is, by a leaf's first shard, the number of lattices before it;
    ``bounds`` are the first unique reflections of the buckets, and the end.
    """

    job: MergeJob
    state: Path
    passes: int
    lattices: dict[int, int]
    bounds: tuple[int, ...]
    consensus: Consensus

    @property
    def lineage(self) -> str:
        """Hash of all that the pass depends on."""
        return self.job.hash("output", self.passes)

    def accumulate(self, blocks: Iterable[int]) -> Partial:
        """Return the sums over consecutive leaves; rows are published by leaf."""
        arrays = self.job.read(self.state, self.job.hash("state", self.passes))
        state = CycleState.from_arrays(arrays, self.job.settings)
        locator = Locator(state.unique.hkl, self.job.group)
        total: Sums | None = None
        for first in blocks:
            one = self._leaf(first, state, locator)
            total = one if total is None else add_sums(total, one)
        if total is None:
            raise ValueError("a pass over no leaves")
        return total

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return the sums over both."""
        return add_sums(first, second)

    def _leaf(self, first: int, state: CycleState, locator: Locator) -> Sums:
        job, block = self.job, self.job.read_block(first)
        models = job.read_models(self.passes - 1, first)
        table, lattices, sums = output_block(block, models, state, self.lattices[first])
        lattices = described(lattices, block, models, state, self.consensus)
        slices = self._slices(table, locator)
        write_columns(job.rows(first), job.hash("rows", first), slices)
        known = {"A": block.A, "wavelength": block.wavelength} | {c.name: lattices[c.name] for c in lattices.SCHEMA}
        write_columns(job.lattices(first), job.hash("lattices", first), known)
        counts = [sum(map(len, slices.values())), len(lattices), int(np.count_nonzero(lattices["used"]))]
        sums |= group_sums(block, models, state, job.n_groups)
        return sums | {"n": np.array(counts), "reasons": counts_by_reason(models.reason)}

    def _slices(self, table: UnmergedTable, locator: Locator) -> Partial:
        """Return the rows of the MTZ by bucket, in it by unique reflection and lattice."""
        merged = table.select(table["flags"] & int(ReflectionFlag.OUTLIER) == 0)
        order, starts = locator.sorted(merged["hkl_asu"])
        rows, bounds = unmerged_rows(merged.select(order)), starts[np.array(self.bounds)]
        return {str(n): rows[a:b] for n, (a, b) in enumerate(itertools.pairwise(bounds.tolist()))}


def placed(leaf: Partial, locator: Locator) -> LatticeBlock:
    """Return the arrays of a leaf as a block: each observation knows its unique reflection; those of none are left out."""
    group, isym = locator.find(leaf["hkl"])
    m = len(leaf["starts"]) - 1
    more: Partial = {"group": group, "isym": isym, "bandwidth": np.zeros(m)}
    block = LatticeBlock.from_arrays(leaf | more)
    return block if np.all(group >= 0) else block.select(group >= 0)

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
from xfelproc.algorithms.merging.influence import Cut, merged_by_variances
from xfelproc.algorithms.merging.lattice_block import UniqueReflections
from xfelproc.algorithms.merging.lattice_rows import described
from xfelproc.algorithms.merging.output import end_of_block
from xfelproc.algorithms.merging.reference import Sums, add_sums
from xfelproc.algorithms.merging.sample import Sample, begin
from xfelproc.algorithms.merging.unique import Locator
from xfelproc.io.columns import write_columns
from xfelproc.io.nodes import Partial
from xfelproc.kernels.influence import Merged
from xfelproc.stages.merge_parts import MergeJob

BOUNDS = "bounds"
"""In a file of rows: where those of each unique reflection are, beside the rows by bucket."""


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
        """Return the sums over consecutive leaves; models, and in pass 0 the places of observations, are published by leaf."""
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
            group, isym = locator.find(job.read_columns(job.leaf(first), job.hash("leaf", first), ("hkl",))["hkl"])
            write_columns(job.places(first), job.hash("places", first), {"group": group, "isym": isym})
            block = job.read_block(first)
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
        merged = merged_by_variances(state)
        total: Sums | None = None
        for first in blocks:
            one = self._leaf(first, state, merged)
            total = one if total is None else add_sums(total, one)
        if total is None:
            raise ValueError("a pass over no leaves")
        return total

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return the sums over both."""
        return add_sums(first, second)

    def _leaf(self, first: int, state: CycleState, merged: Merged) -> Sums:
        job, block = self.job, self.job.read_block(first, whole=True)
        models = job.read_models(self.passes - 1, first)
        end = end_of_block(block, models, state, self.lattices[first])
        lattices, sums = described(end.lattices, block, models, state, self.consensus, merged), end.sums
        edges = end.bounds[np.array(self.bounds)].tolist()
        slices = {str(n): end.rows[a:b] for n, (a, b) in enumerate(itertools.pairwise(edges))}
        write_columns(job.rows(first), job.hash("rows", first), slices | {BOUNDS: end.bounds.astype(np.int32)})
        known = {"A": block.A, "wavelength": block.wavelength} | {c.name: lattices[c.name] for c in lattices.SCHEMA}
        write_columns(job.lattices(first), job.hash("lattices", first), known)
        counts = [len(end.rows), len(lattices), int(np.count_nonzero(lattices["used"]))]
        sums |= group_sums(block, models, state, job.n_groups)
        return sums | {"n": np.array(counts), "reasons": counts_by_reason(models.reason)}

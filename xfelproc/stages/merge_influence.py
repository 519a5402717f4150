"""Merging: ΔCC1/2 of lattices and of stretches of the run, as folds over the leaves; see `algorithms.merging.influence`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xfelproc.algorithms.merging.cycle import CycleState
from xfelproc.algorithms.merging.influence import Stretch, influences, merged_by_variances
from xfelproc.algorithms.merging.lattice_block import LatticeBlock
from xfelproc.algorithms.merging.lattice_models import LatticeModels
from xfelproc.algorithms.merging.sample import priorities
from xfelproc.io.columns import write_columns
from xfelproc.io.nodes import Partial
from xfelproc.stages.merge_parts import MergeJob

MOST_VALUES = 1 << 14
"""Lattices from whose ΔCC1/2 the limit is found, those of smallest hash."""


@dataclass(frozen=True)
class Influences:
    """ΔCC1/2 of each lattice after ``passes`` passes, published by leaf; the sums are a sample of it.

    ``state`` is where the state after those passes is.
    """

    job: MergeJob
    state: Path
    passes: int

    @property
    def lineage(self) -> str:
        """Hash of all that it depends on."""
        return self.job.hash("influences", self.passes)

    def accumulate(self, blocks: Iterable[int]) -> Partial:
        """Return the sample of consecutive leaves, each given by the number of its first shard."""
        state, job, samples = _state(self.job, self.state, self.passes), self.job, []
        merged = merged_by_variances(state)
        for first in blocks:
            block, models = job.read_block(first), job.read_models(self.passes - 1, first)
            values = influences(block, models, state, merged)
            write_columns(job.influences(first), job.hash("influences", self.passes, first), {"values": values})
            known = np.isfinite(values)
            samples.append(
                {"values": values[known], "priority": priorities(block.unit.astype(np.int64), block.number.astype(np.int64))[known]}
            )
        return _sample(*(np.concatenate([sample[name] for sample in samples]) for name in ("values", "priority")))

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return the sample of both."""
        return _sample(*(np.concatenate([first[name], second[name]]) for name in ("values", "priority")))


def _sample(values: np.ndarray, priority: np.ndarray) -> Partial:
    order = np.sort(np.argsort(priority, kind="stable")[:MOST_VALUES])
    return {"values": values[order], "priority": priority[order]}


@dataclass(frozen=True)
class Part:
    """A stretch: units ``first`` to ``end``, in the leaves that begin with these shards."""

    first: int
    end: int
    leaves: tuple[int, ...]


@dataclass(frozen=True)
class Parts:
    """Stretches as blocks of a fold."""

    job: MergeJob
    parts: tuple[Part, ...]

    def lineage(self, block: int) -> str:
        """Return the hash of what the stretch is."""
        part = self.parts[block]
        return self.job.hash("stretch", part.first, part.end)

    def open(self, block: int) -> Part:
        """Return the stretch."""
        return self.parts[block]


@dataclass(frozen=True)
class StretchInfluences:
    """ΔCC1/2 of each stretch after ``passes`` passes, with the number of its lattices that are merged."""

    job: MergeJob
    state: Path
    passes: int

    @property
    def lineage(self) -> str:
        """Hash of all that it depends on."""
        return self.job.hash("stretches", self.passes)

    def accumulate(self, blocks: Iterable[Part]) -> Partial:
        """Return the values of consecutive stretches, in their order."""
        stretch, values, numbers = Stretch(_state(self.job, self.state, self.passes)), [], []
        leaf: tuple[int, LatticeBlock, LatticeModels] | None = None
        for part in blocks:
            n = 0
            for first in part.leaves:
                if leaf is None or leaf[0] != first:
                    leaf = first, self.job.read_block(first), self.job.read_models(self.passes - 1, first)
                block, models = leaf[1:]
                a, b = np.searchsorted(block.unit, [part.first, part.end]).tolist()
                stretch.add(block, models, a, b)
                n += int(np.count_nonzero(models.used[a:b]))
            values.append(stretch.influence())
            numbers.append(n)
        return {"values": np.array(values), "lattices": np.array(numbers)}

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return those of both."""
        return {name: np.concatenate([first[name], second[name]]) for name in first}


def stretch_parts(bounds: np.ndarray, leaves: tuple[int, ...], n_units: int) -> Iterator[Part]:
    """Yield stretches of the units ``bounds[i]`` to ``bounds[i + 1]``; ``leaves`` are the first units of the leaves."""
    starts = np.append(np.array(leaves, dtype=np.int64), n_units)
    for first, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        a = max(int(np.searchsorted(starts, first, side="right")) - 1, 0)
        b = int(np.searchsorted(starts[:-1], end, side="left"))
        yield Part(first, end, tuple(leaves[a:b]))


def _state(job: MergeJob, path: Path, passes: int) -> CycleState:
    return CycleState.from_arrays(job.read(path, job.hash("state", passes)), job.settings)

"""Folds: a result formed of all shards, by workers, over a tree that is a function of the input alone.

Leaves are contiguous blocks of shards (or of whatever `Blocks` says); in a leaf the blocks are taken in order. Partials of
leaves are combined two by two, level by level, an odd one left over going up as it is: sums are then formed in the same order
on every driver, by however many workers. One task goes through several levels. Each task publishes one node (`io.nodes`) and is
skipped where a node of equal lineage is there.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError
from xfelproc.io.inflight import record_of
from xfelproc.io.nodes import Partial, find_node, node_path, read_node, write_node
from xfelproc.io.shards import UnitImages, read_frames, read_header, read_images, read_lattices, read_shard, shard_path
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.frames import UnitResult
from xfelproc.models.tables import FrameTable, IndexedTable, LatticeTable, ReflectionTable, SpotTable

FRAMES_A_LEAF = 1000
MOST_LEAVES = 256
LEVELS_A_TASK = 4


class Update(Protocol):
    """What is computed of each leaf for itself and published (an iteration's parameters of some lattices, say). Picklable."""

    @property
    def lineage(self) -> str:
        """Hash of all that the result depends on beside the blocks: parameters, versions, the state that went in."""

    def accumulate(self, blocks: Iterable[Any]) -> Partial:
        """Return the partial result of consecutive blocks, opened one after the other."""


@runtime_checkable
class Fold(Update, Protocol):
    """What is computed of each leaf and then combined."""

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return the partial result of the blocks of both; those of ``first`` come before those of ``second``."""


class Blocks(Protocol):
    """What a fold goes over: numbered blocks. Picklable, and small: workers open the blocks."""

    def lineage(self, block: int) -> str:
        """Return the hash of a block's content, or of what it was made of."""

    def open(self, block: int) -> Any:
        """Return what `Update.accumulate` is given of a block."""


@dataclass(frozen=True)
class UnitReader:
    """A unit's shard, read as far as it is asked for. ``block`` is its number in the fold: the unit's, where there is one run.

    One that is ``damaged`` is not read: its frames are blank, and nothing else is in it.
    """

    run: Path
    unit: int
    path: Path
    block: int
    damaged: bool = field(default=False, kw_only=True)

    def result(self) -> UnitResult:
        """Return all tables."""
        if self.damaged:
            return UnitResult(self.frames(), SpotTable(0), LatticeTable(0), IndexedTable(0), ReflectionTable(0))
        return read_shard(self.path)

    def frames(self) -> FrameTable:
        """Return the table of frames."""
        if self.damaged:
            header = read_header(self.path)
            n = 0 if header is None else sum(header.counts[status.name] for status in FrameStatus)
            return FrameTable(n, status=np.full(n, FrameStatus.FAILED), reason=["its shard is damaged"] * n)
        return read_frames(self.path)

    def lattices(self) -> LatticeTable:
        """Return the table of lattices."""
        return LatticeTable(0) if self.damaged else read_lattices(self.path)

    def images(self) -> UnitImages | None:
        """Return the added-up pixels, if the unit has some."""
        return None if self.damaged else read_images(self.path)


@dataclass(frozen=True)
class Shards:
    """Units 0 ... n - 1 of a stage as blocks, of one run or of several in the order given: ``runs`` are folders and their n.

    ``stage`` is that of all runs, or one for each. Blocks in ``damaged`` are there, and nothing is read of them.
    """

    stage: str | tuple[str, ...]
    runs: tuple[tuple[Path, int], ...]
    damaged: frozenset[int] = field(default=frozenset(), kw_only=True)

    def __len__(self) -> int:
        return sum(n for _, n in self.runs)

    def place(self, block: int) -> tuple[int, int]:
        """Return the number of the run, and the unit in it.

        Raises
        ------
        IndexError
            If there is no such block.
        """
        for number, (_, n) in enumerate(self.runs):
            if block < n:
                return number, block
            block -= n
        raise IndexError(block)

    def path(self, block: int) -> tuple[Path, int, str, Path]:
        """Return the run, the unit, the stage and the shard of a block."""
        number, unit = self.place(block)
        run, stage = self.runs[number][0], self.stage if isinstance(self.stage, str) else self.stage[number]
        return run, unit, stage, shard_path(run, stage, unit)

    def lineage(self, block: int) -> str:
        """Return the lineage of the shard.

        Raises
        ------
        ConfigError
            If the unit is not done.
        """
        run, unit, stage, path = self.path(block)
        header = read_header(path)
        if header is None:
            raise ConfigError(f"{run}: unit {unit} of stage {stage} is not processed yet: run the same job without --only")
        return hashlib.sha256(f"{header.lineage} damaged".encode()).hexdigest() if block in self.damaged else header.lineage

    def open(self, block: int) -> UnitReader:
        """Return the shard's reader."""
        run, unit, _, path = self.path(block)
        return UnitReader(run, unit, path, block, damaged=block in self.damaged)

    def find(self, path: str | None) -> int | None:
        """Return the block whose shard is at a path; None: there is none."""
        return next((block for block in range(len(self)) if str(self.path(block)[3]) == path), None)


@dataclass(frozen=True)
class Nodes:
    """Results of earlier folds and updates as blocks."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def lineage(self, block: int) -> str:
        """Return the node's lineage."""
        return read_node(self.paths[block], ())[0]

    def open(self, block: int) -> Partial:
        """Return the node's arrays."""
        return read_node(self.paths[block])[1]


@dataclass(frozen=True)
class FoldJob:
    """What all nodes of a fold share: ``offsets`` bounds the leaves in the blocks, ``folder`` is where the nodes go."""

    run: Path
    stage: str
    folder: Path
    fold: Update
    blocks: Blocks
    offsets: tuple[int, ...]

    @property
    def n_leaves(self) -> int:
        """Number of leaves."""
        return len(self.offsets) - 1


@dataclass(frozen=True)
class NodeTask:
    """One node of a fold, small enough for a queue; ``children`` are the lineages of the nodes it is made of (none: a leaf)."""

    payload: bytes = field(repr=False)
    key: str
    level: int
    node: int
    children: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeSummary:
    """What the dispatcher learns of a published node."""

    level: int
    node: int
    lineage: str
    seconds: float
    worker: str


def cut_leaves(sizes: NDArray[np.int64] | Sequence[int], leaf_size: int | None = None) -> tuple[int, ...]:
    """Return the bounds of the leaves: contiguous, about ``leaf_size`` frames each, and at most 256 unless a size is given.

    Parameters
    ----------
    sizes
        Frames (or observations) of each block.
    leaf_size
        None: 1000, or what gives 256 leaves.
    """
    ends = np.cumsum(np.asarray(sizes, dtype=np.int64))
    if len(ends) == 0 or ends[-1] == 0:
        return (0, len(ends))
    total = int(ends[-1])
    wanted = -(-total // leaf_size) if leaf_size else min(MOST_LEAVES, -(-total // FRAMES_A_LEAF))
    # a leaf ends with the block that holds its last frame
    inner = np.searchsorted(ends, [total * k // wanted for k in range(1, wanted)], side="left") + 1
    return tuple(np.unique(np.concatenate([[0], inner, [len(ends)]])).tolist())


def make_nodes(job: FoldJob) -> Callable[[int, int, tuple[str, ...]], NodeTask]:
    """Return a maker of the tasks of a fold."""
    payload = pickle.dumps(job)
    key = hashlib.sha256(payload).hexdigest()
    return lambda level, node, children: NodeTask(payload, key, level, node, children)


def combine_all(fold: Fold, partials: Iterable[Partial]) -> Partial:
    """Return the combination of consecutive partials, two by two and level by level.

    They are taken one after the other: of n no more than log2(n) + 2 are in memory.
    """
    waiting: list[tuple[int, Partial]] = []  # with their levels, which fall
    for partial in partials:
        level, whole = 0, partial
        while waiting and waiting[-1][0] == level:
            whole, level = fold.combine(waiting.pop()[1], whole), level + 1
        waiting.append((level, whole))
    _, whole = waiting.pop()
    while waiting:
        whole = fold.combine(waiting.pop()[1], whole)
    return whole


def compute_node(task: NodeTask) -> NodeSummary:
    """Compute a node and publish it, unless it is there.

    Raises
    ------
    DataError
        If a shard, or a node it is made of, is missing or damaged.
    OutputError
        If it cannot be written.
    """
    begun, job = time.process_time(), _job(task)
    with _recorded(job, task):
        lineage = _leaf(job, task.node) if task.level == 0 else _inner(job, task)
    return NodeSummary(task.level, task.node, lineage, time.process_time() - begun, str(os.getpid()))


_CURRENT: dict[str, FoldJob] = {}


def _job(task: NodeTask) -> FoldJob:
    if task.key not in _CURRENT:
        _CURRENT.clear()
        _CURRENT[task.key] = pickle.loads(task.payload)
    return _CURRENT[task.key]


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _leaf(job: FoldJob, node: int) -> str:
    blocks = range(job.offsets[node], job.offsets[node + 1])
    lineage = _hash([job.fold.lineage, *(job.blocks.lineage(b) for b in blocks)])
    path = node_path(job.folder, 0, node)
    if find_node(path, lineage) is None:
        write_node(path, lineage, job.fold.accumulate(_opened(job.blocks, blocks)))
    return lineage


def _opened(blocks: Blocks, numbers: Iterable[int]) -> Iterator[Any]:
    for block in numbers:
        yield blocks.open(block)


def _inner(job: FoldJob, task: NodeTask) -> str:
    if not isinstance(job.fold, Fold):
        raise TypeError(f"{type(job.fold).__name__} has no method combine: it is an update, not a fold")
    lineage = _hash(task.children)
    path = node_path(job.folder, task.level, task.node)
    if find_node(path, lineage) is not None:
        return lineage
    write_node(path, lineage, combine_all(job.fold, _children(job, task)))
    return lineage


def _children(job: FoldJob, task: NodeTask) -> Iterator[Partial]:
    below, first = task.level - LEVELS_A_TASK, task.node << LEVELS_A_TASK
    for offset, expected in enumerate(task.children):
        child = node_path(job.folder, below, first + offset)
        found, partial = read_node(child)
        if found != expected:
            raise RuntimeError(f"{child}: has changed while the fold {job.stage} was at work: is another run in this directory?")
        yield partial


@contextmanager
def _recorded(job: FoldJob, task: NodeTask) -> Iterator[None]:
    """Record that this worker is at a node (row -1), as `stages.execute` does of frames."""
    record = record_of(job.run)
    record.mark(activity_name(job.stage, task.level), task.node, -1, time.time(), job.fold.lineage)
    try:
        yield
    finally:
        record.idle()


def activity_name(stage: str, level: int) -> str:
    """Return what stands for a level of a fold in the in-flight records."""
    return f"{stage}:{level}"

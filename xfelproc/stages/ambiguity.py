"""Indexing ambiguity over shards: a sample of the lattices, its resolution, all lattices placed, and shards read accordingly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.ambiguity import Doubt, Placed, Resolution, place, resolve
from xfelproc.algorithms.merging.ambiguity_data import normalized
from xfelproc.algorithms.merging.ambiguity_operators import DEN, Settings, reindexed
from xfelproc.algorithms.merging.ambiguity_sample import LatticeSample, nearest
from xfelproc.algorithms.merging.ambiguity_solve import Mean
from xfelproc.algorithms.merging.observations import Observations, corrected, usable_rows
from xfelproc.algorithms.merging.reduction import find_space_group
from xfelproc.algorithms.merging.sample import Beginning, Sample, begin, priorities
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.algorithms.merging.symmetry_notes import without_absences
from xfelproc.geometry.reduction import cell_of
from xfelproc.io.nodes import Partial, node_path, read_node
from xfelproc.models.frames import UnitResult
from xfelproc.models.tables import IndexedTable, LatticeTable, ReflectionTable
from xfelproc.stages.fold import Shards, UnitReader

Indexed = TypeVar("Indexed", ReflectionTable, IndexedTable)

PLACED = ("setting", "probability", "margin", "correlation", "count", "doubt")
MATRICES = ("matrices", "crystal", "lattice")


@dataclass(frozen=True)
class AmbiguityJob:
    """What all tasks of a resolution share; ``lineage`` is the hash of what it depends on."""

    settings: Merge
    space_group: str
    lineage: str

    def hash(self, *words: object) -> str:
        """Return the lineage of a part of the resolution."""
        return hashlib.sha256(" ".join([self.lineage, *map(str, words)]).encode()).hexdigest()

    def observations(self, block: UnitReader) -> Observations:
        """Return the usable observations of a shard."""
        result = block.result()
        table = result.reflections.select(usable_rows(result.reflections, self.settings))
        half = np.zeros(len(result.lattices), dtype=np.uint8)
        return without_absences(corrected(table, half), find_space_group(self.space_group))[0]


@dataclass(frozen=True)
class Gathered:
    """A fold over shards: the sample."""

    job: AmbiguityJob

    @property
    def lineage(self) -> str:
        """Hash of the parameters."""
        return self.job.hash("sample")

    def accumulate(self, blocks: Iterable[UnitReader]) -> Partial:
        """Return the sample of some shards."""
        found: LatticeSample | None = None
        for block in blocks:
            observations = self.job.observations(block)
            one = LatticeSample.of(observations, priorities(block.block, observations.n_lattices))
            found = one if found is None else found.with_more(one)
        if found is None:
            raise RuntimeError("a leaf has at least one block")
        return found.arrays()

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return the sample of both."""
        return LatticeSample.from_arrays(first).with_more(LatticeSample.from_arrays(second)).arrays()


@dataclass(frozen=True)
class Resolve:
    """One task over the sample; ``reference`` is the node of a `Mean` to compare to, if there is one."""

    job: AmbiguityJob
    among: Settings
    reference: Path | None

    @property
    def lineage(self) -> str:
        """Hash of the parameters."""
        return self.job.hash("resolve")

    def accumulate(self, blocks: Iterable[Partial]) -> Partial:
        """Return the resolution, and what lattices are normalised with; the one block is the sample."""
        (arrays,) = blocks
        sample, job = LatticeSample.from_arrays(arrays), self.job
        observations = sample.observations()
        beginning = begin(Sample.of(observations, sample.priority), job.settings)
        data = normalized(observations, beginning, job.settings, job.settings.ambiguity.d_min)
        reference = None if self.reference is None else mean_from(read_node(self.reference)[1])
        found = resolve(data, self.among, job.settings.ambiguity, reference)
        return {
            **{f"beginning.{name}": values for name, values in beginning.arrays().items()},
            **{f"settings.{name}": getattr(found.settings, name) for name in MATRICES},
            **{f"placed.{name}": getattr(found.placed, name) for name in PLACED},
            **mean_arrays(found.mean),
            "priority": sample.priority,
            "names": np.array([name.encode() for name in found.settings.names]),
            "same": np.array([name.encode() for name in found.same], dtype="S32"),
            "found": np.array([found.significance, float(found.resolved)]),
        }


def mean_arrays(mean: Mean) -> Partial:
    """Return a mean as named arrays; `mean_from` takes them back."""
    return {"mean.keys": mean.keys, "mean.sums": mean.sums, "mean.spread": np.array(mean.spread)}


def mean_from(arrays: Partial) -> Mean:
    """Return the mean of `mean_arrays`."""
    return Mean(arrays["mean.keys"], arrays["mean.sums"], float(arrays["mean.spread"]))


def resolution_from(arrays: Partial) -> Resolution:
    """Return the resolution that `Resolve` found."""
    names = tuple(name.decode() for name in arrays["names"].tolist())
    significance, resolved = arrays["found"].tolist()
    return Resolution(
        settings=Settings(names, *(arrays[f"settings.{name}"] for name in MATRICES)),
        same=tuple(name.decode() for name in arrays["same"].tolist()),
        placed=Placed(*(arrays[f"placed.{name}"] for name in PLACED)),
        significance=significance,
        resolved=bool(resolved),
        mean=mean_from(arrays),
    )


@dataclass(frozen=True)
class Place:
    """An update over shards: the setting of each lattice; ``resolution`` is the node that `Resolve` made, of this lineage."""

    job: AmbiguityJob
    resolution: Path
    resolved: str

    @property
    def lineage(self) -> str:
        """Hash of the parameters."""
        return self.job.hash("place", self.resolved)

    def accumulate(self, blocks: Iterable[UnitReader]) -> Partial:
        """Return the settings of the lattices of some shards: (n_lattices,) arrays, and numbers of shard and lattice."""
        arrays = read_node(self.resolution)[1]
        found, beginning = resolution_from(arrays), Beginning.from_arrays(_under("beginning.", arrays))
        known = {int(number): row for row, number in enumerate(arrays["priority"].tolist())}
        parts = [self._of(block, found, beginning, known) for block in blocks]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _of(self, block: UnitReader, found: Resolution, beginning: Beginning, known: dict[int, int]) -> Partial:
        n = len(block.lattices())
        priority = priorities(block.block, n).tolist()
        rows = np.array([known.get(number, -1) for number in priority], dtype=np.int64)
        if np.all(rows >= 0):
            placed = {name: getattr(found.placed, name)[rows] for name in PLACED}
        else:
            knobs = self.job.settings.ambiguity
            data = normalized(nearest(self.job.observations(block)), beginning, self.job.settings, knobs.d_min)
            fresh = place(data, found, knobs)
            in_sample = rows >= 0
            placed = {
                name: np.where(in_sample, getattr(found.placed, name)[np.maximum(rows, 0)], getattr(fresh, name)) for name in PLACED
            }
        return placed | {"block": np.full(n, block.block, dtype=np.int32), "row": np.arange(n, dtype=np.int32)}


def _under(prefix: str, arrays: Partial) -> Partial:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


@lru_cache(maxsize=4)
def _settings_of(path: Path, lineage: str) -> Partial:
    """Return the settings of a leaf's lattices; workers take one block after the other of it."""
    return read_node(path, ("block", "setting", "doubt"))[1]


@dataclass(frozen=True)
class ReindexedReader(UnitReader):
    """A shard's reader with the lattices in other settings: ``operators`` (n, 3, 3), units of 1/24; ``left_out`` (n,)."""

    operators: NDArray[np.int64]
    left_out: NDArray[np.bool_]

    def result(self) -> UnitResult:
        """Return all tables, indices and matrices of lattices in their settings, without reflections of those left out."""
        return in_settings(UnitReader.result(self), self.operators, self.left_out)

    def lattices(self) -> LatticeTable:
        """Return the table of lattices in their settings."""
        return _lattices_moved(UnitReader.lattices(self), self.operators)


@dataclass(frozen=True)
class ReindexedShards(Shards):
    """Shards whose lattices are read in the settings found.

    ``folder`` and ``offsets`` are those of the nodes that `Place` made, ``lineages`` theirs; ``matrices`` (k, 3, 3) the operators
    of the settings as nested tuples; ``exclude``: lattices whose setting is not known are left out.
    """

    folder: Path
    offsets: tuple[int, ...]
    placing: str
    matrices: tuple[tuple[tuple[int, ...], ...], ...]
    exclude: bool

    def lineage(self, block: int) -> str:
        """Return the hash of the shard's lineage and of what the settings depend on."""
        return hashlib.sha256(f"{Shards.lineage(self, block)} {self.placing} {self.exclude}".encode()).hexdigest()

    def open(self, block: int) -> ReindexedReader:
        """Return the shard's reader."""
        leaf = int(np.searchsorted(self.offsets, block, side="right")) - 1
        known = _settings_of(node_path(self.folder, 0, leaf), self.placing)
        rows = known["block"] == block
        operators = np.array(self.matrices, dtype=np.int64)[known["setting"][rows]]
        left_out = (known["doubt"][rows] != Doubt.NONE) & self.exclude
        run, unit, _, path = self.path(block)
        return ReindexedReader(run, unit, path, block, operators, left_out, damaged=block in self.damaged)


def in_settings(result: UnitResult, operators: NDArray[np.int64], left_out: NDArray[np.bool_]) -> UnitResult:
    """Return tables of a unit with its lattices in other settings.

    Parameters
    ----------
    result
        As it is in the shard.
    operators
        (n_lattices, 3, 3), see `ambiguity_operators`.
    left_out
        (n_lattices,) whether a lattice keeps no reflection.
    """
    moved = _different(operators)
    reflections = result.reflections
    if left_out.any() and len(reflections):
        reflections = reflections.select(~left_out[reflections["lattice"]])
    if not len(moved):
        return replace(result, reflections=reflections)
    return replace(
        result,
        lattices=_lattices_moved(result.lattices, operators),
        indexed=_moved(result.indexed, operators, moved),
        reflections=_moved(reflections, operators, moved),
    )


def _different(operators: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.flatnonzero(np.any(operators != DEN * np.eye(3, dtype=np.int64), axis=(1, 2)))


def _lattices_moved(table: LatticeTable, operators: NDArray[np.int64]) -> LatticeTable:
    """Return lattices with the matrices and cells of their settings."""
    matrices, cells = table["A"].copy(), table["cell"].copy()
    for lattice in _different(operators):
        # A' h' = A h with h' = h R, so that A' is A times the inverse of R transposed
        matrices[lattice] = matrices[lattice] @ np.linalg.inv(operators[lattice] / DEN).T
        cells[lattice] = cell_of(np.linalg.inv(matrices[lattice]))
    return table.replace(A=matrices, cell=cells)


def _moved(table: Indexed, operators: NDArray[np.int64], moved: NDArray[np.int64]) -> Indexed:
    """Return the reflections of some lattices with other indices."""
    hkl = table["hkl"].copy()
    different = np.isin(table["lattice"], moved)
    for matrix in np.unique(operators[moved], axis=0):
        rows = different & np.all(operators[table["lattice"]] == matrix, axis=(1, 2))
        hkl[rows] = reindexed(hkl[rows], matrix)
    return table.replace(hkl=hkl)

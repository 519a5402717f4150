"""Merging, from shards to buckets of reflections: what workers do with parts of the shards.

`Survey` is a fold over the shards: how much there is, and a sample of the lattices. `Whole` merges a run that is small enough in
one task. Of a larger one `Partition` sorts the observations of some shards into buckets of their index in the asymmetric unit,
and `Gather` makes each bucket of its slices. `stages.merge_passes` goes on from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.lattice_block import LatticeBlock
from xfelproc.algorithms.merging.lattice_models import LatticeModels
from xfelproc.algorithms.merging.merge import Final, scale_in_memory
from xfelproc.algorithms.merging.observations import Observations, concatenate, corrected, half_set, usable_rows
from xfelproc.algorithms.merging.reduction import find_space_group, pack, reduce_indices, to_asu
from xfelproc.algorithms.merging.sample import Beginning, Sample, begin, full_enough, partialities, priorities, starting_scales
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.algorithms.merging.symmetry_notes import Absences, extinct, without_absences
from xfelproc.errors import DamagedPartError, DataError
from xfelproc.io.columns import read_columns
from xfelproc.io.exchange.mtz_pieces import unmerged_rows
from xfelproc.io.manifest_reader import ManifestReader
from xfelproc.io.nodes import Partial, read_node, write_node
from xfelproc.io.slices import read_slice, write_slices
from xfelproc.models.tables import FrameTable, ReflectionTable
from xfelproc.stages.fold import UnitReader

ROW = np.dtype(
    [
        ("lattice", "<i4"),
        ("hkl", "<i4", (3,)),
        *((name, "<f4") for name in ("intensity", "sigma", "d", "excitation", "partiality", "polarization", "fast", "slow")),
        ("panel", "<i4"),
        ("flags", "<u2"),
    ]
)
"""What is kept of a reflection until it is merged; the lattice is numbered over all shards."""

LATTICE_ARRAYS = ("half", "cell", "A", "wavelength")


@dataclass(frozen=True)
class MergeJob:
    """What all tasks of a merging share: parameters, space group, the hash of all that is merged, and the folder of its files."""

    settings: Merge
    space_group: str
    lineage: str
    folder: Path

    @property
    def group(self) -> gemmi.SpaceGroup:
        """The space group."""
        return find_space_group(self.space_group)

    def hash(self, *words: object) -> str:
        """Return the lineage of a part of the merging."""
        return hashlib.sha256(" ".join([self.lineage, *map(str, words)]).encode()).hexdigest()

    def bucket(self, number: int) -> Path:
        """Return where a bucket is."""
        return self.folder / "buckets" / f"{number:05d}.h5"

    def chunk(self, first: int) -> Path:
        """Return where the observations of some shards are, of which ``first`` is the first."""
        return self.folder / "chunks" / f"{first:08d}.h5"

    def leaf(self, first: int) -> Path:
        """Return where the lattices of some shards are, of which ``first`` is the first."""
        return self._of("leaves", first)

    def block(self, first: int) -> Path:
        """Return where the same lattices are as a block, whose observations know their unique reflections."""
        return self._of("blocks", first)

    def models(self, number: int, first: int) -> Path:
        """Return where the models are that a pass gave these lattices."""
        return self._of(f"models/{number}", first)

    def rows(self, first: int) -> Path:
        """Return where the rows of these lattices for the unmerged MTZ are."""
        return self._of("rows", first)

    def lattices(self, first: int) -> Path:
        """Return where it is said what became of these lattices."""
        return self._of("lattices", first)

    def _of(self, what: str, first: int) -> Path:
        return self.folder / what / f"{first:08d}.bin"

    def read_columns(self, path: Path, lineage: str, names: tuple[str, ...] | None = None) -> Partial:
        """Return arrays of one of the plain files. Raises DamagedPartError as `read` does."""
        try:
            return read_columns(path, lineage, names)
        except DataError as error:
            raise self.damaged(path) from error

    def read_block(self, first: int) -> LatticeBlock:
        """Return a block. Raises DamagedPartError as `read` does."""
        return LatticeBlock.from_arrays(self.read_columns(self.block(first), self.hash("block", first)))

    def read_models(self, number: int, first: int) -> LatticeModels:
        """Return the models of a block's lattices after a pass. Raises DamagedPartError as `read` does."""
        return LatticeModels.from_arrays(self.read_columns(self.models(number, first), self.hash("models", number, first)))

    def unmerged(self, number: int) -> Path:
        """Return where the rows of a bucket for the unmerged MTZ are."""
        return self.folder / "unmerged" / f"{number:05d}.h5"

    def read(self, path: Path, lineage: str, names: tuple[str, ...] | None = None) -> Partial:
        """Return arrays of one of these files.

        Raises
        ------
        DamagedPartError
            If it is missing, damaged, or of another merging.
        """
        try:
            found, arrays = read_node(path, names)
        except DataError as error:
            raise self.damaged(path) from error
        if found != lineage:
            raise DamagedPartError(f"is of another merging: remove {self.folder} and run the same command again", path)
        return arrays

    def slice(self, first: int, number: int) -> NDArray[Any]:
        """Return the rows of a bucket in the observations of some shards, of which ``first`` is the first.

        Raises
        ------
        DamagedPartError
            If they are missing, damaged, or of another merging.
        """
        path = self.chunk(first)
        try:
            return read_slice(path, self.hash("chunk", first), number)
        except DataError as error:
            raise self.damaged(path) from error

    def damaged(self, path: Path) -> DamagedPartError:
        """Return the error of a file that is missing or damaged."""
        # not the file alone: the node that tells that it was made would still be there
        return DamagedPartError(f"is missing or damaged: remove {self.folder} and run the same command again", path)


@dataclass(frozen=True)
class Lattices:
    """The lattices of some shards with their usable reflections, numbered from 0."""

    reflections: ReflectionTable
    half: NDArray[np.uint8]
    cell: NDArray[np.float64]
    A: NDArray[np.float64]
    wavelength: NDArray[np.float64]

    @classmethod
    def of(cls, block: UnitReader, settings: Merge) -> Lattices:
        """Read a shard."""
        result = block.result()
        frames, row = result.frames, result.lattices["frame"]
        return cls(
            result.reflections.select(usable_rows(result.reflections, settings)),
            _half_sets(block.run, block.unit, frames, row),
            result.lattices["cell"],
            result.lattices["A"],
            frames["wavelength"][row],
        )

    @classmethod
    def joined(cls, parts: list[Lattices]) -> Lattices:
        """Return consecutive shards as one."""
        offsets = np.cumsum([0] + [len(p) for p in parts])
        moved = [
            p.reflections.replace(lattice=p.reflections["lattice"] + offset) for p, offset in zip(parts, offsets[:-1], strict=True)
        ]
        arrays = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls) if f.name != "reflections"}
        return cls(ReflectionTable.concatenate(moved), **arrays)

    def __len__(self) -> int:
        return len(self.half)

    def observations(self) -> Observations:
        """Return the reflections as observations."""
        return corrected(self.reflections, self.half)

    def arrays(self) -> Partial:
        """Return what is known of each lattice, (n, ...)."""
        return {name: getattr(self, name) for name in LATTICE_ARRAYS}


def _half_sets(run: Path, unit: int, frames: FrameTable, row: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return the half-sets of the lattices on these rows of a unit's frames."""
    reader = ManifestReader(run / "manifest.h5")
    try:
        given = reader.unit_input(unit)
    finally:
        reader.close()
    identity = zip(frames["source"][row].tolist(), frames["index"][row].tolist(), strict=True)
    names = {number: given.sources.name(given.row(number)) for number in given.numbers.tolist()}
    return np.array([half_set(names[source], index) for source, index in identity], dtype=np.uint8)


@dataclass(frozen=True)
class Survey:
    """A fold over shards: a sample of the lattices, and the numbers of lattices and observations of each shard."""

    job: MergeJob

    @property
    def lineage(self) -> str:
        """Hash of the parameters."""
        return self.job.hash("survey")

    def accumulate(self, blocks: Iterable[UnitReader]) -> Partial:
        """Return the survey of some shards."""
        nothing = corrected(ReflectionTable(0), np.zeros(0, dtype=np.uint8))
        sample, absences, numbers = Sample.of(nothing, np.zeros(0, dtype=np.uint64)), Absences(), []
        for block in blocks:
            lattices = Lattices.of(block, self.job.settings)
            observations, absent = without_absences(lattices.observations(), self.job.group)
            sample = sample.with_more(Sample.of(observations, priorities(block.block, len(lattices))))
            absences += absent
            numbers.append([len(lattices), len(observations)])
        counts = np.array(numbers, dtype=np.int64).reshape(-1, 2)
        return sample.arrays() | {
            "lattices": counts[:, 0],
            "observations": counts[:, 1],
            "absences": np.array([absences.count, absences.signal]),
        }

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return the survey of both."""
        joined = {name: np.concatenate([first[name], second[name]]) for name in ("lattices", "observations")}
        sample = Sample.from_arrays(first).with_more(Sample.from_arrays(second))
        return sample.arrays() | joined | {"absences": first["absences"] + second["absences"]}


@dataclass(frozen=True)
class Whole:
    """All shards merged in one task: the result has the size of the unique reflections and of the lattices."""

    job: MergeJob

    @property
    def lineage(self) -> str:
        """Hash of the parameters."""
        return self.job.hash("whole")

    def accumulate(self, blocks: Iterable[UnitReader]) -> Partial:
        """Merge; publish the rows of the unmerged MTZ as bucket 0."""
        parts, priority = [], [np.zeros(0, dtype=np.uint64)]
        for block in blocks:
            parts.append(Lattices.of(block, self.job.settings))
            priority.append(priorities(block.block, len(parts[-1])))
        lattices = Lattices.joined(parts)
        observations = concatenate([p.observations() for p in parts])
        final, unmerged = scale_in_memory(observations, np.concatenate(priority), self.job.group, self.job.settings)
        rows = unmerged_rows(unmerged)
        write_node(self.job.unmerged(0), self.job.hash("unmerged", 0), {"rows": rows})
        known = {f"lattices.{name}": values for name, values in lattices.arrays().items()}
        return final_arrays(final) | known | {"n_usable": np.array(len(observations)), "n_unmerged": np.array([len(rows)])}


def final_arrays(final: Final) -> Partial:
    """Return final results as named arrays; `final_of` takes them back."""
    groups: dict[str, Partial] = {
        "state": final.state.arrays(),
        "rows": final.rows,
        "sums": final.sums,
        "beginning": final.beginning.arrays(),
    }
    arrays = {f"{group}.{name}": values for group, members in groups.items() for name, values in members.items()}
    return arrays | {
        "offered": final.offered,
        "half": final.half,
        "limits": np.array(final.limits or ()),
        "absences": np.array([final.absences.count, final.absences.signal]),
    }


@dataclass(frozen=True)
class Begin:
    """What all parts must share, from the survey: one task."""

    job: MergeJob
    n_buckets: int

    @property
    def lineage(self) -> str:
        """Hash of the parameters."""
        return self.job.hash("begin", self.n_buckets)

    def accumulate(self, blocks: Iterable[Partial]) -> Partial:
        """Return it; the one block is the survey."""
        (survey,) = blocks
        beginning = begin(Sample.from_arrays(survey), self.n_buckets, self.job.group, self.job.settings)
        return beginning.arrays() | {"first_lattice": np.cumsum(survey["lattices"]) - survey["lattices"]}


@dataclass(frozen=True)
class Partition:
    """Observations of some shards, sorted into buckets: published as a chunk; returned is what is known of each lattice."""

    job: MergeJob
    begin: Path

    @property
    def lineage(self) -> str:
        """Hash of the parameters."""
        return self.job.hash("partition")

    def accumulate(self, blocks: Iterable[UnitReader]) -> Partial:
        """Write the chunk; return scale and number of observations of each lattice, and the lattices' own arrays."""
        job, first, parts = self.job, -1, []
        for block in blocks:
            first = block.block if first < 0 else first
            parts.append(Lattices.of(block, job.settings))
        _, known = read_node(self.begin)
        beginning, lattices = Beginning.from_arrays(known), Lattices.joined(parts)
        table, group = lattices.reflections, job.group
        table = table.select(~extinct(table["hkl"], group)) if len(table) else table
        observations = corrected(table, lattices.half)
        partiality = partialities(observations, beginning.widths, job.settings)
        keep = full_enough(partiality, job.settings)
        table, observations, partiality = table.select(keep), observations.select(keep), partiality[keep]
        bucket = beginning.bucket(pack(to_asu(table["hkl"], group)[0]))
        order = np.argsort(bucket, kind="stable")
        bounds = np.searchsorted(bucket[order], np.arange(beginning.n_buckets + 1))
        rows = _rows(table.select(order), int(known["first_lattice"][first]))
        write_slices(job.chunk(first), job.hash("chunk", first), rows, bounds)
        counts = np.bincount(observations.lattice, minlength=len(lattices))
        return lattices.arrays() | {"scale": starting_scales(observations, partiality, beginning), "offered": counts}


def _rows(table: ReflectionTable, first_lattice: int) -> NDArray[Any]:
    rows = np.empty(len(table), dtype=ROW)
    for name in ROW.names or ():
        rows[name] = table[name]
    rows["lattice"] += first_lattice
    return rows


@dataclass(frozen=True)
class Gather:
    """A bucket of all its slices, sorted by reflection, then lattice; ``chunks`` are the first shards of the chunks."""

    job: MergeJob
    chunks: tuple[int, ...]

    @property
    def lineage(self) -> str:
        """Hash of the parameters."""
        return self.job.hash("gather")

    def accumulate(self, blocks: Iterable[int]) -> Partial:
        """Write the bucket; return its number of reflections and of rows, and the extremes of 1/d²."""
        job = self.job
        (number,) = blocks
        rows = np.concatenate([job.slice(first, number) for first in self.chunks])
        reduced = reduce_indices(np.ascontiguousarray(rows["hkl"]), job.group)
        rows = rows[reduced.order]
        arrays = {name: np.ascontiguousarray(rows[name]) for name in ROW.names or ()}
        arrays |= {"starts": reduced.starts, "unique": reduced.unique, "isym": reduced.isym[reduced.order]}
        write_node(job.bucket(number), job.hash("bucket", number), arrays)
        inverse_d2 = 1.0 / rows["d"].astype(np.float64) ** 2
        limits = [inverse_d2.min(), inverse_d2.max()] if len(rows) else [np.inf, -np.inf]
        return {"n": np.array([len(reduced.unique), len(rows)]), "limits": np.array(limits)}

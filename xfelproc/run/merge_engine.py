"""A merging at work: leaves from shards, passes over the leaves, rows of the unmerged MTZ; see docs/explanation/architecture.md."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.cycle import CycleState, advance
from xfelproc.algorithms.merging.filters import Consensus, lost_record, nothing_left
from xfelproc.algorithms.merging.group_sums import NUMBERS, is_of_group, sums_of_group
from xfelproc.algorithms.merging.merge import Final
from xfelproc.algorithms.merging.reference import Sums
from xfelproc.algorithms.merging.sample import MAX_OBSERVATIONS
from xfelproc.algorithms.merging.symmetry_notes import Absences
from xfelproc.errors import DataError, NothingLeftError
from xfelproc.io.columns import ColumnFile
from xfelproc.io.exchange.mtz import BatchModel
from xfelproc.io.exchange.mtz_pieces import Rows
from xfelproc.io.nodes import Partial, find_node, read_node, write_node
from xfelproc.kernels.unmerged import N_COLUMNS, place_rows
from xfelproc.models.tables import ScaledLatticeTable
from xfelproc.run.folding import ITERATIONS_KEPT, Gathering, read_partial
from xfelproc.run.merge_influence import Judge, Judged
from xfelproc.run.merge_reference import GivenReference
from xfelproc.stages.fold import MOST_LEAVES, Nodes, Shards, cut_leaves
from xfelproc.stages.merge_cycles import BOUNDS, Begin, LeafNumbers, Output, Pass
from xfelproc.stages.merge_leaves import MOST_CELLS, Leaves
from xfelproc.stages.merge_parts import MergeJob

STAGE = "merge"
LEAF_SIZE = 1 << 19
"""Observations of a leaf, about: some 150 MB of memory."""
OBSERVATIONS_A_SUM = 32
FEWEST_SUMS = 8
"""Leaves are added up in parts: each yields a dozen numbers for every unique reflection, so that a part should have many
observations of it, unless the parts would be too few to share the work."""
CANDIDATES = 8
"""Times more lattices than the samples need are looked at: some have nothing to offer."""
SURVEYED = ("first", "n_lattices", "n_observations", "absences", "wavelength", "counts", "cells", "wavelengths", "lost")


@dataclass(frozen=True)
class Offered:
    """Reflections, lattices and frames in each shard, as the headers say, (n_shards,), and the number of shards of each run."""

    reflections: NDArray[np.int64]
    lattices: NDArray[np.int64]
    frames: NDArray[np.int64]
    runs: tuple[int, ...]


@dataclass(frozen=True)
class GroupEnd:
    """A group's final sums, and the mean wavelength (Å) of its merged lattices."""

    final: Final
    wavelength: float


@dataclass(frozen=True)
class Finished:
    """The end of a merging: the last state, the final sums, and where the rest is."""

    state: CycleState
    sums: Sums
    survey: Partial
    job: MergeJob
    judged: Judged
    buckets: tuple[int, ...]
    """Bounds, in the unique reflections, of the parts in which rows are sorted."""

    @property
    def n_unmerged(self) -> int:
        """Rows of the unmerged MTZ."""
        return int(self.sums["n"][0])

    @property
    def cell(self) -> list[float]:
        """Median cell of the lattices."""
        return [float(v) for v in self.survey["cell"]]

    @property
    def wavelength(self) -> float:
        """Mean wavelength of the lattices, Å."""
        return float(self.survey["wavelength"][0]) / max(1, int(self.survey["n_lattices"].sum()))

    @property
    def final(self) -> Final:
        """What the merged data are made of."""
        absences = Absences(int(self.survey["absences"][0]), float(self.survey["absences"][1]))
        sums = {name: values for name, values in self.sums.items() if name not in ("n", "reasons") and not is_of_group(name)}
        return Final(self.state, sums, absences, int(self.sums["n"][1]), int(self.sums["n"][2]), self.sums["reasons"])

    def group(self, number: int) -> GroupEnd:
        """Return what a group's merged data are made of."""
        sums = sums_of_group(self.sums, number)
        reasons, (n_lattices, n_used, wavelengths) = sums.pop("reasons"), sums.pop(NUMBERS).tolist()
        final = Final(self.state, sums, Absences(0, 0.0), int(n_lattices), int(n_used), reasons)
        return GroupEnd(final, wavelengths / max(1.0, n_used))

    @cached_property
    def _first(self) -> list[int]:
        first: list[int] = self.survey["first"].tolist()
        return first

    def rows(self) -> Iterator[Rows]:
        """Yield the rows of the unmerged MTZ, bucket by bucket of reflections.

        Raises
        ------
        DamagedPartError
            If a part of them is missing or damaged.
        """
        job = self.job
        try:
            files = [ColumnFile(job.rows(first), job.hash("rows", first)) for first in self._first]
            inner = [file.read(BOUNDS) for file in files]
            for number, (a, b) in enumerate(itertools.pairwise(self.buckets)):
                starts = np.zeros(b - a + 1, dtype=np.int64)
                for bounds in inner:
                    starts += bounds[a : b + 1] - bounds[a]
                rows, place = np.empty((int(starts[-1]), N_COLUMNS), dtype=np.float32), starts[:-1]
                for file, bounds in zip(files, inner, strict=True):
                    place_rows(file.read(str(number)), bounds[a : b + 1], place, rows)
                yield rows
        except DataError as error:
            raise job.damaged(Path(error.path or job.folder)) from error

    def lattices(self) -> Iterator[ScaledLatticeTable]:
        """Yield the rows of the lattices, leaf by leaf."""
        names = tuple(column.name for column in ScaledLatticeTable.SCHEMA)
        for first in self._first:
            known = self.job.read_columns(self.job.lattices(first), self.job.hash("lattices", first), names)
            yield ScaledLatticeTable(None, **known)

    @property
    def left_out(self) -> dict[str, Any]:
        """What ``merge.json`` says of observations and stretches that were left out."""
        return {"observations": lost_record(self.survey["lost"]), "stretches": self.judged.record()}

    def batches(self, bandwidth: float) -> Iterator[BatchModel]:
        """Yield the model of each lattice."""
        for first in self._first:
            known = self.job.read_columns(self.job.lattices(first), self.job.hash("lattices", first))
            for matrix, wavelength in zip(known["A"], known["wavelength"].tolist(), strict=True):
                yield BatchModel(matrix, wavelength, bandwidth=bandwidth)


@dataclass
class Engine:
    """Merges the shards of runs; ``leaf_size`` are the observations of a leaf, ``reference`` what they are compared to as well."""

    gathering: Gathering
    job: MergeJob
    shards: Shards
    offered: Offered
    leaf_size: int = LEAF_SIZE
    reference: GivenReference = field(default_factory=GivenReference)

    def run(self) -> Finished | None:
        """Return the end; None if there are no lattices.

        Raises
        ------
        NothingLeftError
            If all lattices, or all of their observations, are left out.
        """
        job, gathering = self.job, self.gathering
        root = self._leaves()
        survey = read_node(root, SURVEYED)[1]
        counts = survey.pop("counts")
        if not len(counts):
            self._nothing_left(survey, np.zeros(0, dtype=np.int64))
            return None
        consensus = Consensus.of(survey.pop("cells"), survey.pop("wavelengths"), job.space_group)
        survey["cell"] = consensus.cell
        (begin,) = gathering.update(Begin(job), f"{STAGE}/begin", 0, Nodes((root,)), (0, 1))
        blocks, parts = LeafNumbers(job, tuple(survey["first"].tolist())), self._parts(survey["n_observations"], len(counts))
        start = CycleState.from_arrays(read_partial(begin), job.settings)
        start = replace(start, given=self.reference.intensities(start.unique, job.space_group))
        judge = Judge(gathering, job, blocks, parts, self.offered.frames, self.offered.runs, STAGE)
        number, state, judged = self._known() or (0, start, Judged())
        while True:
            path, cut = self._write_state(number, state, judged), None
            if state.finished:
                if not judge.wanted(judged):
                    break
                cut, judged = judge.judge(path, number, judged)
                if cut is None:
                    break
            sums = self._pass(number, Pass(job, path, number, consensus, cut), blocks, parts)
            if not sums["n_used"][0]:
                self._nothing_left(survey, sums["reasons"])
            state, number = advance(state, sums), number + 1
        before = np.concatenate([[0], np.cumsum(survey["n_lattices"])]).tolist()
        lattices = dict(zip(blocks.first, before[:-1], strict=True))
        buckets = self._buckets(counts)
        output = Output(job, path, number, lattices, buckets, consensus)
        sums = read_partial(gathering.fold(output, f"{STAGE}/output", 0, blocks, parts))
        return Finished(state, sums, survey, job, judged, buckets)

    def _leaves(self) -> Path:
        n_lattices, n = int(self.offered.lattices.sum()), int(self.offered.reflections.sum())
        shares = (CANDIDATES * MAX_OBSERVATIONS / max(1, n), CANDIDATES * MOST_CELLS / max(1, n_lattices))
        offsets = cut_leaves(self.offered.reflections, self.leaf_size)
        return self.gathering.fold(Leaves(self.job, *shares), f"{STAGE}/leaves", 0, self.shards, offsets)

    def _parts(self, observations: NDArray[np.int64], n_unique: int) -> tuple[int, ...]:
        """Return the bounds of the parts in which leaves are added up."""
        total = int(observations.sum())
        wanted = min(MOST_LEAVES, max(FEWEST_SUMS, total // (OBSERVATIONS_A_SUM * n_unique)))
        return cut_leaves(observations, max(1, -(-total // wanted)))

    def _buckets(self, counts: NDArray[np.int64]) -> tuple[int, ...]:
        """Return the bounds of buckets of unique reflections: of as many rows as a leaf, about."""
        return cut_leaves(counts, self.leaf_size)

    def _nothing_left(self, survey: Partial, reasons: NDArray[np.int64]) -> None:
        n_lattices = int(survey["n_lattices"].sum())
        if n_lattices:
            raise NothingLeftError(nothing_left(n_lattices, reasons, survey["lost"]))

    def _pass(self, number: int, one: Pass, blocks: LeafNumbers, parts: tuple[int, ...]) -> Sums:
        sums = read_partial(self.gathering.fold(one, f"{STAGE}/pass", number, blocks, parts))
        # what this pass was made of is needed no more: it made models of those of the one before
        shutil.rmtree(self.job.folder / f"models/{number - ITERATIONS_KEPT}", ignore_errors=True)
        return sums

    def _state_path(self, number: int) -> Path:
        return self.job.folder / "states" / f"{number:04d}.h5"

    def _write_state(self, number: int, state: CycleState, judged: Judged) -> Path:
        path = self._state_path(number)
        write_node(path, self.job.hash("state", number), state.arrays() | judged.arrays())
        return path

    def _known(self) -> tuple[int, CycleState, Judged] | None:
        """Return the last state that was written, with its number, and what was judged by then."""
        folder = self.job.folder / "states"
        numbers = sorted((int(p.stem) for p in folder.iterdir() if p.stem.isdigit()), reverse=True) if folder.is_dir() else []
        for number in numbers:
            arrays = find_node(self._state_path(number), self.job.hash("state", number))
            if arrays is not None:
                return number, CycleState.from_arrays(arrays, self.job.settings), Judged.from_arrays(arrays)
        return None

"""Merging of shards, of one run or of several, by workers; see docs/explanation/architecture.md for the scheme."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.merge import Final, MergeResult, Symmetry, result_of
from xfelproc.algorithms.merging.sample import Beginning
from xfelproc.algorithms.merging.scaling import SUMS, Phase, ScaleState, advance, initial_state
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.algorithms.merging.symmetry_notes import Absences
from xfelproc.errors import ConfigError, DamagedPartError
from xfelproc.io.atomic import write_pieces
from xfelproc.io.exchange.mtz import BatchModel, MtzHeader
from xfelproc.io.exchange.mtz_pieces import Rows, unmerged_pieces
from xfelproc.io.nodes import Partial, find_node, read_node, write_node
from xfelproc.io.shards import read_header, shard_path
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.tables import ShellTable
from xfelproc.run.ambiguity import Indexing, forget, resolved_indexing
from xfelproc.run.comparison import compared
from xfelproc.run.downstream import finish, write_table_one
from xfelproc.run.folding import Gathering, block_leaves, read_partial
from xfelproc.run.geometry import PROCESS
from xfelproc.run.lineage import digest, file_identity, versions
from xfelproc.run.target import MergingGroup
from xfelproc.stages.fold import Nodes, Shards, cut_leaves
from xfelproc.stages.merge_parts import Begin, Gather, MergeJob, Partition, Survey, Whole
from xfelproc.stages.merge_passes import Numbers, Pass, final_of

STAGE = "merge"
BUCKET_SIZE = 1 << 19
"""Observations of a bucket, about: some 250 MB of memory."""
FEWEST_LEAVES, MOST_LEAVES = 8, 64
OBSERVATIONS_A_SUM = 4
"""Leaves of a pass: each yields six numbers for every lattice, which should be fewer than the numbers read: in a leaf a lattice
has this many observations or more, unless the leaves would be too few to share the work."""


@dataclass(frozen=True)
class MergeInput:
    """A run to merge: its folder (with ``manifest.h5`` and ``shards``), its number of units, all processed, and the stage whose
    shards are its result.
    """

    run: Path
    n_units: int
    stage: str = PROCESS


@dataclass(frozen=True)
class Scaled:
    """What merging found, and where the rest of it is."""

    final: Final
    cells: NDArray[np.float64]
    wavelengths: NDArray[np.float64]
    lattice_files: tuple[Path, ...]
    lattice_prefix: str
    n_unmerged: tuple[int, ...]
    job: MergeJob

    def rows(self) -> Iterator[Rows]:
        """Yield the rows of the unmerged MTZ, bucket by bucket."""
        for number in range(len(self.n_unmerged)):
            yield self.job.read(self.job.unmerged(number), self.job.hash("unmerged", number))["rows"]

    def batches(self, bandwidth: float) -> Iterator[BatchModel]:
        """Yield the model of each lattice."""
        names = [f"{self.lattice_prefix}{name}" for name in ("A", "wavelength")]
        for path in self.lattice_files:
            arrays = read_node(path, names)[1]
            for matrix, wavelength in zip(*(arrays[name] for name in names), strict=True):
                yield BatchModel(matrix, float(wavelength), bandwidth=bandwidth)


@dataclass(frozen=True)
class FoundShards:
    """Runs to merge, the hash of all their shards' lineages, the frames of each shard, and the reflections in all of them."""

    inputs: tuple[MergeInput, ...]
    lineage: str
    frames: tuple[int, ...]
    reflections: int
    reading: Shards | None = None
    """How the shards are to be read, if not as they are."""

    @classmethod
    def of(cls, inputs: Sequence[MergeInput]) -> FoundShards:
        """Read the headers of the shards.

        Raises
        ------
        ConfigError
            If a unit is missing.
        """
        lineages, frames, reflections = [], [], 0
        for given in inputs:
            for unit in range(given.n_units):
                header = read_header(shard_path(given.run, given.stage, unit))
                if header is None:
                    raise ConfigError(f"merge: unit {unit} of {given.run} is not processed yet: run the same job without --only")
                lineages.append(header.lineage)
                frames.append(sum(header.counts[status.name] for status in FrameStatus))
                reflections += header.counts["REFLECTIONS"]
        return cls(tuple(inputs), digest(lineages), tuple(frames), reflections)

    @property
    def blocks(self) -> Shards:
        """The shards as blocks of a fold."""
        if self.reading is not None:
            return self.reading
        stages = {given.stage for given in self.inputs}
        stage = stages.pop() if len(stages) == 1 else tuple(given.stage for given in self.inputs)
        return Shards(stage, tuple((given.run.absolute(), given.n_units) for given in self.inputs))


def merge_lineage(gathering: Gathering, shards: FoundShards, settings: Merge, group: MergingGroup) -> str:
    """Return the hash of what a merging depends on: files of equal lineage need not be made again."""
    sizes = [gathering.execution.fold_size, gathering.execution.bucket_size]
    symmetry = [group.space_group, group.proposal]
    reference, flags = settings.ambiguity.reference, settings.free_from
    content = {"shards": shards.lineage, "merge": settings.model_dump(mode="json"), "symmetry": symmetry, "sizes": sizes}
    files = {"reference": reference and file_identity(reference), "free": flags and file_identity(flags)}
    files["compared"] = settings.compare_to and file_identity(settings.compare_to)
    return digest({**content, **files, "versions": versions()})


def merge_inputs(
    gathering: Gathering,
    shards: FoundShards,
    settings: Merge,
    group: MergingGroup,
    output: Path,
    bandwidth: float = 0.0,
    notes: Sequence[str] = (),
) -> dict[str, Any] | None:
    """Merge the shards of runs into ``merged.mtz``, ``merged.h5``, ``table1.txt`` and ``unmerged.mtz``.

    For one run `run.stage_merge` calls this. For several (a campaign's group of the same sample, dose or delay): make a
    `Gathering` over a `RunDirectory` of the group's own folder (``create`` it, hold its lock), and give the runs, as
    ``FoundShards.of([MergeInput(folder, n_units), ...])``, in an order that does not depend on when they ended, such as that of
    the archive's table: lattices are numbered in that order, and the bytes depend on it. `merge_lineage` tells whether files
    made before are still good. The runs' folders are only read. Names of files should differ from run to run, since half-sets
    are a hash of file name and frame number. Cells must be of one crystal form: the merged cell is the median over all
    lattices, and nothing is reindexed.

    Parameters
    ----------
    gathering
        Driver, journal, and the folder in whose ``gather/merge`` the work is done; it is removed at the end.
    shards
        Of the runs, in order.
    settings
        Section ``[merge]``.
    group
        Space group to merge in, and whether it is only proposed.
    output
        Existing folder of the two files.
    bandwidth
        Relative, for the batch headers.
    notes
        What the files' history says before the warnings of merging.

    Returns
    -------
    dict[str, Any] | None
        What ``merge.json`` says: cell, symmetry, warnings, numbers, statistics by shell, and what `run.downstream` adds. None, and
        no files, if no lattice has a usable observation.

    Raises
    ------
    DataError
        If a shard is damaged, or nothing is left after all cuts; a part of the merging that is damaged is made again, with all
        others, once.
    OutputError
        If something cannot be written; what is done is kept for the next attempt.
    """
    lineage = merge_lineage(gathering, shards, settings, group)
    job = MergeJob(settings, group.space_group, lineage, gathering.directory.gather.absolute() / STAGE)

    def attempt() -> dict[str, Any] | None:
        indexing = resolved_indexing(gathering, shards.blocks, shards.frames, settings, group.space_group, shards.lineage, output)
        scaled = _scaled(gathering, job, replace(shards, reading=indexing.blocks))
        return None if scaled is None else _write(scaled, settings, group, indexing, output, bandwidth, notes)

    try:
        record = attempt()
    except DamagedPartError as error:
        gathering.on_event("made_again", {"what": STAGE, "why": str(error)})
        shutil.rmtree(job.folder)
        record = attempt()
    shutil.rmtree(job.folder, ignore_errors=True)
    forget(gathering)
    if record is not None:
        write_table_one(record, [(given.run, given.stage, given.n_units) for given in shards.inputs], output)
    return record


def _scaled(gathering: Gathering, job: MergeJob, shards: FoundShards) -> Scaled | None:
    size = gathering.execution.bucket_size or BUCKET_SIZE
    return _whole(gathering, job, shards) if shards.reflections <= size else _Streamed(gathering, job, shards, size).run()


def _write(
    scaled: Scaled,
    settings: Merge,
    group: MergingGroup,
    indexing: Indexing,
    output: Path,
    bandwidth: float,
    notes: Sequence[str],
) -> dict[str, Any]:
    cell = [float(v) for v in np.median(scaled.cells, axis=0)]
    symmetry = Symmetry.chosen(group.space_group, settings, group.proposal, indexing.unresolved)
    result = compared(result_of(scaled.final, cell, symmetry, settings), settings, symmetry.group)
    said = (*notes, *indexing.warnings, *result.warnings)
    header = MtzHeader(result.cell, result.space_group, float(np.mean(scaled.wavelengths)), result.title, said)
    finished = finish(result.merged, header, settings, output)
    pieces = unmerged_pieces(sum(scaled.n_unmerged), scaled.rows(), scaled.batches(bandwidth), header)
    write_pieces(output / "unmerged.mtz", pieces)
    return finished.added_to(_record(result, indexing))


def rows_of(table: ShellTable) -> list[dict[str, Any]]:
    """Return a table of shells as plain rows."""
    return [{c.name: table[c.name][row].item() for c in table.SCHEMA} for row in range(len(table))]


def _record(result: MergeResult, indexing: Indexing) -> dict[str, Any]:
    return {
        "cell": list(result.cell),
        "space_group": result.space_group,
        "proposal": result.proposal,
        "ambiguity": list(indexing.unresolved),
        "settings": indexing.record,
        "warnings": [*indexing.warnings, *result.warnings],
        "title": result.title,
        "n_lattices": len(result.lattices),
        "n_lattices_used": int(np.count_nonzero(result.lattices["used"])),
        "overall": rows_of(result.overall)[0],
        "shells": rows_of(result.shells),
    }


def _whole(gathering: Gathering, job: MergeJob, shards: FoundShards) -> Scaled | None:
    """Merge in one task."""
    if not shards.reflections:
        return None
    paths = gathering.update(Whole(job), f"{STAGE}/whole", 0, shards.blocks, (0, len(shards.frames)))
    arrays = read_partial(paths[0])
    if not arrays["n_usable"]:
        return None
    cells, wavelengths, n_unmerged = arrays["lattices.cell"], arrays["lattices.wavelength"], tuple(arrays["n_unmerged"].tolist())
    return Scaled(final_of(arrays), cells, wavelengths, paths, "lattices.", n_unmerged, job)


@dataclass
class _Streamed:
    """A merging whose observations go through files."""

    gathering: Gathering
    job: MergeJob
    shards: FoundShards
    bucket_size: int

    def run(self) -> Scaled | None:
        job, blocks = self.job, self.shards.blocks
        leaves = cut_leaves(self.shards.frames, self.gathering.execution.fold_size)
        root = self.gathering.fold(Survey(job), f"{STAGE}/survey", 0, blocks, leaves)
        survey = {name: read_node(root, [name])[1][name] for name in ("observations", "absences")}
        total = int(survey["observations"].sum())
        if not total and not survey["absences"][0]:
            return None
        n_buckets = max(1, -(-total // self.bucket_size))
        (begin,) = self.gathering.update(Begin(job, n_buckets), f"{STAGE}/begin", 0, Nodes((root,)), (0, 1))
        begin_lineage, known = read_node(begin)
        beginning = Beginning.from_arrays(known)
        chunks = cut_leaves(survey["observations"], self.bucket_size)
        parts = self.gathering.update(Partition(job, begin), f"{STAGE}/partition", 0, blocks, chunks)
        lattices = _joined(parts, ("scale", "offered", "half", "cell", "wavelength"))
        n, limits = self._gather(beginning.n_buckets, chunks)
        groups = tuple(np.concatenate([[0], np.cumsum(n[:, 0])]).tolist())
        start = initial_state(lattices["scale"], lattices["offered"], beginning, job.settings)
        leaves = _pass_leaves(n, len(lattices["half"]))
        passes = _Passes(self.gathering, Pass(job, begin, begin_lineage, Path(), 0, groups), lattices["half"], leaves)
        state, result = passes.run(start)
        sums = {name: result[name] for name in SUMS if name in result}
        rows = {name: values for name, values in result.items() if name not in sums}
        n_unmerged = tuple(rows.pop("n_unmerged").tolist())
        absences = Absences(int(survey["absences"][0]), float(survey["absences"][1]))
        final = Final(state, rows, sums, lattices["offered"], lattices["half"], limits, absences, beginning)
        return Scaled(final, lattices["cell"], lattices["wavelength"], parts, "", n_unmerged, job)

    def _gather(self, n_buckets: int, chunks: tuple[int, ...]) -> tuple[NDArray[np.int64], tuple[float, float] | None]:
        """Make the buckets; return their numbers (buckets, 2) of reflections and rows, and the extremes of 1/d²."""
        gather = Gather(self.job, chunks[:-1])
        leaves = tuple(range(n_buckets + 1))
        paths = self.gathering.update(gather, f"{STAGE}/gather", 0, Numbers(), leaves)
        shutil.rmtree(self.job.folder / "chunks", ignore_errors=True)
        parts = [read_node(path)[1] for path in paths]
        n = np.array([part["n"] for part in parts])
        limits = np.array([part["limits"] for part in parts])
        return n, (float(limits[:, 0].min()), float(limits[:, 1].max())) if n[:, 1].any() else None


def _pass_leaves(n: NDArray[np.int64], n_lattices: int) -> tuple[int, ...]:
    """Return the leaves of a pass; ``n`` (buckets, 2) are reflections and rows of the buckets."""
    most = int(n[:, 1].sum()) // (OBSERVATIONS_A_SUM * max(1, n_lattices))
    return block_leaves(len(n), min(MOST_LEAVES, max(FEWEST_LEAVES, most)))


@dataclass
class _Passes:
    """The passes over the buckets, each a fold; the state between them is kept in a file, from which a killed run goes on."""

    gathering: Gathering
    first: Pass
    half: NDArray[np.uint8]
    leaves: tuple[int, ...]

    def run(self, start: ScaleState) -> tuple[ScaleState, Partial]:
        """Return the final state and the result of the last pass."""
        number, state = self._known() or (0, start)
        while True:
            job, path = self.first.job, self._path(number)
            write_node(path, job.hash("state", number), state.arrays() | {"half": self.half})
            one = replace(self.first, state=path, number=number)
            result = read_partial(self.gathering.fold(one, f"{STAGE}/pass", number, Numbers(), self.leaves))
            if state.phase == Phase.OUTPUT:
                return state, result
            state, number = advance(state, result, job.settings), number + 1

    def _path(self, number: int) -> Path:
        return self.first.job.folder / "pass" / str(number) / "state.h5"

    def _known(self) -> tuple[int, ScaleState] | None:
        folder = self.first.job.folder / "pass"
        numbers = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
        for number in sorted(numbers, reverse=True):
            arrays = find_node(self._path(number), self.first.job.hash("state", number))
            if arrays is not None:
                arrays.pop("half")
                return number, ScaleState.from_arrays(arrays)
        return None


def _joined(paths: Sequence[Path], names: tuple[str, ...]) -> Partial:
    parts = [read_node(path, names)[1] for path in paths]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}

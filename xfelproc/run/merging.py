"""Merging of shards, of one run or of several, by workers; see docs/explanation/architecture.md for the scheme."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.merge import MergeResult, Symmetry, result_of
from xfelproc.algorithms.merging.observed import ObservedStatistics, edges_of
from xfelproc.algorithms.merging.off_lattice import OffLattice, off_lattice_warnings
from xfelproc.algorithms.merging.panels import PanelLimits
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.errors import ConfigError, DamagedPartError, DataError, NothingLeftError
from xfelproc.geometry.miller import find_space_group
from xfelproc.io.atomic import write_pieces
from xfelproc.io.exchange.mtz import MtzHeader
from xfelproc.io.exchange.mtz_pieces import unmerged_pieces
from xfelproc.io.manifest import read_manifest
from xfelproc.io.shards import read_header, shard_path
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.experiment import Detector
from xfelproc.run.ambiguity import Indexing, forget, resolved_indexing, typical_cell
from xfelproc.run.comparison import compared
from xfelproc.run.downstream import finish, write_table_one
from xfelproc.run.folding import Gathering, read_partial
from xfelproc.run.geometry import PROCESS
from xfelproc.run.group_frames import GroupedFrames, RunFrames, grouped_frames
from xfelproc.run.grouped import FOLDER, GroupWriter, rows_of
from xfelproc.run.lineage import digest, file_identity, versions
from xfelproc.run.merge_engine import LEAF_SIZE, STAGE, Engine, Finished, Offered
from xfelproc.run.merge_lattices import write_lattices
from xfelproc.run.merge_reference import given_reference
from xfelproc.run.off_lattice import off_lattice_of
from xfelproc.run.target import MergingGroup
from xfelproc.stages.fold import Shards, cut_leaves
from xfelproc.stages.merge_groups import Wavelengths
from xfelproc.stages.merge_parts import MergeJob


@dataclass(frozen=True)
class MergeInput:
    """A run to merge: its folder (with ``manifest.h5`` and ``shards``), its number of units, all processed, and the stage whose
    shards are its result.
    """

    run: Path
    n_units: int
    stage: str = PROCESS
    columns: Mapping[str, str] = field(default_factory=dict)
    """What a campaign's table says of the run."""


@dataclass(frozen=True)
class FoundShards:
    """Runs to merge, the hash of all their shards' lineages; frames, lattices and reflections of each shard."""

    inputs: tuple[MergeInput, ...]
    lineage: str
    frames: tuple[int, ...]
    lattices: tuple[int, ...]
    reflections: tuple[int, ...]
    damaged: Mapping[int, int] = field(default_factory=dict)
    """Shards that cannot be read, by their number over all runs: how many lattices were in them."""

    @classmethod
    def of(cls, inputs: Sequence[MergeInput]) -> FoundShards:
        """Read the headers of the shards.

        Raises
        ------
        ConfigError
            If a unit is missing.
        """
        lineages, frames, lattices, reflections = [], [], [], []
        for given in inputs:
            for unit in range(given.n_units):
                header = read_header(shard_path(given.run, given.stage, unit))
                if header is None:
                    raise ConfigError(f"merge: unit {unit} of {given.run} is not processed yet: run the same job without --only")
                lineages.append(header.lineage)
                frames.append(sum(header.counts[status.name] for status in FrameStatus))
                lattices.append(header.counts["LATTICES"])
                reflections.append(header.counts["REFLECTIONS"])
        return cls(tuple(inputs), digest(lineages), tuple(frames), tuple(lattices), tuple(reflections))

    @property
    def blocks(self) -> Shards:
        """The shards as blocks of a fold."""
        stages = {given.stage for given in self.inputs}
        stage = stages.pop() if len(stages) == 1 else tuple(given.stage for given in self.inputs)
        return Shards(stage, tuple((given.run.absolute(), given.n_units) for given in self.inputs), damaged=frozenset(self.damaged))

    def without(self, block: int) -> FoundShards:
        """Return the shards of which one more is not read."""
        lattices, reflections = list(self.lattices), list(self.reflections)
        damaged, lattices[block], reflections[block] = {**self.damaged, block: lattices[block]}, 0, 0
        lineage = digest([self.lineage, "without", block])
        return replace(self, damaged=damaged, lattices=tuple(lattices), reflections=tuple(reflections), lineage=lineage)

    @property
    def said_of_damaged(self) -> list[str]:
        """A word on each shard that is not read."""
        return [
            f"shard {self.blocks.path(block)[3]} is damaged: its {lost} lattices are not merged; remove it and run the same "
            "command again"
            for block, lost in sorted(self.damaged.items())
        ]

    @property
    def offered(self) -> Offered:
        """What the shards hold, by shard."""
        reflections, lattices, frames = (np.array(n, dtype=np.int64) for n in (self.reflections, self.lattices, self.frames))
        return Offered(reflections, lattices, frames, tuple(given.n_units for given in self.inputs))


def merge_lineage(gathering: Gathering, shards: FoundShards, settings: Merge, group: MergingGroup) -> str:
    """Return the hash of what a merging depends on: files of equal lineage need not be made again."""
    sizes = [gathering.execution.fold_size, gathering.execution.bucket_size]
    symmetry = [group.space_group, group.proposal]
    reference, flags = settings.ambiguity.reference, settings.free_from
    content = {"shards": shards.lineage, "merge": settings.model_dump(mode="json"), "symmetry": symmetry, "sizes": sizes}
    files = {"reference": reference and file_identity(reference), "free": flags and file_identity(flags)}
    files["scaled_to"] = settings.reference and file_identity(settings.reference)
    files["compared"] = settings.compare_to and file_identity(settings.compare_to)
    files["groups"] = settings.groups.table and file_identity(settings.groups.table)
    if settings.groups.by in ("run", "column"):
        content["runs"] = [[given.run.name, sorted(given.columns.items())] for given in shards.inputs]
    return digest({**content, **files, "versions": versions()})


def merge_inputs(
    gathering: Gathering,
    shards: FoundShards,
    settings: Merge,
    group: MergingGroup,
    output: Path,
    bandwidth: float = 0.0,
    notes: Sequence[str] = (),
    detector: Detector | None = None,
) -> dict[str, Any] | None:
    """Merge the shards of runs into ``merged.mtz`` and ``unmerged.mtz``.

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
        Of the beam, relative, FWHM: for partiality, and the batch headers.
    notes
        What the files' history says before the warnings of merging.
    detector
        Of all runs: needed where panels are left out by name, or their edges.

    Returns
    -------
    dict[str, Any] | None
        What ``merge.json`` says: cell, symmetry, warnings, numbers, statistics by shell, and what `run.downstream` adds. None, and
        no files, if there are no lattices.

    Raises
    ------
    DataError
        If a part of the merging is damaged again: it is made again, with all others, once. A shard that is damaged is left out,
        and told of in the warnings; see `recorded_lineage`.
    NothingLeftError
        If the settings leave out all lattices or observations.
    OutputError
        If something cannot be written; what is done is kept for the next attempt.
    """
    panels = PanelLimits.of(settings, detector)
    while True:
        try:
            return _merge_readable(gathering, shards, settings, group, output, bandwidth, notes, panels)
        except DataError as error:
            block = shards.blocks.find(error.path)
            if block is None or block in shards.damaged:
                raise
            gathering.on_event("damaged_shard", {"shard": error.path, "why": error.message})
            shards = shards.without(block)


def recorded_lineage(lineage: str, record: Mapping[str, Any]) -> str:
    """Return what is recorded as the lineage of merged data: if shards could not be read, one that no other merging has."""
    return digest([lineage, record["damaged"]]) if record.get("damaged") else lineage


def _merge_readable(
    gathering: Gathering,
    shards: FoundShards,
    settings: Merge,
    group: MergingGroup,
    output: Path,
    bandwidth: float,
    notes: Sequence[str],
    panels: PanelLimits,
) -> dict[str, Any] | None:
    """Merge what is not known to be damaged; see `merge_inputs`."""
    lineage = digest([merge_lineage(gathering, shards, settings, group), bandwidth])
    plain = MergeJob(settings, group.space_group, lineage, gathering.directory.gather.absolute() / STAGE, panels, 0, bandwidth)
    notes = [*notes, *shards.said_of_damaged]

    def attempt() -> dict[str, Any] | None:
        frames = _grouped(gathering, plain, shards)
        job = plain if frames is None else replace(plain, n_groups=len(frames.names))
        given = given_reference(settings, typical_cell(shards.blocks) if settings.reference else None, group.space_group)
        indexing = resolved_indexing(
            gathering, shards.blocks, shards.frames, settings, group.space_group, shards.lineage, output, given.data
        )
        size = gathering.execution.bucket_size or LEAF_SIZE
        finished = Engine(gathering, job, indexing.blocks, shards.offered, size, given).run()
        if finished is None:
            return None
        indexing = replace(indexing, warnings=(*indexing.warnings, *given.words))
        between = off_lattice_of(indexing.blocks, shards.lattices, find_space_group(settings.space_group or group.space_group))
        return _write(finished, settings, group, indexing, output, bandwidth, notes, frames, len(shards.frames), between)

    record = _made_again_if_damaged(gathering, plain, attempt)
    if record is not None:
        record |= {"damaged": sorted(shards.damaged), "warnings": [*shards.said_of_damaged, *record["warnings"]]}
        write_table_one(record, [(given.run, given.stage, given.n_units) for given in shards.inputs], output)
    elif shards.damaged:
        raise NothingLeftError(f"nothing to merge: {'; '.join(shards.said_of_damaged)}; the others have no lattice")
    return record


def _made_again_if_damaged(
    gathering: Gathering, job: MergeJob, attempt: Callable[[], dict[str, Any] | None]
) -> dict[str, Any] | None:
    try:
        try:
            record = attempt()
        except DamagedPartError as error:
            gathering.on_event("made_again", {"what": STAGE, "why": str(error)})
            shutil.rmtree(job.folder)
            record = attempt()
    except NothingLeftError:
        _forget(gathering, job)
        raise
    _forget(gathering, job)
    return record


def _forget(gathering: Gathering, job: MergeJob) -> None:
    shutil.rmtree(job.folder, ignore_errors=True)
    forget(gathering)


def _grouped(gathering: Gathering, job: MergeJob, shards: FoundShards) -> GroupedFrames | None:
    """Publish the group of each frame for the workers; None if there are no groups."""
    asked = job.settings.groups
    if asked.by == "none":
        return None

    def wavelengths() -> NDArray[np.float64]:
        leaves = cut_leaves(shards.frames, gathering.execution.fold_size)
        paths = gathering.update(Wavelengths(job.hash("groups")), f"{STAGE}/wavelengths", 0, shards.blocks, leaves)
        return np.concatenate([read_partial(path)["wavelength"] for path in paths])

    runs = [RunFrames(given.run.name, given.columns, read_manifest(given.run / "manifest.h5")) for given in shards.inputs]
    found = grouped_frames(asked, runs, wavelengths)
    job.groups.write(found.group, found.offsets)
    return found


UNMERGED = "unmerged.mtz"
FILES = ("merged.mtz", "merged.h5", "table1.txt", "lattices.h5")


def files_of(settings: Merge) -> tuple[str, ...]:
    """Return the names of the files that every merging with these settings writes."""
    return (*FILES, UNMERGED) if settings.unmerged else FILES


def _write(
    finished: Finished,
    settings: Merge,
    group: MergingGroup,
    indexing: Indexing,
    output: Path,
    bandwidth: float,
    notes: Sequence[str],
    frames: GroupedFrames | None,
    n_units: int,
    between: OffLattice,
) -> dict[str, Any]:
    symmetry = Symmetry.chosen(group.space_group, settings, group.proposal, indexing.unresolved)
    result = compared(result_of(finished.final, finished.cell, symmetry, settings), settings, symmetry.group)
    if not len(result.merged):
        raise NothingLeftError(
            f"nothing to merge: of {result.n_used} lattices no reflection has {settings.min_multiplicity} observations "
            "(merge.min_multiplicity): lower it, and run the same command again"
        )
    said = (*notes, *indexing.warnings, *result.warnings)
    header = MtzHeader(result.cell, result.space_group, finished.wavelength, result.title, said)
    told = finish(result.merged, header, settings, output)
    observed = ObservedStatistics(result.cell, edges_of(result.shells))
    rows = between.watched(observed.watched(finished.rows(), symmetry.group))
    if settings.unmerged:
        write_pieces(output / UNMERGED, unmerged_pieces(finished.n_unmerged, rows, finished.batches(bandwidth), header))
    else:
        (output / UNMERGED).unlink(missing_ok=True)
    shells, overall = between.added_to(*observed.added_to(result.shells, result.overall), result.cell)
    warnings = (*result.warnings, *off_lattice_warnings(overall))
    result = replace(result, shells=shells, overall=overall, warnings=warnings)
    groups = GroupWriter(result, symmetry, header, settings, output / FOLDER).write(finished, frames)
    lattices = write_lattices(finished.lattices(), n_units, output) | finished.left_out
    return groups.added_to(told.added_to(_record(result, indexing) | {"lattices": lattices}))


def _record(result: MergeResult, indexing: Indexing) -> dict[str, Any]:
    return {
        "cell": list(result.cell),
        "space_group": result.space_group,
        "proposal": result.proposal,
        "ambiguity": list(indexing.unresolved),
        "settings": indexing.record,
        "warnings": [*indexing.warnings, *result.warnings],
        "title": result.title,
        "n_lattices": result.n_lattices,
        "n_lattices_used": result.n_used,
        "overall": rows_of(result.overall)[0],
        "shells": rows_of(result.shells),
        "quality": result.quality,
    }

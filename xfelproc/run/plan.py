"""From the job to the manifest: which files, which frames, cut into which units. No pixels are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.downstream.free import check_crystal, normalised_flags
from xfelproc.errors import ConfigError, DataError
from xfelproc.geometry.miller import find_space_group
from xfelproc.io.exchange.free_flags import read_free_flags
from xfelproc.io.exchange.reference import read_reference
from xfelproc.io.group_table import read_group_table
from xfelproc.io.manifest import UNSEEN, Manifest, Sources, SourceTable, cut_units, default_unit_size, file_state
from xfelproc.io.names import FileNames
from xfelproc.io.sources.base import FrameSource
from xfelproc.io.sources.files import InputFiles, find_inputs
from xfelproc.io.sources.folders import MANY, suffix_of
from xfelproc.io.sources.overrides import check_distance
from xfelproc.models.experiment import Experiment
from xfelproc.run.config import JobConfig
from xfelproc.run.group_frames import check_names
from xfelproc.run.reference import usable_reference
from xfelproc.run.selection import select_frames
from xfelproc.stages.counting import Counted, CountTask, count_files, count_one
from xfelproc.stages.inputs import CalibrationInputs
from xfelproc.stages.unit_sources import Opener

OPENED_OF_A_SUFFIX = 64
"""Files of one suffix that are opened for good when a run is planned; see `make_plan` for the others."""


MANY_FILES = 1000
"""Files from which on workers count their frames..."""
FILES_A_TASK = 100
"""...so many at a time."""

Spread = Callable[[Callable[[CountTask], list[Counted | None]], Sequence[CountTask]], Iterable[list[Counted | None]]]
"""``map`` over workers, in order."""


@dataclass(frozen=True)
class Plan:
    """The manifest, the models of the first frame that can be opened, and its format."""

    manifest: Manifest
    experiment: Experiment
    recipe: str
    unseen: int = 0
    """Files that were taken for one frame each, without opening them."""


def _check_free_flags(config: JobConfig) -> None:
    """Raise ConfigError now, and not when all frames are processed, if the file of free flags is of no use."""
    path = getattr(config.section("merge"), "free_from", None)  # another merger may know no such file
    if path is None:
        return
    target = config.section("index").target()
    try:
        column = read_free_flags(Path(path))
        given = normalised_flags(column.hkl, column.values, column.cell, column.space_group, path)
        if target.cell is not None:
            check_crystal(given, target.cell, find_space_group(column.space_group))
    except DataError as error:
        raise ConfigError(f"merge.free_from: {error}") from error


def _check_reference(config: JobConfig) -> None:
    """Raise ConfigError now if reference intensities are missing, or are of another crystal."""
    merge, target = config.section("merge"), config.section("index").target()
    compare_to = getattr(merge, "compare_to", None)
    if compare_to is not None:
        try:
            read_reference(Path(compare_to))
        except DataError as error:
            raise ConfigError(f"merge.compare_to: {error}") from error
    ambiguity = getattr(merge, "ambiguity", None)  # another merger may know no reference
    if ambiguity is None or ambiguity.reference is None:
        return
    try:
        usable_reference(Path(ambiguity.reference), target.cell, merge.space_group or target.space_group)
    except DataError as error:
        raise ConfigError(f"merge.ambiguity.reference: {error}") from error


def _check_groups(config: JobConfig) -> None:
    """Raise ConfigError now if the table of groups cannot be read, or names not the group that others are compared to."""
    groups = getattr(config.section("merge"), "groups", None)  # another merger may know no groups
    if groups is None or groups.by != "table":
        return
    names = read_group_table(Path(groups.table)).groups
    check_names(names, groups)


def make_plan(config: JobConfig, opener: Opener, spread: Spread | None = None) -> Plan:
    """Return sources, frames and units of a job.

    Of files with one suffix some are opened for good, spread over the run. Where image files among these hold one frame each, the
    others are taken for the same and neither opened nor looked at: the worker that reads one does. Of the other HDF5 files the
    frames are counted, without reading the models, where they are held as in the first good one; all others are opened, too.
    A source that cannot be opened counts as one frame, which fails with its reason; the others are kept.

    Parameters
    ----------
    spread
        Has workers count the frames where there are very many files; None: that is done here.

    Raises
    ------
    ConfigError
        If no source can be opened, no frame is chosen, the recipe does not exist, or ``merge.free_from`` has no free flags.
    """
    settings = config.input.settings()
    if settings.geometry is not None and not settings.geometry.is_file():
        raise ConfigError(f"input.geometry: {settings.geometry}: no such file: correct the path")
    _check_free_flags(config)
    _check_reference(config)
    _check_groups(config)
    files = find_inputs(config.input.files)
    seen = _Seen(config, opener, files, spread)
    seen.look()
    if seen.experiment is None:
        first = next(iter(seen.errors.values()), "no frames in it")
        opened = (
            f"the {len(seen.looked)} files that were opened, of {len(files)},"
            if len(seen.looked) < len(files)
            else f"{len(files)} files"
        )
        raise ConfigError(f"input.files: none of {opened} can be read; the first: {first}")
    return Plan(_manifest(config, files, seen), seen.experiment, _recipe(config, seen.experiment), int(np.sum(seen.size == UNSEEN)))


class _Seen:
    """What is seen of the files of a job, and the models of the first that is good."""

    def __init__(self, config: JobConfig, opener: Opener, files: InputFiles, spread: Spread | None) -> None:
        n = len(files)
        self.config, self.opener, self.files, self.spread = config, opener, files, spread
        self.settings = config.input.settings()
        self.size, self.mtime = np.full(n, UNSEEN, np.int64), np.full(n, UNSEEN, np.int64)
        self.n_frames, self.chunk = np.ones(n, np.int32), np.ones(n, np.int32)
        self.errors: dict[int, str] = {}
        self.looked: set[int] = set()
        self.experiment: Experiment | None = None

    def look(self) -> None:
        """Open files: all, but of image files only as many as it takes to know that each holds a frame."""
        samples, groups = sample_files(self.files)
        patterns: dict[str, FrameSource] = {}
        for number in samples:
            source = self.open(number)
            if source is not None:
                patterns.setdefault(suffix_of(self.files.names[number]), source)
        for suffix, members in groups.items():
            known = [number for number in members if number in self.looked and number not in self.errors]
            if suffix not in MANY and all(self.n_frames[number] == 1 for number in known):
                # seen or not, their lineage is the same: which ones were sampled must not matter
                self.size[known] = self.mtime[known] = UNSEEN
                continue
            others, like = [number for number in members if number not in self.looked], patterns.get(suffix)
            counts = [None] * len(others) if like is None else self.count(others, like)
            for number, found in zip(others, counts, strict=True):
                if found is None:
                    self.open(number)
                else:
                    self.looked.add(number)
                    self.n_frames[number], self.chunk[number], self.size[number], self.mtime[number] = found

    def count(self, numbers: list[int], like: FrameSource) -> Sequence[Counted | None]:
        """Count the frames of files by the way another one holds them, by workers if there are many."""
        paths = [self.files.path(number) for number in numbers]
        if self.spread is None or len(paths) < MANY_FILES:
            return [count_one(like, path) for path in paths]
        parts = [tuple(paths[i : i + FILES_A_TASK]) for i in range(0, len(paths), FILES_A_TASK)]
        tasks = [CountTask(self.opener, self.settings, like.path, part) for part in parts]
        return [found for part in self.spread(count_files, tasks) for found in part]

    def open(self, number: int) -> FrameSource | None:
        """Open a file and keep what the plan needs of it; return it, closed, if it is good."""
        path = self.files.path(number)
        self.looked.add(number)
        self.size[number], self.mtime[number] = file_state(path)
        try:
            with self.opener(path, self.settings) as source:
                self.n_frames[number], self.chunk[number] = source.n_frames, max(1, source.chunk_frames)
                if self.experiment is None:
                    found = first_experiment(source)
                    check_calibration(self.config, found, source)
                    self.experiment = found
        except (DataError, OSError) as problem:
            self.errors[number] = str(problem)
            return None
        return source


def sample_files(files: InputFiles) -> tuple[list[int], dict[str, list[int]]]:
    """Return the files to open, in run order, and by their suffix the files of which these are a sample.

    There are more than `OPENED_OF_A_SUFFIX` of a suffix; of others all are opened, as are image files of which lists choose frames.
    """
    listed = set(files.listed)
    groups: dict[str, list[int]] = {}
    chosen: list[int] = []
    for number, name in enumerate(files.names):
        suffix = suffix_of(name)
        if suffix in MANY or (suffix and number not in listed):
            groups.setdefault(suffix, []).append(number)
        else:
            chosen.append(number)
    sampled = {}
    for suffix, members in groups.items():
        if len(members) <= OPENED_OF_A_SUFFIX:
            chosen += members
            continue
        places = np.linspace(0, len(members) - 1, OPENED_OF_A_SUFFIX).astype(np.int64)
        chosen += [members[place] for place in places]
        sampled[suffix] = members
    return sorted(chosen), sampled


def first_experiment(source: FrameSource) -> Experiment:
    """Return the models of a frame: the first, or if it is no good the middle or the last one.

    Raises
    ------
    DataError
        If none of them is any good; that of the first.
    """
    problems = []
    for index in dict.fromkeys((0, source.n_frames // 2, source.n_frames - 1)):
        try:
            experiment = source.experiment(index)
            check_distance(experiment.detector, experiment.beam, source.path, index)
        except DataError as problem:
            problems.append(problem)
        else:
            return experiment
    raise problems[0]


def check_calibration(config: JobConfig, experiment: Experiment, source: FrameSource) -> None:
    """See that mask, dark, gain and constants can be read and fit the detector.

    Raises
    ------
    ConfigError
        If they do not.
    """
    given, calibrate = config.input, config.section("calibrate")
    stages = getattr(calibrate, "gain_stages", None)  # not every calibrator has stages
    asked = stages is not None and stages.method not in ("auto", "none")
    if asked or any(name is not None for name in (given.dark, given.gain, given.mask, given.calibration)):
        loaded = CalibrationInputs.load(given.dark, given.gain, given.calibration)
        mask, detector = source.static_mask(), experiment.detector
        try:
            calibrate.constants(detector, mask, loaded.dark, loaded.gain, loaded.calibration)
        except DataError as error:
            raise ConfigError(f"input: {error}") from error


def _frames(files: InputFiles, seen: _Seen) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return source and index of all frames, or of those that lists name; of a source that cannot be opened at least the first."""
    chosen: dict[int, NDArray[np.int64]] = {}
    for number in files.listed:
        frames, n_frames = files.chosen(number) or (), int(seen.n_frames[number])
        if number in seen.errors:
            frames = tuple(frame for frame in frames if frame < n_frames) or (0,)
        if frames[-1] >= n_frames:
            path = files.path(number)
            raise ConfigError(f"{path}: a list names frame {frames[-1]}, the last one is {n_frames - 1} (they count from 0)")
        chosen[number] = np.array(frames, dtype=np.int64)
    counts = seen.n_frames.astype(np.int64)
    counts[list(chosen)] = [len(wanted) for wanted in chosen.values()]
    starts = np.cumsum(counts) - counts
    index = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(starts, counts)
    for number, wanted in chosen.items():
        index[starts[number] : starts[number] + len(wanted)] = wanted
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts), index


def _manifest(config: JobConfig, files: InputFiles, seen: _Seen) -> Manifest:
    table = SourceTable(None, size=seen.size, mtime=seen.mtime, n_frames=seen.n_frames, chunk_frames=seen.chunk)
    source, index = _frames(files, seen)
    sources = Sources(FileNames.of(files.folders, files.folder_of, files.names), table, dict(sorted(seen.errors.items())))
    try:
        chosen = select_frames(config.input.frames, len(source))
    except ConfigError as error:
        raise ConfigError(f"input.frames: {error}") from error
    if len(chosen) == 0:
        raise ConfigError(f"input.frames = {config.input.frames!r} chooses none of the {len(source)} frames of these files")
    if len(chosen) < len(source):
        source, index = source[chosen], index[chosen]
    size = config.execution.unit_size or default_unit_size(len(index))
    return Manifest(sources, source, index, cut_units(source, index, table["chunk_frames"], size))


def _recipe(config: JobConfig, experiment: Experiment) -> str:
    turn = experiment.scan.oscillation[1] if experiment.scan is not None else 0.0
    if config.recipe == "rotation" or (config.recipe == "auto" and turn != 0):
        why = f"the frames turn by {turn:g}° each" if turn else "the job asks for it"
        raise ConfigError(
            f'recipe: {why}, and sweeps cannot be processed yet; recipe = "stills" takes each frame for a still, which loses the '
            "relation between them"
        )
    return "stills"

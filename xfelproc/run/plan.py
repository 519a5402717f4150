"""From the job to the manifest: which files, which frames, cut into which units. No pixels are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError, DataError
from xfelproc.io.manifest import Manifest, SourceTable, cut_units, default_unit_size
from xfelproc.io.sources.base import FrameSource
from xfelproc.io.sources.files import Chosen, expand_inputs
from xfelproc.io.sources.overrides import check_distance
from xfelproc.models.experiment import Experiment
from xfelproc.run.config import JobConfig
from xfelproc.run.selection import select_frames
from xfelproc.stages.execute import Opener
from xfelproc.stages.inputs import load_array


@dataclass(frozen=True)
class Plan:
    """The manifest, the models of the first frame that can be opened, and its format."""

    manifest: Manifest
    experiment: Experiment
    recipe: str


def make_plan(config: JobConfig, opener: Opener) -> Plan:
    """Return sources, frames and units of a job.

    A source that cannot be opened counts as one frame, which fails with its reason; the others are kept.

    Raises
    ------
    ConfigError
        If no source can be opened, no frame is chosen, or the recipe does not exist.
    """
    settings = config.input.settings()
    if settings.geometry is not None and not settings.geometry.is_file():
        raise ConfigError(f"input.geometry: {settings.geometry}: no such file: correct the path")
    rows: list[tuple[str, int, int, int, int, str]] = []
    experiment: Experiment | None = None
    frames: list[NDArray[np.int64]] = []
    for file, listed in expand_inputs(config.input.files).items():
        path = str(file)
        stat = Path(path).stat()
        n_frames, chunk, error = 1, 1, ""
        try:
            with opener(path, settings) as source:
                n_frames, chunk = source.n_frames, source.chunk_frames
                if experiment is None:
                    found = first_experiment(source)
                    check_calibration(config, found, source)
                    experiment = found
        except (DataError, OSError) as problem:
            error = str(problem)
        frames.append(_listed(path, listed, n_frames, error))
        rows.append((path, stat.st_size, stat.st_mtime_ns, n_frames, max(1, chunk), error))
    if experiment is None:
        raise ConfigError(f"input.files: none of {len(rows)} files can be opened; the first: {rows[0][5] or 'no frames in it'}")
    columns = dict(zip(("path", "size", "mtime", "n_frames", "chunk_frames", "error"), zip(*rows, strict=True), strict=True))
    return Plan(_manifest(config, SourceTable(None, **columns), frames), experiment, _recipe(config, experiment))


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
    """See that mask, dark and gain can be read and fit the detector.

    Raises
    ------
    ConfigError
        If they do not.
    """
    dark, gain = load_array(config.input.dark), load_array(config.input.gain)
    if dark is not None or gain is not None or config.input.mask is not None:
        config.section("calibrate").constants(experiment.detector, source.static_mask(), dark, gain)


def _listed(path: str, listed: Chosen, n_frames: int, error: str) -> NDArray[np.int64]:
    """Return the frames of a source that lists name, or all of them; of one that cannot be opened at least the first."""
    if listed is None:
        return np.arange(n_frames, dtype=np.int64)
    if error:
        listed = tuple(frame for frame in listed if frame < n_frames) or (0,)
    if listed[-1] >= n_frames:
        raise ConfigError(f"{path}: a list names frame {listed[-1]}, the last one is {n_frames - 1} (they count from 0)")
    return np.array(listed, dtype=np.int64)


def _manifest(config: JobConfig, sources: SourceTable, frames: Sequence[NDArray[np.int64]]) -> Manifest:
    source = np.repeat(np.arange(len(frames), dtype=np.int32), [len(listed) for listed in frames])
    index = np.concatenate(frames)
    try:
        chosen = select_frames(config.input.frames, len(source))
    except ConfigError as error:
        raise ConfigError(f"input.frames: {error}") from error
    if len(chosen) == 0:
        raise ConfigError(f"input.frames = {config.input.frames!r} chooses none of the {len(source)} frames of these files")
    source, index = source[chosen], index[chosen]
    size = config.execution.unit_size or default_unit_size(len(index))
    return Manifest(sources, source, index, cut_units(source, index, sources["chunk_frames"], size))


def _recipe(config: JobConfig, experiment: Experiment) -> str:
    turn = experiment.scan.oscillation[1] if experiment.scan is not None else 0.0
    if config.recipe == "rotation" or (config.recipe == "auto" and turn != 0):
        why = f"the frames turn by {turn:g}° each" if turn else "the job asks for it"
        raise ConfigError(
            f'recipe: {why}, and sweeps cannot be processed yet; recipe = "stills" takes each frame for a still, which loses the '
            "relation between them"
        )
    return "stills"

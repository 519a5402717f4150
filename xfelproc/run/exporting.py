"""Results of a run in other programs' formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from xfelproc.errors import ConfigError
from xfelproc.io.atomic import write_pieces
from xfelproc.io.exchange.geom import read_geom
from xfelproc.io.exchange.geom_model import GeomFile
from xfelproc.io.exchange.geom_write import geom_of, write_geom
from xfelproc.io.exchange.run_export import frame_chunk
from xfelproc.io.exchange.stream import StreamHeader, stream_text
from xfelproc.io.manifest import Manifest
from xfelproc.io.shards import shard_path
from xfelproc.io.sources.base import FrameSource
from xfelproc.io.sources.hdf5_source import Hdf5Source
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.experiment import Experiment
from xfelproc.models.frames import FrameRef, UnitResult
from xfelproc.run.ambiguity import shards_as_merged
from xfelproc.run.combining import CombineInput, combine_runs, workplace
from xfelproc.run.config import Execution, JobConfig, load_config
from xfelproc.run.directory import RunDirectory, open_run
from xfelproc.run.distance import source_settings
from xfelproc.run.exporting_merged import MERGED_EXPORTERS, export_merged
from xfelproc.run.geometry import final_experiment, final_geometry, result_stage
from xfelproc.run.lineage import versions
from xfelproc.run.merging import FoundShards, MergeInput
from xfelproc.run.recipes import default_opener
from xfelproc.run.target import recorded_target
from xfelproc.stages.combine_settings import AS_THEY_ARE
from xfelproc.stages.fold import Shards

SETTINGS = ("resolved", "indexed")


@dataclass(frozen=True)
class ExportedFrame:
    """A processed frame: its file, models, and the rows of its unit's tables."""

    path: str
    ref: FrameRef
    row: int
    event: str
    experiment: Experiment
    result: UnitResult


@dataclass(frozen=True)
class FinishedRun:
    """A run whose frames are processed."""

    directory: RunDirectory
    config: JobConfig
    manifest: Manifest
    setting: str = "indexed"
    """``indexed``: lattices as they are in the shards; ``resolved``: as merging resolved an ambiguity, if it did."""

    @classmethod
    def open(cls, folder: Path, setting: str = "indexed") -> FinishedRun:
        """Open a run directory.

        Raises
        ------
        ConfigError
            If it is none, or frames are missing, or there is no such setting.
        """
        if setting not in SETTINGS:
            raise ConfigError(f"--setting {setting}: not known (known: {', '.join(SETTINGS)})")
        directory = open_run(folder)
        run = cls(directory, load_config(directory.job), directory.read_manifest(), setting)
        missing = [u for u in range(run.manifest.n_units) if not shard_path(folder, run.stage, u).is_file()]
        if missing:
            raise ConfigError(f"{folder}: {len(missing)} of {run.manifest.n_units} units are not processed yet: run its job first")
        return run

    @property
    def stage(self) -> str:
        """The stage whose shards are the result."""
        return result_stage(self.config, self.directory)

    @cached_property
    def shards(self) -> Shards:
        """The shards, read in the setting.

        Raises
        ------
        ConfigError
            If the settings are of other shards.
        """
        found = FoundShards.of([MergeInput(self.directory.path, self.manifest.n_units, self.stage)])
        if self.setting == "indexed":
            return found.blocks
        return shards_as_merged(found.blocks, found.lineage, self.directory.merged) or found.blocks

    def combine_input(self) -> CombineInput:
        """Return what `run.combining` needs of it."""
        geometry = final_geometry(self.config, self.directory)
        place = None if geometry is None else geometry.place
        opening = source_settings(self.config, self.directory)
        return CombineInput(self.directory.path, self.manifest, self.stage, opening, place, self.shards)

    def frames(self) -> Iterator[ExportedFrame]:
        """Yield the frames that could be read, in order, with their models."""
        opener, settings, shards = default_opener(), source_settings(self.config, self.directory), self.shards
        geometry = final_geometry(self.config, self.directory)
        current: tuple[int, FrameSource] | None = None
        for unit in range(self.manifest.n_units):
            result = shards.open(unit).result()
            for row, ref in enumerate(self.manifest.unit(unit).frames):
                if result.frames["status"][row] == FrameStatus.FAILED:
                    continue
                if current is None or current[0] != ref.source:
                    if current is not None:
                        current[1].close()
                    current = (ref.source, opener(self.manifest.sources.path(ref.source), settings))
                source = current[1]
                models = final_experiment(source.experiment(ref.index), geometry)
                yield ExportedFrame(source.path, ref, row, _event(source, ref.index), models, result)
        if current is not None:
            current[1].close()

    def first_experiment(self) -> Experiment:
        """Return the models of the first frame that could be read.

        Raises
        ------
        ConfigError
            If there is none.
        """
        frame = next(self.frames(), None)
        if frame is None:
            raise ConfigError(f"{self.directory.path}: no frame could be read: there is nothing to export")
        return frame.experiment


def export_geom(run: FinishedRun, output: Path) -> None:
    """Write the run's geometry for CrystFEL."""
    write_geom(run.first_experiment(), output)


def export_dials(run: FinishedRun, output: Path) -> None:
    """Write an experiment for each lattice, and beside it, as ``.refl``, its reflections."""
    with workplace(output, Execution(driver="inline")) as gathering:
        combine_runs(gathering, [run.combine_input()], AS_THEY_ARE, output, default_opener())


def export_stream(run: FinishedRun, output: Path) -> None:
    """Write a CrystFEL stream: geometry, peaks, crystals and reflections of every frame."""
    target = recorded_target(run.config, run.directory)
    header = StreamHeader(_geometry(run), version=versions()["xfelproc"], cell=target.cell, space_group=target.space_group or "P 1")
    chunks = (
        frame_chunk(frame.path, frame.event, serial, frame.experiment, frame.result, frame.row)
        for serial, frame in enumerate(run.frames(), 1)
    )
    write_pieces(output, (piece.encode() for piece in stream_text(header, chunks)))


def _geometry(run: FinishedRun) -> GeomFile:
    given, moved = run.config.input.geometry, source_settings(run.config, run.directory).distance is not None
    moved = moved or final_geometry(run.config, run.directory) is not None
    return read_geom(given) if given is not None and given.suffix == ".geom" and not moved else geom_of(run.first_experiment())


def _event(source: FrameSource, index: int) -> str:
    """Return CrystFEL's name of a frame within its file; empty for a file of one frame."""
    if source.n_frames == 1:
        return ""
    return source.event(index) if isinstance(source, Hdf5Source) else f"//{index}"


EXPORTERS = {"geom": export_geom, "dials": export_dials, "stream": export_stream}


def export(folder: Path, to: str, output: Path, setting: str = "resolved", group: str | None = None) -> list[Path]:
    """Write results of a run, or merged data of a run or a campaign's group; return the files written.

    ``setting`` is that of the lattices (`FinishedRun.setting`); merged data have only the one they were merged in.

    Raises
    ------
    ConfigError
        If the format is not known, or the run has nothing of the kind.
    """
    if to in MERGED_EXPORTERS:
        return export_merged(folder, to, output, group)
    if group is not None:
        raise ConfigError(f"--to {to}: --group is for merged data ({', '.join(MERGED_EXPORTERS)})")
    if to not in EXPORTERS:
        raise ConfigError(f"--to {to}: not known (known: {', '.join([*MERGED_EXPORTERS, *EXPORTERS])})")
    if to == "dials" and output.suffix == ".refl":
        output = output.with_suffix(".expt")
    EXPORTERS[to](FinishedRun.open(folder, setting), output)
    return [output, output.with_suffix(".refl")] if to == "dials" else [output]

"""Results of a run in other programs' formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from xfelproc.errors import ConfigError
from xfelproc.io.atomic import write_atomic, write_pieces
from xfelproc.io.exchange.dials_write import write_expt
from xfelproc.io.exchange.geom_write import format_geom, geom_of, write_geom
from xfelproc.io.exchange.stream import StreamChunk, StreamCrystal, StreamHeader, stream_text
from xfelproc.io.manifest import Manifest
from xfelproc.io.shards import read_shard, shard_path
from xfelproc.io.sources.base import FrameSource
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.experiment import Crystal, Experiment, as_matrix, as_vector
from xfelproc.models.frames import FrameRef, UnitResult
from xfelproc.run.config import JobConfig, load_config
from xfelproc.run.directory import RunDirectory, open_run
from xfelproc.run.lineage import versions
from xfelproc.run.recipes import default_opener
from xfelproc.run.stage_process import STAGE
from xfelproc.run.target import recorded_target


@dataclass(frozen=True)
class ExportedFrame:
    """A processed frame: its file, models, and the rows of its unit's tables."""

    path: str
    ref: FrameRef
    row: int
    n_frames: int
    experiment: Experiment
    result: UnitResult

    def lattices(self) -> list[int]:
        """Return the rows of its lattices."""
        return [int(i) for i in np.flatnonzero(self.result.lattices["frame"] == self.row)]

    def crystal(self, lattice: int) -> Crystal:
        """Return a lattice as a crystal."""
        table = self.result.lattices
        return Crystal(
            as_matrix(table["A"][lattice]),
            str(table["space_group"][lattice]),
            float(table["domain_size"][lattice]),
            float(table["half_mosaicity"][lattice]),
        )


@dataclass(frozen=True)
class FinishedRun:
    """A run whose frames are processed."""

    directory: RunDirectory
    config: JobConfig
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> FinishedRun:
        """Open a run directory.

        Raises
        ------
        ConfigError
            If it is none, or frames are missing.
        """
        directory = open_run(folder)
        run = cls(directory, load_config(directory.job), directory.read_manifest())
        missing = [u for u in range(run.manifest.n_units) if not shard_path(folder, STAGE, u).is_file()]
        if missing:
            raise ConfigError(f"{folder}: {len(missing)} of {run.manifest.n_units} units are not processed yet: run its job first")
        return run

    def frames(self) -> Iterator[ExportedFrame]:
        """Yield the frames that could be read, in order, with their models."""
        opener, settings = default_opener(), self.config.input.settings()
        current: tuple[int, FrameSource] | None = None
        for unit in range(self.manifest.n_units):
            result = read_shard(shard_path(self.directory.path, STAGE, unit))
            for row, ref in enumerate(self.manifest.unit(unit).frames):
                if result.frames["status"][row] == FrameStatus.FAILED:
                    continue
                if current is None or current[0] != ref.source:
                    if current is not None:
                        current[1].close()
                    current = (ref.source, opener(str(self.manifest.sources["path"][ref.source]), settings))
                source = current[1]
                yield ExportedFrame(source.path, ref, row, source.n_frames, source.experiment(ref.index), result)
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


def export_mtz(run: FinishedRun, output: Path) -> None:
    """Copy the merged MTZ."""
    merged = run.directory.merged / "merged.mtz"
    if not merged.is_file():
        raise ConfigError(f"{run.directory.path}: nothing is merged yet: run its job first")
    write_atomic(output, merged.read_bytes())


def export_geom(run: FinishedRun, output: Path) -> None:
    """Write the run's geometry for CrystFEL."""
    write_geom(run.first_experiment(), output)


def export_dials(run: FinishedRun, output: Path) -> None:
    """Write an experiment for each lattice."""
    experiments = []
    for frame in run.frames():
        for lattice in frame.lattices():
            shift = as_vector(frame.result.lattices["shift"][lattice])
            detector = frame.experiment.detector.shifted(shift) if any(shift) else frame.experiment.detector
            experiments.append(
                replace(
                    frame.experiment,
                    detector=detector,
                    crystal=frame.crystal(lattice),
                    identifier=f"{frame.ref.source}-{frame.ref.index}-{lattice}",
                    image=(frame.path, frame.ref.index),
                )
            )
    if not experiments:
        raise ConfigError(f"{run.directory.path}: no frame was indexed: there is nothing to export")
    write_expt(experiments, output)


def export_stream(run: FinishedRun, output: Path) -> None:
    """Write a CrystFEL stream: geometry, peaks, crystals and reflections of every frame."""
    target = recorded_target(run.config, run.directory)
    header = StreamHeader(
        geometry=_geometry_text(run),
        version=versions()["xfelproc"],
        cell=target.cell,
        space_group=target.space_group or "P 1",
    )
    pieces = stream_text(header, (_chunk(serial, frame) for serial, frame in enumerate(run.frames(), 1)))
    write_pieces(output, (piece.encode() for piece in pieces))


def _geometry_text(run: FinishedRun) -> str:
    given = run.config.input.geometry
    if given is not None and given.suffix == ".geom":
        return given.read_text(encoding="utf-8", errors="replace")
    return format_geom(geom_of(run.first_experiment()))


def _chunk(serial: int, frame: ExportedFrame) -> StreamChunk:
    result, experiment = frame.result, frame.experiment
    reflections = result.reflections
    crystals = tuple(
        StreamCrystal(
            frame.crystal(lattice),
            reflections.select(reflections["lattice"] == lattice),
            as_vector(result.lattices["shift"][lattice]),
            float(result.lattices["d_min"][lattice]),
        )
        for lattice in frame.lattices()
    )
    return StreamChunk(
        path=frame.path,
        event=f"//{frame.ref.index}" if frame.n_frames > 1 else "",
        serial=serial,
        hit=bool(result.frames["status"][frame.row] >= FrameStatus.HIT),
        beam=experiment.beam,
        detector=experiment.detector,
        spots=result.spots.select(result.spots["frame"] == frame.row),
        crystals=crystals,
    )


EXPORTERS = {"mtz": export_mtz, "geom": export_geom, "dials": export_dials, "stream": export_stream}


def export(folder: Path, to: str, output: Path) -> None:
    """Write results of a run.

    Raises
    ------
    ConfigError
        If the format is not known, or the run has nothing of the kind.
    """
    if to not in EXPORTERS:
        raise ConfigError(f"--to {to}: not known (known: {', '.join(EXPORTERS)})")
    EXPORTERS[to](FinishedRun.open(folder), output)

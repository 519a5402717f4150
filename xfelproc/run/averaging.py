"""Mean, standard deviation and maximum of the frames of files or of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.calibration.average import Average, average_of
from xfelproc.algorithms.calibration.masks import reasons_of
from xfelproc.errors import ConfigError, DataError
from xfelproc.io.atomic import write_atomic
from xfelproc.io.exchange.detector_images import write_images
from xfelproc.io.exchange.geom_write import geom_of, write_geom
from xfelproc.models.experiment import Experiment
from xfelproc.report.images import assemble, canvas_of, png_bytes
from xfelproc.run.config import JobConfig
from xfelproc.run.directory import open_run
from xfelproc.run.frame_session import STATUSES, FrameInput, FrameSession, frame_session, frames_of_run, job_of, planned
from xfelproc.run.lineage import digest
from xfelproc.run.recipes import Crew
from xfelproc.run.session import Reporter
from xfelproc.stages.averaging import AverageFold
from xfelproc.stages.unit_sources import Opener


@dataclass(frozen=True)
class FrameChoice:
    """Which frames a command takes, as its command line says, and who computes.

    ``run`` names a run of whose frames those of status ``which`` (see `run.frame_session.STATUSES`) are taken.
    """

    inputs: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    run: Path | None = None
    which: str = "hits"
    driver: str | None = None
    workers: int | None = None

    def job(self) -> JobConfig:
        """Return the job: that of the run where no other is named.

        Raises
        ------
        ConfigError
            If nothing is named, or both files and a run.
        """
        inputs: Sequence[str] = self.inputs
        if self.which not in STATUSES:
            raise ConfigError(f"--which {self.which}: there are {', '.join(STATUSES)}")
        if self.run is not None:
            if any(not name.endswith(".toml") for name in inputs):
                raise ConfigError(f"{inputs[0]}: the frames are those of the run {self.run}: give no files beside it")
            inputs = inputs or [str(open_run(self.run).job)]
        return job_of(inputs, self.overrides, {"driver": self.driver, "workers": self.workers})

    def finder(self, config: JobConfig, say: Callable[[str], None], raw: bool = False) -> Callable[[Crew, Opener], FrameInput]:
        """Return what finds the frames; if they are taken as they are in the files (``raw``), calibration is not looked at."""

        def find(crew: Crew, opener: Opener) -> FrameInput:
            if self.run is None:
                return planned(config, crew, opener, raw)
            return frames_of_run(self.run, self.which, config, say, opener)

        return find


@dataclass(frozen=True)
class Averaged:
    """The images of a command, and what they are of; ``mask`` is the static mask of the frames, as PixelMask."""

    average: Average
    experiment: Experiment
    mask: NDArray[np.uint32]
    unit: str


def average_frames(session: FrameSession, raw: bool, name: str = "average") -> Averaged:
    """Average all frames of a session.

    Parameters
    ----------
    raw
        Take the values as they are in the files; else in photons, as section ``[calibrate]`` says.
    name
        Of the fold.

    Raises
    ------
    DataError
        If no frame can be read.
    """
    given, config = session.given, session.given.config
    if raw:
        fold = AverageFold(digest({"fold": "average", "raw": True}))
    else:
        lineage = digest({"fold": "average", **given.calibration()})
        fold = AverageFold(lineage, config.section("calibrate"), config.input.dark, config.input.gain, config.input.calibration)
    average = average_of(session.fold(fold, name))
    if average is None:
        raise DataError(f"none of the {given.manifest.n_frames} frames can be read: 'xfelproc inspect' tells more of a file")
    if average.mean.shape != given.experiment.detector.stack_shape:
        raise DataError(f"frames have shape {average.mean.shape}, their geometry {given.experiment.detector.stack_shape}")
    return Averaged(average, given.experiment, reasons_of(session.static_mask()), "ADU" if raw else "photon")


def run_average(choice: FrameChoice, output: Path, reporter: Reporter, raw: bool = False) -> list[Path]:
    """Write the average of frames as HDF5, with a picture and a CrystFEL geometry beside it; return what was written.

    Raises
    ------
    ConfigError
        If the frames cannot be found.
    DataError
        If no frame can be read, or frames are of different shapes.
    """
    check_output(output)
    config = choice.job()
    with frame_session(output, config.execution, choice.finder(config, reporter.say, raw), reporter) as session:
        found = average_frames(session, raw)
        paths = write_average(output, found)
    reporter.say(f"{found.average.n_frames} frames averaged")
    return paths


def check_output(output: Path) -> None:
    """See that the name of a file to write is one that others take for HDF5.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if output.suffix not in (".h5", ".hdf5", ".nxs", ".cxi"):
        raise ConfigError(f"--output {output}: the file is HDF5: give it a name that ends in .h5")
    if output.is_dir():
        raise ConfigError(f"--output {output}: is a folder: name the file in it")


def write_average(output: Path, found: Averaged) -> list[Path]:
    """Write the images: ``X.h5``, ``X.png`` (the maximum) and ``X.geom``."""
    average, detector = found.average, found.experiment.detector
    # neither the trusted range nor the gain of raw frames holds for averages
    plain = tuple(replace(p, trusted_range=(float("-inf"), float("inf")), gain=1.0) for p in detector.panels)
    experiment = replace(found.experiment, detector=replace(detector, panels=plain))
    images = {"mean": average.mean, "sd": average.sd, "max": average.maximum, "count": average.count, "mask": found.mask}
    write_images(output, images, experiment, {"n_frames": average.n_frames, "unit": found.unit})
    picture, geometry = output.with_suffix(".png"), output.with_suffix(".geom")
    write_atomic(picture, png_bytes(assemble(detector, average.maximum, np.isfinite(average.maximum), canvas_of(detector))))
    unplaced = tuple(replace(p, raw_image_offset=(0, 0)) for p in plain)  # each panel is an array of its own in the NXmx data
    write_geom(geom_of(replace(experiment, detector=replace(detector, panels=unplaced)), data="/entry/data/data"), geometry)
    return [output, picture, geometry]

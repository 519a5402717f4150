"""A whole simulated experiment, written to a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import OutputError
from xfelproc.simulation.displacement import displaced
from xfelproc.simulation.layout import Layout
from xfelproc.simulation.raw import Electronics
from xfelproc.simulation.scene import Shot, Simulator, mean_spot_spacing
from xfelproc.simulation.settings import SimulationSettings
from xfelproc.simulation.truth import Truth, write_truth
from xfelproc.simulation.writing import FrameWriter, write_cell, write_gain, write_geometry, write_job


@dataclass(frozen=True)
class SimulatedRun:
    """The files of a simulated experiment, and how many of its frames are hits.

    ``true_geometry`` is the geometry without the errors of ``geometry``. ``darks`` has a file of dark frames for each gain stage.
    """

    frames: Path
    geometry: Path
    true_geometry: Path
    cell: Path
    truth: Path
    job: Path
    n_frames: int
    n_hits: int
    darks: tuple[Path, ...] = ()
    gain: Path | None = None


Progress = Callable[[int], None]


def simulate(
    settings: SimulationSettings,
    output: Path,
    progress: Progress | None = None,
    layout: Layout | None = None,
    recorded: Layout | None = None,
) -> SimulatedRun:
    """Simulate the frames and write them, with their truth, to the folder ``output``; existing files are overwritten.

    ``progress`` is called with the number of frames done after each. ``layout`` replaces the true detector that the settings
    describe, ``recorded`` the one that the files are to state.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    ConfigError
        If the settings cannot be simulated.
    """
    simulator = Simulator(settings, layout=layout)
    try:
        output.mkdir(parents=True, exist_ok=True)
        return _write(simulator, recorded or recorded_layout(settings, simulator.layout), output, progress)
    except OSError as error:
        raise OutputError(f"{output} cannot be written ({error}): choose another folder or free some space") from error


def _write(simulator: Simulator, recorded: Layout, output: Path, progress: Progress | None) -> SimulatedRun:
    settings = simulator.settings
    electronics = None if settings.raw is None else Electronics(settings.raw, simulator.layout.detector, settings.seed)
    factor = 1.0 + settings.cell_error
    cell = (*(length * factor for length in settings.crystal.cell[:3]), *settings.crystal.cell[3:])
    frames = output / "frames.h5"
    truth = _write_frames(simulator, electronics, recorded, frames, progress)
    run = SimulatedRun(
        frames=frames,
        geometry=output / "frames.geom",
        true_geometry=output / "true.geom",
        cell=output / "crystal.cell",
        truth=output / "truth.h5",
        job=output / "job.toml",
        n_frames=settings.frames,
        n_hits=sum(bool(shot.crystals) for shot in truth.shots),
        darks=() if electronics is None else _write_darks(simulator, electronics, recorded, output),
        gain=None if electronics is None else output / "gain.h5",
    )
    if electronics is not None and run.gain is not None:
        write_gain(run.gain, electronics)
    write_geometry(run.geometry, settings, recorded)
    write_geometry(run.true_geometry, settings, simulator.layout)
    write_cell(run.cell, cell, settings.crystal.space_group)
    write_truth(run.truth, truth)
    write_job(run.job, run.frames, settings, cell)
    return run


def _write_frames(
    simulator: Simulator, electronics: Electronics | None, recorded: Layout, path: Path, progress: Progress | None
) -> Truth:
    """Write all frames and return what is true of them; the file appears whole."""
    settings, layout = simulator.settings, simulator.layout
    truth = Truth(settings, simulator.intensities, layout, recorded, np.array(recorded_shift(settings)), electronics)
    partial = path.with_name(f".{path.name}.partial")
    bad = simulator.dead if electronics is None else electronics.unbonded
    with FrameWriter(partial, settings, recorded, bad, settings.frames) as writer:
        for index in range(settings.frames):
            pixels, shot = simulator.frame(index) if electronics is None else simulator.photons(index)
            truth.shots.append(shot)
            if electronics is not None:
                pixels = _read_out(electronics, pixels, shot, index, truth)
            writer.write(layout.assemble(pixels), shot.wavelength)
            if progress is not None:
                progress(index + 1)
    partial.replace(path)
    return truth


def _read_out(electronics: Electronics, photons: NDArray[np.uint16], shot: Shot, index: int, truth: Truth) -> NDArray[np.uint16]:
    reading = electronics.expose(photons, shot.wavelength, index)
    truth.common_mode.append(reading.common_mode)
    if index < electronics.settings.kept_photons:
        truth.photons.append(photons)
    return reading.raw


def _write_darks(simulator: Simulator, electronics: Electronics, recorded: Layout, output: Path) -> tuple[Path, ...]:
    """Write a file of dark frames for each gain stage."""
    stages = len(electronics.settings.stages)
    paths = tuple(output / (f"dark_g{stage}.h5" if stages > 1 else "dark.h5") for stage in range(stages))
    if electronics.settings.darks == 0:
        return ()
    for stage, path in enumerate(paths):
        partial = path.with_name(f".{path.name}.partial")
        with FrameWriter(partial, simulator.settings, recorded, electronics.unbonded, electronics.settings.darks) as writer:
            for index in range(electronics.settings.darks):
                writer.write(simulator.layout.assemble(electronics.dark(stage, index).raw), simulator.settings.beam.wavelength)
        partial.replace(path)
    return paths


def recorded_layout(settings: SimulationSettings, true: Layout) -> Layout:
    """Return the layout that the files state: the true one with the settings' errors.

    Raises
    ------
    ConfigError
        If parts are to be displaced that the layout does not have.
    """
    shift = recorded_shift(settings)
    moved = displaced(true.detector, settings.geometry_error, settings.seed)
    return replace(true, detector=moved.shifted((-shift[0], -shift[1], -shift[2])))


def recorded_shift(settings: SimulationSettings) -> tuple[float, float, float]:
    """Return the translation (mm) from the recorded detector to the true one, in a direction that the seed chooses."""
    length = settings.centre_error * mean_spot_spacing(settings) * settings.detector.pixel_size
    angle = float(np.random.default_rng([settings.seed, 4]).uniform(0, 2 * np.pi))
    return (length * float(np.cos(angle)), length * float(np.sin(angle)), 0.0)

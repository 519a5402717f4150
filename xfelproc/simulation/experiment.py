"""A whole simulated experiment, written to a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from xfelproc.errors import OutputError
from xfelproc.simulation.scene import Shot, Simulator, mean_spot_spacing
from xfelproc.simulation.settings import SimulationSettings
from xfelproc.simulation.writing import FrameWriter, write_cell, write_geometry, write_job, write_truth


@dataclass(frozen=True)
class SimulatedRun:
    """The files of a simulated experiment, and how many of its frames are hits."""

    frames: Path
    geometry: Path
    cell: Path
    truth: Path
    job: Path
    n_frames: int
    n_hits: int


def simulate(settings: SimulationSettings, output: Path, progress: Callable[[int], None] | None = None) -> SimulatedRun:
    """Simulate the frames and write them, with their truth, to the folder ``output``; existing files are overwritten.

    ``progress`` is called with the number of frames done after each.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    ConfigError
        If the settings cannot be simulated.
    """
    simulator = Simulator(settings)
    try:
        output.mkdir(parents=True, exist_ok=True)
        return _write(simulator, output, progress)
    except OSError as error:
        raise OutputError(f"{output} cannot be written ({error}): choose another folder or free some space") from error


def _write(simulator: Simulator, output: Path, progress: Callable[[int], None] | None) -> SimulatedRun:
    settings = simulator.settings
    shift = recorded_shift(settings)
    recorded = replace(simulator.layout, detector=simulator.layout.detector.shifted((-shift[0], -shift[1], -shift[2])))
    factor = 1.0 + settings.cell_error
    cell = (*(length * factor for length in settings.crystal.cell[:3]), *settings.crystal.cell[3:])
    shots: list[Shot] = []
    partial = output / ".frames.h5.partial"
    writer = FrameWriter(partial, settings, recorded, simulator.dead)
    try:
        for index in range(settings.frames):
            counts, shot = simulator.frame(index)
            writer.write(simulator.layout.assemble(counts), shot.wavelength)
            shots.append(shot)
            if progress is not None:
                progress(index + 1)
    finally:
        writer.close()
    run = SimulatedRun(
        frames=output / "frames.h5",
        geometry=output / "frames.geom",
        cell=output / "crystal.cell",
        truth=output / "truth.h5",
        job=output / "job.toml",
        n_frames=settings.frames,
        n_hits=sum(bool(shot.crystals) for shot in shots),
    )
    write_geometry(run.geometry, settings, recorded)
    write_cell(run.cell, cell, settings.crystal.space_group)
    write_truth(run.truth, shots, simulator.intensities, np.array(shift))
    write_job(run.job, run.frames, settings, cell)
    partial.replace(run.frames)
    return run


def recorded_shift(settings: SimulationSettings) -> tuple[float, float, float]:
    """Return the translation (mm) from the recorded detector to the true one, in a direction that the seed chooses."""
    length = settings.centre_error * mean_spot_spacing(settings) * settings.detector.pixel_size
    angle = float(np.random.default_rng([settings.seed, 4]).uniform(0, 2 * np.pi))
    return (length * float(np.cos(angle)), length * float(np.sin(angle)), 0.0)

"""Geometries and residuals of runs, for tables and pictures of their panels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.metrology.state import LevelOutcome
from xfelproc.geometry.placement import with_placement
from xfelproc.io.exchange import load_geometry
from xfelproc.io.nodes import read_node
from xfelproc.models.experiment import Detector, Experiment
from xfelproc.report.metrology import MetrologyData, outcome_rows
from xfelproc.report.residuals import ResidualFold
from xfelproc.run.combining import workplace
from xfelproc.run.config import Execution, JobConfig
from xfelproc.run.directory import RunDirectory
from xfelproc.run.exporting import FinishedRun
from xfelproc.run.folding import read_partial
from xfelproc.run.geometry import PROCESS, metrology_record
from xfelproc.run.refining import result_path
from xfelproc.stages.fold import Shards, cut_leaves
from xfelproc.stages.metrology import unpacked_state


def geometry_of(path: Path) -> Experiment:
    """Return the geometry in a file, or that of a run's first frame as the run left it.

    Raises
    ------
    ConfigError
        If a folder is no finished run.
    DataError
        If a file cannot be read.
    """
    return FinishedRun.open(path).first_experiment() if path.is_dir() else load_geometry(path)


def run_residuals(folder: Path, workers: int = 1) -> MetrologyData:
    """Return the residuals of a run's indexed spots, before and after metrology where it ran; the run's folder is only read.

    Raises
    ------
    ConfigError
        If it is no finished run.
    """
    run = FinishedRun.open(folder)
    models = run.first_experiment()
    execution = Execution(driver="inline" if workers == 1 else "pool", workers=workers)
    leaves = cut_leaves(np.diff(run.manifest.offsets), run.config.execution.fold_size)

    def residuals(stage: str, detector: Detector) -> NDArray[np.float64]:
        shards = Shards(stage, ((folder.absolute(), run.manifest.n_units),))
        with TemporaryDirectory() as place, workplace(Path(place) / "statistics", execution) as gathering:
            path = gathering.fold(ResidualFold(detector, models.beam.direction), stage, 0, shards, leaves)
            return read_partial(path)["residuals"]

    after = residuals(run.stage, models.detector)
    return metrology_data(run.config, run.directory, models, after, lambda detector: residuals(PROCESS, detector))


def metrology_data(
    config: JobConfig,
    directory: RunDirectory,
    models: Experiment,
    after: NDArray[np.float64],
    before: Callable[[Detector], NDArray[np.float64]],
) -> MetrologyData:
    """Return what is shown of a run's panels.

    Parameters
    ----------
    models
        Of the first frame, with the geometry that the run ended with.
    after
        Sums of residuals with that.
    before
        Computes them of the shards before the detector was refined, with the recorded detector.
    """
    record = metrology_record(config, directory)
    if record is None:
        return MetrologyData(models.detector, after, models.beam.direction)
    notes = _notes(record)
    if record["stage"] == PROCESS:
        return MetrologyData(models.detector, after, models.beam.direction, notes=notes)
    recorded = with_placement(models.detector, record["before"])
    rows = outcome_rows(_outcomes(directory, record))
    return MetrologyData(models.detector, after, models.beam.direction, recorded, before(recorded), notes=notes, **rows)


def _notes(record: dict[str, Any]) -> list[str]:
    kept = record["stage"] == PROCESS
    lines = []
    for done in record["rounds"]:
        found = f"Round {done['number'] + 1}: {done['lattices']:,} lattices, {done['spots']:,} spots, {done['iterations']} passes"
        end = f"panels moved by {done['shift_px']:.3f} px rms" if done["converged"] else f"not taken: {done['why']}"
        lines.append(f"{found}; {end}.")
    return [*lines, f"{'The panels stay where they were recorded' if kept else 'It ended there'}: {record['why']}."]


def _outcomes(directory: RunDirectory, record: dict[str, Any]) -> tuple[LevelOutcome, ...]:
    """Return the levels of the last round that was taken; none where its file is gone."""
    taken = [int(done["number"]) for done in record["rounds"] if done["converged"]]
    path = result_path(directory.gather, taken[-1]) if taken else None
    if path is None or not path.is_file():
        return ()
    # a plug-in's refinement may have no levels to tell of
    outcomes: tuple[LevelOutcome, ...] = getattr(unpacked_state(read_node(path)[1]["result"]), "outcomes", ())
    return outcomes

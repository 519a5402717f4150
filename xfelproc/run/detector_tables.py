"""Geometries and residuals of runs, for tables and pictures of their panels."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from xfelproc.io.exchange import load_geometry
from xfelproc.models.experiment import Experiment
from xfelproc.report.metrology import MetrologyData
from xfelproc.report.residuals import ResidualFold
from xfelproc.run.combining import workplace
from xfelproc.run.config import Execution
from xfelproc.run.exporting import FinishedRun
from xfelproc.run.folding import read_partial
from xfelproc.stages.fold import Shards, cut_leaves


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
    shards = Shards(run.stage, ((folder.absolute(), run.manifest.n_units),))
    leaves = cut_leaves(np.diff(run.manifest.offsets), run.config.execution.fold_size)
    fold = ResidualFold(models.detector, models.beam.direction)
    with TemporaryDirectory() as place, workplace(Path(place) / "statistics", execution) as gathering:
        sums = read_partial(gathering.fold(fold, "residuals", 0, shards, leaves))["residuals"]
    return MetrologyData(models.detector, sums, models.beam.direction)

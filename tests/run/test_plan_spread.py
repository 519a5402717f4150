"""Frames of very many files are counted by workers: the manifest is the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from xfelproc.errors import WorkersDieError
from xfelproc.run import plan as planning
from xfelproc.run.config import Execution, load_config
from xfelproc.run.plan import make_plan
from xfelproc.run.recipes import Crew, default_opener
from xfelproc.stages.counting import Counted, CountTask

GEOMETRY = """
photon_energy = 9000
clen = 0.1
adu_per_photon = 1
res = 10000
data = /entry/data/data
dim0 = %
dim1 = ss
dim2 = fs
p0/min_fs = 0
p0/max_fs = 31
p0/min_ss = 0
p0/max_ss = 15
p0/corner_x = -16
p0/corner_y = -8
p0/fs = +1.0x
p0/ss = +1.0y
"""


def many_files(folder: Path, n: int) -> Path:
    for number in range(n):
        with h5py.File(folder / f"run_{number}.h5", "w") as file:
            shape = (1 + number % 3, 16, 32) if number != 70 else (2, 16, 31)
            file.create_dataset("entry/data/data", shape=shape, dtype="u2", chunks=(1, *shape[1:]))
    (folder / "run_80.h5").write_bytes(b"no HDF5")
    (folder / "detector.geom").write_text(GEOMETRY)
    job = folder / "job.toml"
    job.write_text('[input]\nfiles = ["run_*.h5"]\ngeometry = "detector.geom"\n')
    return job


def test_counted_by_workers_is_as_counted_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MANY_FILES", 10)
    monkeypatch.setattr(planning, "FILES_A_TASK", 7)
    config, opener = load_config(many_files(tmp_path, 90)), default_opener()
    sizes: list[int] = []

    def spread(function: Callable[[CountTask], list[Counted | None]], tasks: Sequence[CountTask]) -> Iterable[list[Counted | None]]:
        sizes.extend(len(task.paths) for task in tasks)
        return map(function, tasks)

    alone, together = make_plan(config, opener), make_plan(config, opener, spread)
    assert sizes == [7, 7, 7, 5]
    assert together.manifest.stamp == alone.manifest.stamp
    assert np.array_equal(together.manifest.offsets, alone.manifest.offsets)
    assert together.manifest.sources.errors == alone.manifest.sources.errors
    assert len(alone.manifest.sources.errors) == 2


def test_a_file_that_ends_a_worker_is_told_of(tmp_path: Path) -> None:
    crew = Crew(Execution(driver="pool", workers=1), tmp_path)
    with pytest.raises(WorkersDieError, match="a worker died while it counted the frames"):
        crew.map(os._exit, [1])
    crew.close()

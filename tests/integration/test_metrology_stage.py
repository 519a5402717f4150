"""The gather stage with the real command: the same bytes on every driver, and after kills in its midst."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import command, environment, xfelproc, xfelproc_mpi
from xfelproc.io.shards import read_shard, shard_path
from xfelproc.run.config import load_config
from xfelproc.run.directory import RunDirectory
from xfelproc.run.geometry import result_stage
from xfelproc.simulation import preset, simulate

pytestmark = pytest.mark.slow

DETECTOR = {"layout": "tiles", "size": (320, 160), "pixel_size": 0.2, "distance": 120.0}
ERROR = {"panels": {"in_plane": 0.8, "rotation": 0.05}, "centre": (0.5, -0.4)}


@pytest.fixture(scope="module")
def displaced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 26 simulated frames whose recorded panels are displaced, with a job file."""
    folder = tmp_path_factory.mktemp("displaced")
    simulate(preset("single", frames=26, detector=DETECTOR, geometry_error=ERROR), folder)
    with (folder / "job.toml").open("a") as stream:
        stream.write("\n[execution]\nworkers = 2\nunit_size = 4\nfold_size = 4\n\n[report]\nenabled = false\n")
    return folder


@pytest.fixture(scope="module")
def calm(displaced: Path) -> Path:
    """Run directory of it, by the driver inline."""
    run = displaced / "calm"
    result = xfelproc("run", displaced / "job.toml", "-o", run, "--driver", "inline")
    assert result.code == 0, result.output
    assert "lattices move the panels" in result.output, result.output
    return run


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "gather" / "metrology.json").read_text())
    return found


def assert_same(run: Path, calm: Path) -> None:
    assert record(run) == record(calm)
    for name in ("merged/merged.mtz", "merged/unmerged.mtz", "gather/geometry.geom", "gather/geometry.expt"):
        assert (run / name).read_bytes() == (calm / name).read_bytes(), name
    assert not list(run.rglob(".tmp-*"))


def test_it_is_better_than_before(displaced: Path, calm: Path) -> None:
    assert result_stage(load_config(calm / "job.toml"), RunDirectory(calm)) == "reprocess"
    rmsd = {}
    for stage in ("process", "reprocess"):
        lattices = read_shard(shard_path(calm, stage, 0)).lattices
        rmsd[stage] = sorted(lattices["rmsd_used"])[len(lattices) // 2]
    assert rmsd["reprocess"] < 0.7 * rmsd["process"]


@pytest.mark.parametrize("driver", ["pool", "dask", "mpi"])
def test_the_same_bytes_from_every_driver(displaced: Path, calm: Path, tmp_path: Path, driver: str) -> None:
    arguments = ["run", displaced / "job.toml", "-o", tmp_path / "run"]
    if driver == "dask":
        pytest.importorskip("distributed", reason="Dask is not installed: pip install 'xfelproc[dask]'")
    result = xfelproc_mpi(3, *arguments) if driver == "mpi" else xfelproc(*arguments, "--driver", driver)
    assert result.code == 0, result.output
    assert_same(tmp_path / "run", calm)


def test_killed_in_the_midst_of_it(displaced: Path, calm: Path, tmp_path: Path) -> None:
    """All processes at once, some time after the frames were processed."""
    run, moments = tmp_path / "run", random.Random(20260102)
    run.mkdir()
    for name in ("job.toml", "manifest.h5", "lineage.json", "journal.jsonl"):
        shutil.copy(calm / name, run / name)
    shutil.copytree(calm / "shards" / "process", run / "shards" / "process")
    arguments: list[object] = ["run", displaced / "job.toml", "-o", run, "--driver", "pool"]
    for _ in range(3):
        process = subprocess.Popen(
            command(arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while not (run / "gather" / "metrology").exists() and process.poll() is None:
            time.sleep(0.02)
        time.sleep(moments.uniform(0.0, 2.0))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    result = xfelproc(*arguments)
    assert result.code == 0, result.output
    assert_same(run, calm)

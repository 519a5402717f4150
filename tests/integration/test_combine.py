"""Combined experiments and tables of the detector by the real command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.integration.conftest import xfelproc
from xfelproc.io.exchange.dials_expt import read_expt
from xfelproc.io.exchange.dials_refl import read_refl
from xfelproc.io.shards import read_lattices, shard_path


def test_combine(undisturbed: Path, tmp_path: Path) -> None:
    result = xfelproc("combine", undisturbed, "-o", tmp_path / "x.expt", "--driver", "inline", "--detector", "average", "-n", 6)
    assert result.code == 0, result.output
    assert "6 of 17 lattices" in result.output
    assert "11 left out: not in the subset" in result.output
    experiments, table = read_expt(tmp_path / "x.expt"), read_refl(tmp_path / "x.refl")
    assert len({id(e.detector) for e in experiments}) == 1
    assert table.n_rows > 100
    assert np.unique(table.array("id")).tolist() == list(range(6))
    off = table.array("xyzobs.px.value") - table.array("xyzcal.px")
    assert np.sqrt(np.mean(off[:, :2] ** 2)) < 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.expt", "x.refl"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-o", "x.pdf"], "must end in .expt"),
        (["-o", "x.expt", "--beam", "none"], "combine"),
        (["-o", "x.expt", "--set", "combine.n_subsett=3"], "n_subset"),
        (["-o", "x.expt", "--set", "spots.min_snr=3"], "combine.KEY=VALUE alone"),
        (["-o", "x.expt", "--set", "combine.min_reflections=100000", "--driver", "inline"], "no lattice is left to combine"),
    ],
)
def test_wrong_requests(undisturbed: Path, tmp_path: Path, arguments: list[str], text: str) -> None:
    result = xfelproc("combine", undisturbed, arguments[0], tmp_path / arguments[1], *arguments[2:])
    assert result.code == 2, result.output
    assert text in result.output
    assert not list(tmp_path.glob("x.*[!s]"))


def test_a_run_writes_its_own(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    options = ("-o", run, "--driver", "inline", "--set", "combine.enabled=true", "--set", "combine.rmsd_iqr=1.5")
    result = xfelproc("run", experiment / "job.toml", *options, "--only", "combine")
    assert result.code == 0, result.output
    files = [run / "gather" / f"combined.{suffix}" for suffix in ("expt", "refl")]
    before = [path.stat().st_mtime_ns for path in files]
    record = json.loads((run / "gather" / "combine.json").read_text())
    n = sum(len(read_lattices(shard_path(run, "process", unit))) for unit in range(12))
    assert len(read_expt(files[0])) == record["lattices"] <= record["offered"] == n
    assert xfelproc("run", experiment / "job.toml", *options, "--only", "combine").code == 0
    assert [path.stat().st_mtime_ns for path in files] == before
    assert xfelproc("run", experiment / "job.toml", *options, "--set", "combine.format=zarr", "--only", "combine").code == 0
    assert not files[0].exists()
    assert (run / "gather" / "combined.zarr").is_dir()


def test_detector_tables(undisturbed: Path, tmp_path: Path) -> None:
    assert xfelproc("export", undisturbed, "--to", "geom", "-o", tmp_path / "a.geom").code == 0
    shifts = json.loads(xfelproc("detector-shifts", tmp_path / "a.geom", undisturbed, "--json").output)
    assert np.abs([row["shift"] for row in shifts]).max() < 1e-6
    shown = xfelproc("detector-shifts", tmp_path / "a.geom", undisturbed, "--picture", tmp_path / "x.html")
    assert "without the motion of the detector as a whole" in shown.output
    assert (tmp_path / "x.html").stat().st_size > 100_000
    statistics = json.loads(xfelproc("detector-statistics", undisturbed, "--json").output)["panels"]
    assert statistics[-1]["n_spots"] > 300
    assert 0 < statistics[-1]["rmsd_fast"] < 1
    assert "rmsd.radial" in xfelproc("detector-statistics", undisturbed).output

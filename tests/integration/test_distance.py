"""Frames whose recorded distance is wrong, through the real command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gemmi
import h5py
import pytest

from tests.integration.conftest import xfelproc
from xfelproc.io.exchange.geom import read_geom
from xfelproc.run.journal import read_journal

pytestmark = pytest.mark.slow
TRUE, RECORDED = 120.0, 109.0


@pytest.fixture(scope="module")
def job(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated experiment, with a distance in its file that is 9 % short."""
    folder = tmp_path_factory.mktemp("short")
    for name in ("job.toml", "frames.h5"):
        shutil.copy(experiment / name, folder)
    with h5py.File(folder / "frames.h5", "r+") as file:
        stored = file["/entry/instrument/detector/transformations/distance"]
        assert stored[()] == TRUE
        stored[...] = RECORDED
    return folder / "job.toml"


def indexed(run: Path) -> int:
    counts = json.loads(xfelproc("status", run, "--json").output)["counts"]
    return int(counts["INTEGRATED"])


def test_wrong_distance(job: Path, undisturbed: Path, tmp_path: Path) -> None:
    """All hits index as at the true distance, and log, journal, report and MTZ say so; again, nothing is done."""
    result = xfelproc("run", job, "-o", tmp_path / "run", "--set", "report.enabled=true")
    assert result.code == 0, result.output
    told = f"the recorded distance of the detector, {RECORDED:.1f} mm, does not fit the cell: found {TRUE:.1f} mm"
    assert f"warning: {told}" in result.output
    assert indexed(tmp_path / "run") == indexed(undisturbed)
    assert any(e["event"] == "warning" and told in e["text"] for e in read_journal(tmp_path / "run"))
    assert told in (tmp_path / "run" / "report.html").read_text()
    mtz = gemmi.read_mtz_file(str(tmp_path / "run" / "merged" / "merged.mtz"))
    assert "recorded distance of the detector" in " ".join(mtz.history)
    exported = xfelproc("export", tmp_path / "run", "--to", "geom", "-o", tmp_path / "out.geom")
    assert exported.code == 0, exported.output
    assert -read_geom(tmp_path / "out.geom").detector({}).panels[0].origin[2] == pytest.approx(TRUE, abs=0.2)
    merged = (tmp_path / "run" / "merged" / "merged.mtz").read_bytes()
    again = xfelproc("run", job, "-o", tmp_path / "run", "--set", "report.enabled=true")
    assert again.code == 0
    assert not [line for line in again.output.splitlines() if line.startswith("distance: ")]
    assert (tmp_path / "run" / "merged" / "merged.mtz").read_bytes() == merged
    alone = xfelproc("run", job, "-o", tmp_path / "inline", "--driver", "inline")
    assert alone.code == 0
    assert (tmp_path / "inline" / "merged" / "merged.mtz").read_bytes() == merged


def test_switched_off(job: Path, tmp_path: Path) -> None:
    result = xfelproc("run", job, "-o", tmp_path / "run", "--only", "process", "--set", "sample.max_distance_error=0")
    assert "does not fit the cell" not in result.output
    assert indexed(tmp_path / "run") <= 2


def test_the_true_distance_given(job: Path, undisturbed: Path, tmp_path: Path) -> None:
    result = xfelproc("run", job, "-o", tmp_path / "run", "--only", "process", "--set", f"input.distance={TRUE}")
    assert "does not fit the cell" not in result.output
    assert indexed(tmp_path / "run") == indexed(undisturbed)

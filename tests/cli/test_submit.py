"""Commands submit and status where there is no SLURM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from xfelproc.cli.app import make_app
from xfelproc.drivers.slurm import SubmittedJob, add_record
from xfelproc.errors import QueueError


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run_1.toml"
    path.write_text('[input]\nfiles = "frames.h5"\n[slurm]\npartition = "day"\nmpi = "none"\n')
    return path


def test_dry_run(job: Path) -> None:
    result = CliRunner().invoke(make_app(), ["submit", str(job), "--dry-run", "--set", "slurm.time=08:00:00"])
    assert result.exit_code == 0, result.output
    process, merge = result.output.split("#!/bin/bash")[1:]
    assert "#SBATCH --partition=day\n#SBATCH --time=08:00:00\n" in process
    assert "sbatch --dependency=afterok:JOB --kill-on-invalid-dep=yes merge.sbatch" in process
    assert f"\n  {job.parent}/run_1.run\n" in merge
    assert [path.name for path in job.parent.iterdir()] == ["run_1.toml"]


def test_dry_run_of_many(job: Path) -> None:
    other = job.with_name("run_2.toml")
    other.write_text(job.read_text())
    result = CliRunner().invoke(make_app(), ["submit", str(job), str(other), "-o", "all", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert f"{job.parent}/all/run_1.run\n  {job.parent}/all/run_2.run\n" in result.output
    assert "#SBATCH --array=0-1\n" in result.output


def test_submitting_needs_slurm(job: Path) -> None:
    with pytest.raises(QueueError, match="--dry-run"):
        CliRunner().invoke(make_app(), ["submit", str(job), "--no-check"], catch_exceptions=False)
    assert [path.name for path in job.parent.iterdir()] == ["run_1.toml"]


def test_status_of_a_run_that_waits(job: Path) -> None:
    run = job.with_suffix(".run")
    add_record(run, [SubmittedJob("12", None, "process", "/script", "now")])
    result = CliRunner().invoke(make_app(), ["status", str(run)])
    assert result.output.splitlines()[0] == f"{run}: submitted, not begun"
    assert result.output.splitlines()[1].startswith("SLURM job 12 (process): UNKNOWN (squeue is not on this machine")
    status = json.loads(CliRunner().invoke(make_app(), ["status", str(run), "--json"]).output)
    assert status["state"] == "submitted"
    assert status["queue"][0]["name"] == "12"

"""Submission with stubs of SLURM's commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xfelproc.drivers.slurm import read_record
from xfelproc.errors import ConfigError, QueueError, RunDirectoryError
from xfelproc.run.config import load_config, make_config
from xfelproc.run.submitting import RunJob, submit_runs


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """File of what sbatch was called with; jobs are numbered from 11."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = tmp_path / "said"
    path.write_text("")
    bodies = {
        "sbatch": f'[ "$1" = --version ] && exit; echo "$@" >>{path}; echo $((10 + $(wc -l <{path})))',
        "squeue": "exit 0",
        "sacct": "exit 1",
        "scontrol": "echo 'MaxArraySize = 2'",
    }
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return path


def run_job(run: Path, **keys: Any) -> RunJob:
    document = {"input": {"files": "a.h5"}, "slurm": {"mpi": "none", **keys}}
    return RunJob(make_config(document, run.parent), run)


def test_one_run_is_a_chain(tmp_path: Path, said: Path) -> None:
    run = tmp_path / "one.run"
    process, merge = submit_runs([run_job(run)])
    assert said.read_text().splitlines() == [
        f"--parsable {run}/logs/process.sbatch",
        f"--parsable --dependency=afterok:11 --kill-on-invalid-dep=yes {run}/logs/merge.sbatch",
    ]
    assert (process.id, merge.id) == ("11", "12")
    assert [(job.name, job.part) for job in read_record(run)] == [("11", "process"), ("12", "merge")]
    assert "#SBATCH --job-name=one-process\n" in (run / "logs" / "process.sbatch").read_text()
    assert (run / "logs" / "merge.sbatch").read_text() == merge.script


def test_the_job_is_kept_as_it_was(tmp_path: Path, said: Path) -> None:
    run = tmp_path / "one.run"
    submit_runs([run_job(run)])
    kept = run / "logs" / "submitted.toml"
    assert f"  {kept}\n" in (run / "logs" / "process.sbatch").read_text()
    assert load_config(kept).input.files == (str(tmp_path / "a.h5"),)


def test_many_runs_are_arrays(tmp_path: Path, said: Path) -> None:
    runs = [tmp_path / f"r{i}" for i in range(3)]
    done = submit_runs([run_job(run, merge_job=True) for run in runs], name="all of them")
    assert [(one.part, one.id, len(one.runs)) for one in done] == [
        ("process", "11", 2),
        ("merge", "12", 2),
        ("process", "13", 1),  # more than MaxArraySize
        ("merge", "14", 1),
    ]
    assert "--dependency=aftercorr:11" in said.read_text().splitlines()[1]
    assert "--dependency=afterok:13" in said.read_text().splitlines()[3]
    assert [job.name for job in read_record(runs[1])] == ["11_1", "12_1"]
    assert [job.name for job in read_record(runs[2])] == ["13", "14"]
    assert "#SBATCH --array=0-1\n" in done[0].script
    assert "--job-name=all_of_them-process" in done[0].script


def test_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    run = tmp_path / "run"
    process, merge = submit_runs([run_job(run)], dry_run=True)
    assert process.id is None
    assert merge.options == ("--dependency=afterok:JOB", "--kill-on-invalid-dep=yes")
    assert not run.exists()
    with pytest.raises(QueueError, match="sbatch is not on this machine: submit from a login node"):
        submit_runs([run_job(run)])
    assert not run.exists()


def test_a_run_in_the_queue_is_refused(tmp_path: Path, said: Path) -> None:
    submit_runs([run_job(tmp_path / "run")])
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text("#!/bin/bash\necho '11|RUNNING|None|1:00|0|n1|N/A|'\n")
    with pytest.raises(ConfigError, match=r"a job in the queue already: job 11 \(process\): RUNNING on n1.*scancel 11"):
        submit_runs([run_job(tmp_path / "run")])
    squeue.write_text("#!/bin/bash\necho '11|COMPLETED|None|1:00|0|n1|N/A|'\n")
    submit_runs([run_job(tmp_path / "run")])
    assert len(read_record(tmp_path / "run")) == 4


def test_wrong_submissions(tmp_path: Path, said: Path) -> None:
    with pytest.raises(ConfigError, match="there is no job to submit"):
        submit_runs([])
    with pytest.raises(ConfigError, match="two jobs have the run directory"):
        submit_runs([run_job(tmp_path / "a"), run_job(tmp_path / "a")])
    with pytest.raises(ConfigError, match=r"slurm.partition: not set -> long"):
        submit_runs([run_job(tmp_path / "a"), run_job(tmp_path / "b", partition="long")])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").touch()
    with pytest.raises(RunDirectoryError, match="not of a run"):
        submit_runs([run_job(tmp_path / "c")])
    assert said.read_text() == ""

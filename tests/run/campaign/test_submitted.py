"""Runs under SLURM, with stubs in place of its commands; the real ones are called in tests/integration/test_slurm.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xfelproc.drivers import slurm
from xfelproc.io.atomic import write_atomic
from xfelproc.run.campaign import submitted
from xfelproc.run.campaign.ledger import CampaignFolder, RunState, read_record, write_record
from xfelproc.run.campaign.plan import CampaignRun
from xfelproc.run.config import dump_config
from xfelproc.run.signals import StopFlag

AWAY = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
FORGOTTEN = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"

Squeue = Callable[[str], None]


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Squeue:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(submitted, "FIRST_POLL", 0.01)

    def answers(body: str) -> None:
        for name, text in (("squeue", body), ("sacct", "exit 1")):
            (folder / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / name).chmod(0o755)

    return answers


@pytest.fixture
def run(tmp_path: Path) -> tuple[CampaignFolder, CampaignRun]:
    """A run that was submitted and has not begun."""
    folder, run = CampaignFolder(tmp_path / "all"), CampaignRun("r1", {}, {"input": {"files": ["/none.h5"]}})
    folder.create()
    slurm.add_record(folder.run("r1"), [slurm.SubmittedJob("12", None, "process", "/script", "1")])
    write_atomic(folder.run("r1") / "logs" / submitted.JOB, dump_config(run.config()).encode())
    return folder, run


def test_a_controller_that_is_away_says_nothing_of_a_run(run: tuple[CampaignFolder, CampaignRun], squeue: Squeue) -> None:
    squeue(AWAY)
    submitted.reconcile(*run)
    assert read_record(run[0], "r1") == {}
    squeue(FORGOTTEN)
    submitted.reconcile(*run)
    assert read_record(run[0], "r1")["ended"] == "refused"


def test_runs_are_waited_for_while_the_controller_is_away(run: tuple[CampaignFolder, CampaignRun], squeue: Squeue) -> None:
    ended: list[RunState] = []
    said: list[str] = []
    squeue(f"echo >>{run[0].path}/asked; [[ $(wc -l <{run[0].path}/asked) -gt 6 ]] || {{ {AWAY}; }}; {FORGOTTEN}")
    submitted.wait_for(run[0], [run[1]], StopFlag(), ended.append, said.append)
    assert [state.state for state in ended] == ["failed"]
    assert len((run[0].path / "asked").read_text().splitlines()) > 7
    assert len(said) == 1
    assert "Unable to contact slurm controller" in said[0]


def test_a_run_that_was_done_here_since_is_not_judged_by_its_submission(
    run: tuple[CampaignFolder, CampaignRun], squeue: Squeue
) -> None:
    squeue(FORGOTTEN)
    write_record(run[0], "r1", {"stamp": "of another job", "exit_code": 0, "message": "", "ended": "end"})
    submitted.reconcile(*run)
    assert read_record(run[0], "r1")["stamp"] == "of another job"
    slurm.add_record(run[0].run("r1"), [slurm.SubmittedJob("13", None, "process", "/script", "2")])
    submitted.reconcile(*run)
    assert read_record(run[0], "r1")["stamp"] != "of another job"

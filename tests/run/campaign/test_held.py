"""A run that outlived its campaign: the next command waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from xfelproc.run.campaign import campaign as module
from xfelproc.run.campaign.campaign import Campaign, process
from xfelproc.run.campaign.execute import Work, command, to_do
from xfelproc.run.lock import run_lock
from xfelproc.run.signals import StopFlag


def test_a_run_at_work_is_waited_for_after_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("r1", "r2"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "a.h5").touch()
    (tmp_path / "base.toml").write_text("[input]\nfiles = []\n")
    (tmp_path / "archive.toml").write_text('base = "base.toml"\n[runs]\npattern = "raw/{run}/*.h5"\n')
    campaign = Campaign.load(tmp_path / "archive.toml")
    campaign.folder.run("r1").mkdir(parents=True)
    given: list[Work] = []

    def run_here(folder: Any, works: Sequence[Work], *rest: Any) -> None:
        given.extend(works)

    monkeypatch.setattr(module, "run_here", run_here)
    said: list[str] = []
    with run_lock(campaign.folder.run("r1")):
        works = to_do(campaign.runs, campaign.states(), retry=False)
        process(campaign, works, StopFlag(), lambda state: None, said.append)
    assert [(work.run.name, work.held) for work in given] == [("r2", False), ("r1", True)]
    assert said == ["r1: at work already: it is waited for, after the others"]
    assert "--wait" in command(campaign.folder, given[1], ())
    assert "--wait" not in command(campaign.folder, given[0], ())

"""The figures that a campaign tells of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xfelproc.run.campaign.ledger import CampaignFolder, state_of
from xfelproc.run.campaign.plan import expand
from xfelproc.run.campaign.settings import load_campaign


def test_discarded_results_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "r1.h5").touch()
    (tmp_path / "base.toml").write_text("[input]\nfiles = []\n")
    (tmp_path / "archive.toml").write_text('base = "base.toml"\n[runs]\npattern = "raw/{run}.h5"\n')
    (run,) = expand(load_campaign(tmp_path / "archive.toml"))
    folder = CampaignFolder(tmp_path / "processed")
    directory = folder.run("r1")
    directory.mkdir(parents=True)
    for name in ("job.toml", "manifest.h5"):
        (directory / name).touch()
    unit: dict[str, Any] = {"time": 1.0, "event": "unit", "stage": "process", "unit": 0, "seconds": 2.0}
    events = [unit | {"counts": {"BLANK": 8}}, {"time": 2.0, "event": "restart"}, unit | {"counts": {"INTEGRATED": 8}}]
    (directory / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    state = state_of(folder, run)
    assert dict(state.counts) == {"INTEGRATED": 8}
    assert state.seconds == 2.0

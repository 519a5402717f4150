"""What the command campaign says before it begins."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from xfelproc.cli.campaign import announce, table_lines
from xfelproc.report.campaign import CampaignRow, build_campaign_report
from xfelproc.run.campaign.ledger import RunState


def test_runs_that_need_merging_alone_are_told() -> None:
    states = [
        RunState("r1", "partial", frames=8, counts=Counter(BLANK=3, INTEGRATED=4, FAILED=1, LATTICES=5)),
        RunState("r2", "partial", frames=8, counts=Counter(BLANK=3, INTEGRATED=4, LATTICES=4)),
        RunState("r3", "partial"),
    ]
    assert [state.merging_left for state in states] == [True, False, False]
    said: list[str] = []
    campaign: Any = SimpleNamespace(name="archive")
    announce(campaign, states, [], said.append)
    assert said == ["archive: 3 runs (3 partial), 0 to do", "r1: its frames are done: merging alone is left"]


def test_long_reasons_are_shortened_in_tables() -> None:
    message = "cannot be opened:\n" + " ".join(["word"] * 100)
    row = CampaignRow("r1", "failed", message, 0, {}, None, None, {})
    *_, line = table_lines([row])
    assert line.endswith("word word ...")
    assert len(line) < 300
    page = build_campaign_report("archive", [row], [], [])
    assert page.count("<details><summary>cannot be opened: word") == 1
    assert message in page
    short = CampaignRow("r1", "failed", "no file", 0, {}, None, None, {})
    assert table_lines([short])[-1].endswith("  no file")
    assert "<details>" not in build_campaign_report("archive", [short], [], [])

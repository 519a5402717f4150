"""What the command campaign says before it begins."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from xfelproc.cli.campaign import announce
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

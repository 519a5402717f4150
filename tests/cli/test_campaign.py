"""The command ``campaign``; whole campaigns are in tests/integration/test_campaign.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xfelproc.cli import campaign
from xfelproc.run.signals import Interrupted, StopFlag


def test_the_first_interrupt_is_for_the_runs_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in sessions of their own: if they are not told, they are waited for to their end."""
    raised: list[int] = []

    def process(given: Any, works: Any, stop: StopFlag, *more: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        raised.append(stop.raised)
        raise Interrupted(stop.raised)

    empty = SimpleNamespace(name="", runs=(), states=lambda: [])
    monkeypatch.setattr(campaign.Campaign, "load", lambda path: empty)
    monkeypatch.setattr(campaign, "process", process)
    with pytest.raises(Interrupted):
        campaign.campaign_command(Path("archive.toml"), False, False, False, False, ())
    assert raised == [signal.SIGINT]

"""Runs merged together by group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from xfelproc.run.campaign.campaign import Campaign


@dataclass(frozen=True)
class GroupState:
    """What became of a group: as of a run, with the names of the runs that are in its merged data."""

    name: str
    state: str
    message: str
    runs: tuple[str, ...]
    columns: Mapping[str, str]
    frames: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    merged: dict[str, Any] | None = None
    link: str | None = None


def merge_groups(campaign: Campaign, say: Callable[[str], None]) -> list[GroupState]:
    """Merge each group whose runs have changed since; return what became of all."""
    return []


def read_groups(campaign: Campaign) -> list[GroupState]:
    """Return what was merged before."""
    return []

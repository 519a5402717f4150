"""What the dispatch loop deals with: time, units in flight, where their workers are, and units that run alone."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from xfelproc.errors import WorkersDieError
from xfelproc.run.suspects import Quarantine

T = TypeVar("T")
Done = SimpleQueue[Future[Any]]
"""Futures that have ended, in that order."""


class Clock:
    """Time as the loop sees it; a discrete-event simulation gives its own."""

    def now(self) -> float:
        """Return seconds, from any origin."""
        return time.monotonic()

    def wall(self) -> float:
        """Return seconds since 1970, the time of the in-flight records."""
        return time.time()

    def wait(self, done: Done, seconds: float) -> Future[Any] | None:
        """Return the next future that ended, or None after so many seconds (0: do not wait)."""
        try:
            return done.get(seconds > 0, seconds)
        except Empty:
            return None


class Activity(Protocol):
    """Where a worker is."""

    @property
    def worker(self) -> int: ...  # noqa: D102
    @property
    def unit(self) -> int: ...  # noqa: D102
    @property
    def row(self) -> int: ...  # noqa: D102
    @property
    def since(self) -> float: ...  # noqa: D102
    @property
    def at(self) -> float: ...  # noqa: D102


class Died(RuntimeError):  # noqa: N818 - an event, told as a future's exception
    """A unit that ran alone ended its process.

    Parameters
    ----------
    row
        Frame of the unit it was at; -1: none.
    how
        Completes "its worker ...".
    code
        The process's exit code: the negative number of the signal that ended it.
    blame
        Whether the frame may be to blame.
    """

    def __init__(self, row: int, how: str, code: int | None = None, blame: bool = True) -> None:
        self.row, self.how, self.code, self.blame = row, how, code, blame
        super().__init__(f"a process {how} at row {row} (exit code {code})")


class KillsWorkersError(WorkersDieError):
    """A unit ended its worker again and again outside any frame, or a node of a fold did."""

    def __init__(self, unit: int, deaths: int, how: str) -> None:
        self.unit, self.deaths, self.how = unit, deaths, how
        super().__init__(
            f"unit {unit} ended its worker {deaths} times outside any frame (the last time it {how}): not enough memory, or a "
            "broken installation; see the log of the batch system"
        )


class Isolation(Protocol[T]):
    """Runs units alone, each in a process of its own that may die."""

    @property
    def slots(self) -> int:
        """How many at a time."""

    def submit(self, unit: int, quarantine: Quarantine, limit: float) -> Future[T]:
        """Return the future of a unit's summary; its exception is `Died` if the process died or stayed ``limit`` s at a frame."""

    def discard(self) -> None:
        """Kill what runs."""


@dataclass(frozen=True)
class Flight:
    """A unit in flight: since when, and whether alone."""

    unit: int
    begun: float
    alone: bool

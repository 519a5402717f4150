"""What a driver is: a maker of executors."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Protocol


class Driver(Protocol):
    """Runs tasks through a `concurrent.futures.Executor`, which the dispatch loop may throw away and ask for again."""

    name: str
    workers: int
    isolated: bool
    """Workers are processes of their own: one can be killed, and its death is survived."""

    def executor(self) -> Executor:
        """Return the executor, started if need be."""

    def discard(self) -> None:
        """Kill the workers and forget the executor; the next call of `executor` starts anew."""

    def close(self) -> None:
        """Let running tasks finish, then stop."""

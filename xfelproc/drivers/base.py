"""What a driver is: a maker of executors."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Protocol


class WorkerLost(RuntimeError):  # noqa: N818 - an event, told as a future's exception
    """The worker of one task died and the others go on; a `BrokenExecutor` says that all workers are gone."""


class Driver(Protocol):
    """Runs tasks through a `concurrent.futures.Executor`, which the dispatch loop may throw away and ask for again."""

    name: str
    isolated: bool
    """Workers are processes of their own: one can be killed, and its death is survived."""
    restartable: bool
    """After `discard`, `executor` starts new workers. If not, a lost worker ends the job, and the next start goes on."""

    @property
    def elastic(self) -> bool:
        """Workers come and go on their own (a batch system's): that nothing is done for a long time says nothing."""

    @property
    def workers(self) -> int:
        """How many tasks are computed at a time."""

    @property
    def note(self) -> str | None:
        """What a user may not expect of how the job was started, or None."""

    def executor(self) -> Executor:
        """Return the executor, started if need be."""

    def casualties(self) -> set[int] | None:
        """Return the process ids of workers that died of themselves, asked before `discard`; None if nobody can tell."""

    def discard(self, code: int = 1) -> None:
        """Kill the workers and forget the executor; the next call of `executor` starts anew.

        Where that cannot be (`restartable`), the job ends here with the exit code.
        """

    def close(self) -> None:
        """Let running tasks finish, then stop."""

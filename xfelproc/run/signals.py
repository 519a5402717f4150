"""Being asked to stop: by the user (SIGINT), by the batch system (SIGTERM), or by its warning before the wall-time (SIGUSR1)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

EXIT_INTERRUPTED = 130
EXIT_AGAIN = 75
"""EX_TEMPFAIL: asked by SIGUSR1 to stop before the wall-time, or a lost worker ended the job: the same command goes on."""


class Interrupted(Exception):  # noqa: N818 - not an error: the run is resumable
    """The user or the batch system asked to stop.

    Parameters
    ----------
    number
        The signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        self.number = number
        super().__init__(f"asked to stop by {signal.Signals(number).name}" if number else "asked to stop")

    @property
    def exit_code(self) -> int:
        """75 after SIGUSR1, so that a batch script knows to requeue; else 130."""
        return EXIT_AGAIN if self.number == signal.SIGUSR1 else EXIT_INTERRUPTED


@dataclass
class StopFlag:
    """Set by the first SIGINT, SIGTERM or SIGUSR1; the second SIGINT or SIGTERM raises KeyboardInterrupt.

    Before `patient` is set, the first one does so, too: nothing is lost yet.
    """

    raised: int = 0
    patient: bool = False

    def set(self) -> None:
        """Ask for an end as SIGTERM does, from any thread."""
        self.raised = self.raised or signal.SIGTERM

    @contextmanager
    def installed(self) -> Iterator[StopFlag]:
        """Handle the signals inside the block; a thread that may not leaves them to its caller."""

        def handle(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGUSR1:
                self.raised = self.raised or number
                return
            if self.raised or not self.patient:
                raise KeyboardInterrupt
            self.raised = number

        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

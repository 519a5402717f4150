"""The one dispatch loop: a window of units in flight, retries, isolation of what kills workers, interrupts."""

from __future__ import annotations

import signal
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

from xfelproc.drivers.base import Driver
from xfelproc.errors import XfelprocError

T = TypeVar("T")
Quarantine = tuple[tuple[int, str], ...]

POLL = 0.5
"""Seconds between looks at timeouts and interrupts."""
GRACE = 20.0
"""Seconds that units in flight get to finish after an interrupt."""
SHORTEST_TIMEOUT = 600.0
TIMEOUT_MEDIANS = 30.0
"""A unit may take this many times the median of the units done, and never less than `SHORTEST_TIMEOUT` seconds: a
worker's first unit may have to compile every kernel, beside others that do."""


class Interrupted(Exception):  # noqa: N818 - not an error: the run is resumable
    """The user or the batch system asked to stop."""


class Activity(Protocol):
    """Where a worker is."""

    @property
    def unit(self) -> int: ...  # noqa: D102
    @property
    def row(self) -> int: ...  # noqa: D102
    @property
    def since(self) -> float: ...  # noqa: D102


@dataclass
class StopFlag:
    """Set by the first SIGINT or SIGTERM; the second raises KeyboardInterrupt."""

    raised: int = 0

    @contextmanager
    def installed(self) -> Iterator[StopFlag]:
        """Handle the signals inside the block."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.raised:
                raise KeyboardInterrupt
            self.raised = number

        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@dataclass
class Dispatch(Generic[T]):
    """State of one stage's dispatch.

    Parameters
    ----------
    driver
        Where units run.
    submit
        ``submit(executor, unit, quarantine)`` returns the future of a unit's summary.
    on_done
        Called with each summary, in order of completion.
    activity
        What the workers of this host were last at, dead or alive.
    forget
        Clears the record that `activity` reads; called when all workers are gone.
    on_event
        Called with a word and details of what a user may want to know (a worker's death, a frame in quarantine).
    timeout
        Seconds a unit may take; None: 30 times the median.
    """

    driver: Driver
    submit: Callable[[Any, int, Quarantine], Future[T]]
    on_done: Callable[[T], None]
    activity: Callable[[], Iterable[Activity]]
    forget: Callable[[], None]
    on_event: Callable[[str, dict[str, Any]], None]
    timeout: float | None = None
    stop: StopFlag = field(default_factory=StopFlag)
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    errors: Counter[int] = field(default_factory=Counter)
    quarantine: dict[int, dict[int, str]] = field(default_factory=dict)
    flying: dict[Future[T], tuple[int, float]] = field(default_factory=dict)
    suspects: deque[int] = field(default_factory=deque)

    def run(self, units: Iterable[int]) -> None:
        """Run all units.

        Raises
        ------
        Interrupted
            After SIGINT or SIGTERM; units in flight were finished or dropped.
        XfelprocError
            What a worker raised and a second attempt would raise again (a full disk, a damaged manifest).
        """
        waiting = deque(units)
        try:
            while waiting or self.flying or self.suspects:
                if self.stop.raised:
                    self._drain()
                    raise Interrupted
                self._fill(waiting)
                self._collect(waiting)
                self._check_timeouts(waiting)
        except BaseException:
            self.driver.discard() if self.flying else None
            self.flying.clear()
            raise

    def _fill(self, waiting: deque[int]) -> None:
        """Keep the window full; suspects of a worker's death run one at a time, with nothing beside them."""
        if self.suspects:
            if not self.flying:
                self._send(self.suspects[0], waiting)
            return
        window = 2 * self.driver.workers if self.driver.isolated else 1
        while waiting and len(self.flying) < window and not self.stop.raised:
            self._send(waiting.popleft(), waiting)

    def _send(self, unit: int, waiting: deque[int]) -> None:
        quarantine = tuple(sorted(self.quarantine.get(unit, {}).items()))
        begun = time.monotonic()
        try:
            future = self.submit(self.driver.executor(), unit, quarantine)
        except BrokenExecutor:
            waiting.appendleft(unit) if unit not in self.suspects else None
            self._broken(waiting, "died")
            return
        except Exception as error:  # noqa: BLE001 - the driver inline computes here; judged where all results are
            future = Future()
            future.set_exception(error)
        self.flying[future] = (unit, begun)

    def _collect(self, waiting: deque[int]) -> None:
        done, _ = wait(self.flying, timeout=POLL, return_when=FIRST_COMPLETED)
        broken: list[int] = []
        for future in done:
            unit, begun = self.flying.pop(future)
            try:
                summary = future.result()
            except BrokenExecutor:
                broken.append(unit)
                continue
            except (XfelprocError, KeyboardInterrupt):
                raise
            except Exception as error:  # noqa: BLE001 - raised again at the second attempt
                self._failed(unit, error, waiting)
                continue
            self.seconds.append(time.monotonic() - begun)
            self.errors.pop(-1, None)
            if self.suspects and self.suspects[0] == unit:
                self.suspects.popleft()
            self.on_done(summary)
        if broken:
            waiting.extendleft(u for u in broken if u not in self.suspects)
            self._broken(waiting, "died")

    def _failed(self, unit: int, error: Exception, waiting: deque[int]) -> None:
        """An error that is no worker's death and nobody's on purpose: one more attempt, then it stops the run as it is."""
        self.errors[unit] += 1
        self.on_event("unit_error", {"unit": unit, "error": f"{type(error).__name__}: {error}", "attempt": self.errors[unit]})
        if self.errors[unit] > 1:
            raise error
        if unit not in self.suspects:
            waiting.append(unit)

    def _broken(self, waiting: deque[int], how: str, culprits: dict[int, int] | None = None) -> None:
        """Workers are gone: find out what they were at, start anew, run the suspects alone, quarantine at the second death."""
        lost = {unit for unit, _ in self.flying.values()} | set(waiting) | set(self.suspects)
        at = culprits if culprits is not None else {a.unit: a.row for a in self.activity() if a.unit in lost}
        alone = self.suspects[0] if self.suspects else None
        waiting.extendleft(u for u, _ in self.flying.values() if u not in self.suspects)
        self.flying.clear()
        self.driver.discard()
        self.forget()
        self.on_event("workers_lost", {"how": how, "at": {str(u): r for u, r in sorted(at.items())}})
        for unit, row in sorted(at.items()):
            if unit == alone:
                self.quarantine.setdefault(unit, {})[row] = f"its worker {how} twice at this frame: left out"
                self.on_event("quarantine", {"unit": unit, "row": row, "reason": how})
            elif unit in waiting:
                waiting.remove(unit)
                self.suspects.append(unit)
        if alone is not None and alone not in at:
            self.errors[alone] += 1
            if self.errors[alone] > 3:
                raise RuntimeError(
                    f"unit {alone} ends its worker again and again before its first frame: see the log of the batch system"
                )
        if not at and alone is None:
            self.errors[-1] += 1
            if self.errors[-1] > 3:
                raise RuntimeError(
                    "workers die before they begin: not enough memory, a broken installation, or a script that calls this "
                    "without 'if __name__ == ...'"
                )

    def _limit(self) -> float:
        if self.timeout is not None:
            return self.timeout
        if len(self.seconds) < 5:
            return float("inf")
        return max(SHORTEST_TIMEOUT, TIMEOUT_MEDIANS * statistics.median(self.seconds))

    def _check_timeouts(self, waiting: deque[int]) -> None:
        """A frame that never returns: its unit counts as killed."""
        limit = self._limit()
        if not self.driver.isolated or not self.flying or time.monotonic() - min(b for _, b in self.flying.values()) < limit:
            return
        flying = {unit for unit, _ in self.flying.values()}
        late = {a.unit: a.row for a in self.activity() if a.unit in flying and time.time() - a.since > limit}
        if late:
            self._broken(waiting, f"took more than {limit:.0f} s", late)

    def _drain(self) -> None:
        """After an interrupt: give what runs a little time, drop the rest."""
        for future in list(self.flying):
            if future.cancel():
                self.flying.pop(future)
        end = time.monotonic() + GRACE
        while self.flying and time.monotonic() < end:
            done, _ = wait(self.flying, timeout=POLL, return_when=FIRST_COMPLETED)
            for future in done:
                self.flying.pop(future)
                if future.exception() is None:
                    self.on_done(future.result())
        if self.flying:
            self.driver.discard()
            self.flying.clear()

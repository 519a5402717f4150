"""The one dispatch loop: a window of units in flight, retries, isolation of what kills workers, interrupts.

Futures tell of their end through a queue, so that a completion costs the same however many units are in flight.
"""

from __future__ import annotations

import signal
import statistics
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from xfelproc.drivers.base import Driver, WorkerLost
from xfelproc.errors import JobLostError, WorkersDieError, XfelprocError
from xfelproc.run.flights import Activity, Clock, Died, Done, Flight, Isolation, KillsWorkersError
from xfelproc.run.signals import Interrupted, StopFlag
from xfelproc.run.suspects import DEATHS, Cases, Quarantine

T = TypeVar("T")

POLL = 0.5
"""Seconds between looks at timeouts and interrupts."""
BATCH = 100
"""Completions taken in one go, before workers get new units."""
GRACE = 20.0
"""Seconds that units in flight get to finish after an interrupt..."""
GRACE_WARNED = 60.0
"""...and after the batch system's warning, which comes well before the end."""
SHORTEST_TIMEOUT = 600.0
TIMEOUT_MEDIANS = 30.0
"""A unit may take this many times the median of the units done, and never less than `SHORTEST_TIMEOUT` seconds: a
worker's first unit may have to compile every kernel, beside others that do. Before there is a median, a frame may take that."""
LONGEST_BETWEEN = 3600.0
"""Before there is a median, a worker may be so many seconds at no frame of its unit, or at a node of a fold."""
FEW = 5
"""Units that make a median."""
ATTEMPTS = 3
"""Deaths between frames, or in a node of a fold, before the run stops."""


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
        What the workers were last at, dead or alive; asked only when something died or is late.
    forget
        Clears the records that `activity` reads; called when all workers are gone.
    on_event
        Called with a word and details of what a user may want to know (a worker's death, a frame in quarantine).
    timeout
        Seconds a unit may take; None: 30 times the median.
    stop
        Looked at between units.
    window
        Units in flight a worker.
    cases
        Units whose workers died before.
    isolation
        Where suspects run; None: they run as all others do.
    seconds
        How long units took; may be given those of earlier starts.
    clock
        Time and waiting.
    """

    driver: Driver
    submit: Callable[[Any, int, Quarantine], Future[T]]
    on_done: Callable[[T], None]
    activity: Callable[[], Iterable[Activity]]
    forget: Callable[[], None]
    on_event: Callable[[str, dict[str, Any]], None]
    timeout: float | None = None
    stop: StopFlag = field(default_factory=StopFlag)
    window: int = 2
    cases: Cases = field(default_factory=Cases)
    isolation: Isolation[T] | None = None
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    clock: Clock = field(default_factory=Clock)
    flying: dict[Future[T], Flight] = field(default_factory=dict)
    waiting: deque[int] = field(default_factory=deque)
    suspects: deque[int] = field(default_factory=deque)
    _ended: Done = field(default_factory=SimpleQueue)
    _errors: Counter[int] = field(default_factory=Counter)
    _alone: int = 0
    _deaths_before_a_frame: int = 0
    _completed_at: float | None = None
    _look_at: float = 0.0

    def run(self, units: Iterable[int]) -> None:
        """Run all units.

        Raises
        ------
        Interrupted
            After SIGINT, SIGTERM or SIGUSR1; units in flight were finished or dropped.
        JobLostError
            A worker died and the driver cannot replace it: the same command goes on.
        WorkersDieError
            A unit ended three workers outside any frame, or workers die before they begin.
        XfelprocError
            What a worker raised and a second attempt would raise again (a full disk, a damaged manifest).
        """
        self.waiting.extend(units)
        self._recall()
        try:
            while self.waiting or self.flying or self.suspects:
                if self.stop.raised:
                    self._drain()
                    raise Interrupted(self.stop.raised)
                self._fill()
                self._collect()
                self._check_timeouts()
        except BaseException:
            self._drop()
            raise

    def finish(self) -> None:
        """Send out no more units: those in flight are the last."""
        self.waiting.clear()
        self.suspects.clear()

    def _recall(self) -> None:
        """Take up the cases of earlier starts: suspects run alone, frames in quarantine are told of."""
        known = set(self.waiting).intersection(self.cases.units())
        for unit in sorted(known):
            for case in self.cases.left_out(unit):
                self._tell(case.unit, case.row, case.how)
        if known and self.isolation is not None:
            self.waiting = deque(unit for unit in self.waiting if unit not in known)
            self.suspects.extend(sorted(known))

    def _tell(self, unit: int, row: int, how: str) -> None:
        self.on_event("quarantine", {"unit": unit, "row": row, "reason": how})

    def _fill(self) -> None:
        """Keep the window full, and suspects on their way."""
        while self.isolation is not None and self.suspects and self._alone < self.isolation.slots:
            unit = self.suspects.popleft()
            self._fly(self.isolation.submit(unit, self.cases.quarantine(unit), self._patience()), unit, alone=True)
        window = self.window * self.driver.workers if self.driver.isolated else 1
        while self.waiting and len(self.flying) - self._alone < window and not self.stop.raised:
            self._send(self.waiting.popleft())

    def _fly(self, future: Future[T], unit: int, alone: bool = False) -> None:
        self.flying[future] = Flight(unit, self.clock.now(), alone)
        self._alone += alone
        future.add_done_callback(self._ended.put)

    def _send(self, unit: int) -> None:
        try:
            future = self.submit(self.driver.executor(), unit, self.cases.quarantine(unit))
        except BrokenExecutor:
            self.waiting.appendleft(unit)
            self._broken("died")
            return
        except Exception as error:  # noqa: BLE001 - the driver inline computes here; judged where all results are
            future = Future()
            future.set_exception(error)
        self._fly(future, unit)

    def _collect(self) -> None:
        """Take what has ended; workers whose death is seen in several futures die once."""
        if not self.flying:
            return
        broken = False
        future = self.clock.wait(self._ended, POLL)
        for _ in range(BATCH):
            if future is None:
                break
            broken |= self._take(future)
            future = self.clock.wait(self._ended, 0)
        if future is not None:
            broken |= self._take(future)
        if broken:
            self._broken("died")

    def _take(self, future: Future[T]) -> bool:
        """Judge one end; return whether all workers are gone."""
        flight = self.flying.get(future)
        if flight is None:
            return False  # given up before
        error = None if future.cancelled() else future.exception()
        if isinstance(error, BrokenExecutor) and not flight.alone:
            return True
        self._land(future)
        if future.cancelled():
            self._again(flight)
        elif error is None:
            self._completed(flight, future.result())
        elif isinstance(error, Died):
            self._died(flight, error)
        elif isinstance(error, WorkerLost):
            self._lost(flight)
        elif isinstance(error, (XfelprocError, KeyboardInterrupt)):
            raise error
        else:
            self._failed(flight, error)
        return False

    def _land(self, future: Future[T]) -> None:
        self._alone -= self.flying.pop(future).alone

    def _again(self, flight: Flight) -> None:
        (self.suspects if flight.alone else self.waiting).append(flight.unit)

    def _completed(self, flight: Flight, summary: T) -> None:
        now = self.clock.now()
        self._completed_at, self._deaths_before_a_frame = now, 0
        if not flight.alone:
            self.seconds.append(now - flight.begun)
        if flight.unit in self.cases:
            self.cases.clear(flight.unit)
        self.on_done(summary)

    def _failed(self, flight: Flight, error: BaseException) -> None:
        """An error that is no worker's death and nobody's on purpose: one more attempt, then it stops the run as it is."""
        unit = flight.unit
        self._errors[unit] += 1
        self.on_event("unit_error", {"unit": unit, "error": f"{type(error).__name__}: {error}", "attempt": self._errors[unit]})
        if self._errors[unit] > 1:
            raise error
        self._again(flight)

    def _died(self, flight: Flight, death: Died) -> None:
        """A suspect ended its own process; the other workers did not notice."""
        self.on_event("suspect_died", {"unit": flight.unit, "row": death.row, "how": death.how, "code": death.code})
        if death.blame:
            self._death(flight.unit, death.row, death.how)
        self.suspects.append(flight.unit)

    def _lost(self, flight: Flight) -> None:
        """One worker died, the others go on; a unit that was only waiting for it goes to another."""
        row = next((a.row for a in self.activity() if a.unit == flight.unit), -1 if self.isolation is None else None)
        if row is None:
            self._again(flight)
            self._deaths_before_a_frame += 1
            self._check_deaths(self.window * self.driver.workers)
            return
        self.on_event("workers_lost", {"how": "died", "at": {str(flight.unit): row}})
        self._death(flight.unit, row, "died")
        self._suspect(flight.unit)

    def _broken(self, how: str, late: dict[int, int] | None = None) -> None:
        """All workers are gone or have to go: find out what they were at, start anew; who was at work at a death is a suspect."""
        lost = [flight.unit for flight in self.flying.values() if not flight.alone]
        at = self._culprits(set(lost)) if late is None else late
        for future in [future for future, flight in self.flying.items() if not flight.alone]:
            self._land(future)
        self.on_event("workers_lost", {"how": how, "at": {str(u): r for u, r in sorted(at.items())}})
        self.waiting.extendleft(unit for unit in reversed(lost) if unit not in at)
        for unit, row in sorted(at.items()):
            self._death(unit, row, how)
            self._suspect(unit)
        if not self.driver.restartable:
            raise JobLostError(f"workers {how}, and the driver {self.driver.name} cannot start others: run the same command again")
        self.driver.discard()
        self.forget()
        if not at:
            self._deaths_before_a_frame += 1
        self._check_deaths(1)

    def _check_deaths(self, units: int) -> None:
        """See that it is not always before they begin that workers die; a death may be told by several ``units``."""
        if self._deaths_before_a_frame > ATTEMPTS * units:
            raise WorkersDieError(
                "workers die before they begin: not enough memory, a broken installation, or a script that calls this "
                "without 'if __name__ == ...'"
            )

    def _culprits(self, lost: set[int]) -> dict[int, int]:
        """Return units and rows that dead workers were at; of a driver that cannot tell who is dead, all that were at work."""
        dead = self.driver.casualties()
        return {a.unit: a.row for a in self.activity() if a.unit in lost and (dead is None or a.worker in dead)}

    def _suspect(self, unit: int) -> None:
        (self.waiting if self.isolation is None else self.suspects).append(unit)

    def _death(self, unit: int, row: int, how: str) -> None:
        """Count a death at a frame, and leave the frame out at the second."""
        case = self.cases.add(unit, row, how)
        if row >= 0:
            if case.deaths == DEATHS:
                self._tell(unit, row, how)
        elif case.deaths >= ATTEMPTS:
            self.cases.clear(unit)
            raise KillsWorkersError(unit, case.deaths, how)

    def _limit(self) -> float:
        """Return the seconds a unit may take."""
        if self.timeout is not None:
            return self.timeout
        if len(self.seconds) < FEW:
            return float("inf")
        return max(SHORTEST_TIMEOUT, TIMEOUT_MEDIANS * statistics.median(self.seconds))

    def _patience(self) -> float:
        """Return the seconds a frame may take of a worker that runs it alone."""
        limit = self._limit()
        return limit if limit < float("inf") else SHORTEST_TIMEOUT

    def _check_timeouts(self) -> None:
        """A frame that never returns, or a worker that was stopped: its unit counts as killed."""
        now = self.clock.now()
        if now < self._look_at or not self.driver.isolated:
            return
        self._look_at = now + POLL
        oldest = next((flight.begun for flight in self.flying.values() if not flight.alone), now)
        limit, patience = self._limit(), self._patience()
        if now - oldest < patience:
            return
        self._look_at = now + max(POLL, patience / 20)  # records are files: a worker's window of units waits without being late
        flying, wall = {flight.unit for flight in self.flying.values() if not flight.alone}, self.clock.wall()
        at_work = [a for a in self.activity() if a.unit in flying]
        between = limit if limit < float("inf") else LONGEST_BETWEEN
        late = {a.unit: a.row for a in at_work if wall - a.since > limit or wall - a.at > (patience if a.row >= 0 else between)}
        if late:
            self._broken(f"took more than {patience:.0f} s", late)
        elif not at_work and not self.driver.elastic and self._completed_at is not None and now - self._completed_at > patience:
            self._broken(f"did nothing for {patience:.0f} s", {})

    def _drain(self) -> None:
        """After an interrupt: give what runs a little time, drop the rest."""
        grace = GRACE_WARNED if self.stop.raised == signal.SIGUSR1 else GRACE
        if self.stop.raised == signal.SIGTERM and not self.driver.restartable:
            grace = 0.0  # all workers were told to end, too
        # a future of Dask does not know that its task has begun
        begun = {a.unit for a in self.activity()} if grace and self.flying else set()
        for future, flight in list(self.flying.items()):
            if flight.unit not in begun and future.cancel():
                self._land(future)
        end = self.clock.now() + grace
        while self.flying and self.clock.now() < end:
            ended = self.clock.wait(self._ended, POLL)
            if ended is None or ended not in self.flying:
                continue
            flight = self.flying[ended]
            self._land(ended)
            if not ended.cancelled() and ended.exception() is None:
                self._completed(flight, ended.result())

    def _drop(self) -> None:
        """Give up what is in flight."""
        if self._alone and self.isolation is not None:
            self.isolation.discard()
        if len(self.flying) > self._alone and self.driver.restartable:
            self.driver.discard()
        self.flying.clear()
        self._alone = 0

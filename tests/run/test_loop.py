"""The dispatch loop against scripted workers, in virtual time."""

from __future__ import annotations

import heapq
import signal
from collections.abc import Iterable
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from typing import Any

import pytest

from xfelproc.drivers.base import WorkerLost
from xfelproc.errors import JobLostError, OutputError, WorkersDieError
from xfelproc.run.flights import Clock, Died, Done, KillsWorkersError
from xfelproc.run.loop import SHORTEST_TIMEOUT, Dispatch
from xfelproc.run.signals import Interrupted, StopFlag
from xfelproc.run.suspects import Case, Cases, Quarantine


@dataclass(frozen=True)
class At:
    worker: int
    unit: int
    row: int
    since: float
    at: float


class Virtual(Clock):
    """Time that passes only while the loop waits."""

    def __init__(self) -> None:
        self.time = 0.0
        self.events: list[tuple[float, int, Future[Any], Any]] = []
        self.count = 0

    def now(self) -> float:
        return self.time

    wall = now

    def at(self, time: float, future: Future[Any], outcome: Any) -> None:
        self.count += 1
        heapq.heappush(self.events, (time, self.count, future, outcome))

    def wait(self, done: Done, seconds: float) -> Future[Any] | None:
        end = self.time + seconds
        while done.empty() and self.events and self.events[0][0] <= end:
            self.time, _, future, outcome = heapq.heappop(self.events)
            if not future.done():
                future.set_exception(outcome) if isinstance(outcome, BaseException) else future.set_result(outcome)
        if not done.empty():
            return done.get()
        self.time = end
        return None


class Script:
    """Driver, executor and isolation; ``outcomes`` holds what comes of a unit the first, second, ... time it is run."""

    name, isolated, elastic = "script", True, False
    slots = 2

    def __init__(self, workers: int = 4, restartable: bool = True, **outcomes: Any) -> None:
        self.workers, self.restartable = workers, restartable
        self.clock = Virtual()
        self.outcomes: dict[int, list[Any]] = {}
        self.alone: list[tuple[int, Quarantine, float]] = []
        self.alone_outcomes: dict[int, list[Any]] = {}
        self.at: list[At] = []
        self.dead: set[int] | None = None
        self.sent: list[int] = []
        self.discarded = self.flying = self.most = self.asked = 0
        self.free = [0.0] * workers
        self.done: list[int] = []
        self.events: list[tuple[str, dict[str, Any]]] = []

    def executor(self) -> Executor:
        return self  # type: ignore[return-value]

    def casualties(self) -> set[int] | None:
        return self.dead

    def discard(self, code: int = 1) -> None:
        self.discarded += 1
        self.free = [self.clock.time] * self.workers

    def close(self) -> None: ...

    def send(self, executor: Any, unit: int, quarantine: Quarantine) -> Future[int]:
        future: Future[int] = Future()
        outcome = self.outcomes.get(unit) or [unit]
        self.sent.append(unit)
        begun = max(heapq.heappop(self.free), self.clock.time)
        heapq.heappush(self.free, begun + 1.0)
        self.flying += 1
        self.most = max(self.most, self.flying)
        future.add_done_callback(self._landed)
        if outcome[0] is not None:  # None: never
            self.clock.at(begun + 1.0, future, outcome[0])
        self.outcomes[unit] = outcome[1:]
        return future

    def _landed(self, future: Future[int]) -> None:
        self.flying -= 1

    def submit(self, unit: int, quarantine: Quarantine, limit: float) -> Future[int]:
        future: Future[int] = Future()
        self.alone.append((unit, quarantine, limit))
        outcome = self.alone_outcomes.get(unit) or [unit]
        self.clock.at(self.clock.time + 5.0, future, outcome[0])
        self.alone_outcomes[unit] = outcome[1:]
        return future

    def activity(self) -> Iterable[At]:
        self.asked += 1
        return self.at

    def dispatch(self, **more: Any) -> Dispatch[int]:
        given: dict[str, Any] = {"isolation": self, "clock": self.clock} | more
        return Dispatch(
            self, self.send, self.done.append, self.activity, lambda: None, lambda w, d: self.events.append((w, d)), **given
        )

    def words(self) -> list[str]:
        return [word for word, _ in self.events]


def test_four_thousand_workers_and_their_window() -> None:
    script = Script(workers=4096)
    script.dispatch(window=3).run(range(40_000))
    assert sorted(script.done) == list(range(40_000))
    assert script.most == 3 * 4096
    assert script.asked == 0, "records are read only when something is wrong"
    assert script.clock.time == pytest.approx(10.0, abs=1.0)


def test_one_death_among_many_costs_one_suspect() -> None:
    script = Script()
    script.outcomes = {3: [BrokenExecutor()]}
    script.at, script.dead = [At(70 + w, w, 2, 0.0, 0.5) for w in range(4)], {73}
    script.dispatch().run(range(40))
    assert sorted(script.done) == list(range(40))
    assert [unit for unit, _, _ in script.alone] == [3]
    assert script.discarded == 1
    assert script.events == [("workers_lost", {"how": "died", "at": {"3": 2}})]
    # the others did not wait for it
    assert script.done.index(3) > 10


def test_driver_that_cannot_tell_who_died_suspects_all_at_work() -> None:
    script = Script()
    script.outcomes = {3: [BrokenExecutor()]}
    script.at = [At(70 + w, w, 2, 0.0, 0.5) for w in (3, 6)]
    script.dispatch().run(range(40))
    assert sorted(script.done) == list(range(40))
    assert {unit for unit, _, _ in script.alone} == {3, 6}


def test_worker_lost_among_others_that_go_on() -> None:
    script = Script()
    script.outcomes, script.at = {5: [WorkerLost()]}, [At(1, 5, 0, 1.0, 1.0)]
    script.dispatch().run(range(20))
    assert sorted(script.done) == list(range(20))
    assert script.discarded == 0
    assert [unit for unit, _, _ in script.alone] == [5]


def test_quarantine_at_the_second_death() -> None:
    script = Script()
    script.outcomes, script.at = {5: [WorkerLost()]}, [At(1, 5, 7, 1.0, 1.0)]
    script.alone_outcomes = {5: [Died(7, "died", -11), Died(8, "died", -9), Died(8, "took more than 9 s", -9)]}
    cases = Cases()
    script.dispatch(cases=cases).run(range(20))
    assert sorted(script.done) == list(range(20))
    text = "its worker {} twice at this frame: left out".format
    assert [q for _, q, _ in script.alone] == [
        (),
        ((7, text("died")),),
        ((7, text("died")),),
        ((7, text("died")), (8, text("took more than 9 s"))),
    ]
    assert [d for w, d in script.events if w == "quarantine"] == [
        {"unit": 5, "row": 7, "reason": "died"},
        {"unit": 5, "row": 8, "reason": "took more than 9 s"},
    ]
    assert 5 not in cases


def test_suspects_of_earlier_starts_run_alone() -> None:
    script = Script()
    cases = Cases([Case(2, 0, 1, "died"), Case(4, 1, 2, "died"), Case(99, 0, 1, "died")])
    script.dispatch(cases=cases).run(range(8))
    assert [(unit, len(quarantine)) for unit, quarantine, _ in script.alone] == [(2, 0), (4, 1)]
    assert script.words() == ["quarantine"]
    assert 2 not in script.sent


def test_child_that_somebody_else_ended_is_no_death() -> None:
    script = Script()
    cases = Cases([Case(2, 0, 1, "died")])
    script.alone_outcomes = {2: [Died(0, "died", -15, blame=False)]}
    script.dispatch(cases=cases).run(range(3))
    assert sorted(script.done) == [0, 1, 2]
    assert "quarantine" not in script.words()


def test_without_isolation_suspects_run_as_others() -> None:
    script = Script()
    script.outcomes = {5: [WorkerLost(), WorkerLost()]}
    script.dispatch(isolation=None).run(range(10))
    assert sorted(script.done) == list(range(10))


def test_three_deaths_between_frames_stop_the_run() -> None:
    script = Script()
    script.outcomes = {5: [WorkerLost()] * 3}
    cases = Cases()
    with pytest.raises(KillsWorkersError, match="unit 5 ended its worker 3 times"):
        script.dispatch(isolation=None, cases=cases).run(range(100))
    assert 5 not in cases, "the next start tries again"


def test_workers_that_never_begin() -> None:
    script = Script()
    script.outcomes = {0: [BrokenExecutor()] * 9}
    with pytest.raises(WorkersDieError, match="workers die before they begin"):
        script.dispatch().run(range(1))
    assert script.discarded == 4


def test_lost_rank_ends_a_job_that_cannot_restart() -> None:
    script = Script(restartable=False)
    script.outcomes, script.at = {3: [BrokenExecutor()]}, [At(1, 3, 2, 0.0, 0.5)]
    saved: list[list[Case]] = []
    with pytest.raises(JobLostError, match="run the same command again") as caught:
        script.dispatch(cases=Cases(save=saved.append)).run(range(40))
    assert caught.value.exit_code == 75
    assert saved == [[Case(3, 2, 1, "died")]]
    assert script.discarded == 0, "the caller flushes the journal first"


def test_frame_that_never_returns() -> None:
    script = Script()
    script.outcomes = {30: [None]}

    def activity() -> list[At]:
        return [At(9, 30, 4, 8.0, 8.0)]

    dispatch = script.dispatch()
    dispatch.activity = activity
    dispatch.run(range(40))
    assert sorted(script.done) == list(range(40))
    assert script.events == [("workers_lost", {"how": f"took more than {SHORTEST_TIMEOUT:.0f} s", "at": {"30": 4}})]
    assert [unit for unit, _, _ in script.alone] == [30]
    assert SHORTEST_TIMEOUT < script.clock.time < 1.2 * SHORTEST_TIMEOUT


def test_node_of_a_fold_that_never_returns() -> None:
    """It is one of a few, so that there is no median."""
    script = Script(workers=2)
    script.outcomes, script.at = {0: [None]}, [At(1, 0, -1, 0.0, 0.0)]
    dispatch = script.dispatch(isolation=None)
    dispatch.forget = script.at.clear
    dispatch.run(range(2))
    assert script.done == [1, 0]
    assert 3600 < script.clock.time < 4000


def test_first_frame_that_never_returns() -> None:
    """Before there is a median, a frame has its time."""
    script = Script(workers=1)
    script.outcomes, script.at = {0: [None]}, [At(9, 0, 0, 0.0, 0.0)]
    script.dispatch().run(range(2))
    assert sorted(script.done) == [0, 1]


def test_stopped_worker_that_was_at_nothing() -> None:
    script = Script()
    script.outcomes = {30: [None]}
    script.dispatch(timeout=20.0).run(range(40))
    assert sorted(script.done) == list(range(40))
    assert script.events == [("workers_lost", {"how": "did nothing for 20 s", "at": {}})]


def test_slow_units_in_a_window_are_not_late() -> None:
    """A unit waits in the window for the one before it: only the time since its worker began counts."""
    script = Script(workers=1)
    dispatch = script.dispatch(timeout=1.5, window=8)
    dispatch.activity = lambda: [At(9, len(script.done), 0, float(int(script.clock.time)), script.clock.time)]
    dispatch.run(range(40))
    assert script.events == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 130), (signal.SIGUSR1, 75)])
def test_stop_finishes_what_is_in_flight(number: int, code: int) -> None:
    script, stop = Script(), StopFlag()
    dispatch = script.dispatch(stop=stop)

    def done(unit: int) -> None:
        script.done.append(unit)
        stop.raised = number

    dispatch.on_done = done
    with pytest.raises(Interrupted) as caught:
        dispatch.run(range(400))
    assert caught.value.exit_code == code
    assert len(script.done) < 20
    assert set(script.done) <= set(script.sent)


def test_stop_finishes_what_has_begun_though_its_future_does_not_know() -> None:
    """The futures of Dask can be cancelled until they have ended."""
    script, stop = Script(workers=1), StopFlag()
    script.at = [At(1, 0, 0, 0.0, 0.0)]
    dispatch = script.dispatch(stop=stop, window=3)
    dispatch.waiting.extend(range(9))
    dispatch._fill()
    stop.raised = signal.SIGUSR1
    with pytest.raises(Interrupted):
        dispatch.run(())
    assert script.done == [0]


def test_stop_drops_what_does_not_end() -> None:
    script, stop = Script(), StopFlag(raised=signal.SIGUSR1)
    dispatch = script.dispatch(stop=stop)
    future: Future[int] = Future()
    future.set_running_or_notify_cancel()
    dispatch.submit = lambda executor, unit, quarantine: future
    dispatch.waiting.append(0)
    stop.raised = 0
    dispatch._fill()
    stop.raised = signal.SIGUSR1
    with pytest.raises(Interrupted):
        dispatch.run(())
    assert script.discarded == 1
    assert script.clock.time == pytest.approx(60.0, abs=1.0)


def test_error_is_tried_once_more() -> None:
    script = Script()
    script.outcomes = {5: [ValueError("once")]}
    script.dispatch().run(range(9))
    assert sorted(script.done) == list(range(9))
    script.outcomes = {5: [ValueError("a"), ValueError("b")]}
    with pytest.raises(ValueError, match="b"):
        script.dispatch().run(range(9))
    script.outcomes = {5: [OutputError("full")]}
    with pytest.raises(OutputError):
        script.dispatch().run(range(9))


def test_signals_before_a_run_is_patient() -> None:
    stop = StopFlag()
    with stop.installed():
        signal.raise_signal(signal.SIGUSR1)
        assert stop.raised == signal.SIGUSR1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    stop = StopFlag(patient=True)
    with stop.installed():
        signal.raise_signal(signal.SIGINT)
        assert stop.raised == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_units_that_only_waited_for_a_lost_worker_are_no_suspects() -> None:
    script = Script()
    script.outcomes, script.at = {5: [WorkerLost()], 6: [WorkerLost()]}, [At(1, 5, 0, 1.0, 1.0)]
    script.dispatch().run(range(20))
    assert sorted(script.done) == list(range(20))
    assert [unit for unit, _, _ in script.alone] == [5]


def test_workers_that_are_lost_one_by_one_before_they_begin() -> None:
    script = Script()
    script.outcomes = {0: [WorkerLost()] * 99}
    with pytest.raises(WorkersDieError, match="workers die before they begin"):
        script.dispatch().run(range(1))

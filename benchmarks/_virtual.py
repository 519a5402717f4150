"""Workers and time that exist in a discrete-event run alone: the real dispatch loop believes that they are there."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

from xfelproc.run.flights import Clock, Done


@dataclass
class World:
    """Virtual time. What the dispatcher computes takes the time it really takes; what the simulation computes takes none."""

    offset: float = 0.0
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: Any = field(default_factory=itertools.count)

    def now(self) -> float:
        """Return virtual seconds."""
        return time.perf_counter() + self.offset

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Have something happen."""
        heapq.heappush(self.events, (when, next(self._order), what))

    def spend(self, seconds: float) -> None:
        """Let the dispatcher be busy with what is not simulated."""
        self.offset += seconds

    def pass_to(self, when: float) -> None:
        """Let time pass, and let happen what happens until then."""
        begun, at = time.perf_counter(), self.now()
        while self.events and self.events[0][0] <= max(at, when):
            _, _, what = heapq.heappop(self.events)
            what()
        self.offset += max(at, when) - at - (time.perf_counter() - begun)


class VirtualClock(Clock):
    """The loop's clock in a `World`."""

    def __init__(self, world: World) -> None:
        self.world = world

    def now(self) -> float:
        """Return virtual seconds."""
        return self.world.now()

    def wall(self) -> float:
        """Return virtual seconds."""
        return self.world.now()

    def wait(self, done: Done, seconds: float) -> Future[Any] | None:
        """Return the next future that ended, or None."""
        world = self.world
        world.pass_to(world.now())
        end = world.now() + seconds
        while done.empty() and world.events and world.events[0][0] <= end:
            world.pass_to(world.events[0][0])
        if done.empty():
            if seconds:
                world.pass_to(end)
            return None
        return done.get_nowait()


class VirtualExecutor(Executor):
    """Idle workers take units in the order of submission; a unit takes what ``service`` says.

    Parameters
    ----------
    ready
        When each worker begins to serve, in virtual seconds.
    service
        Seconds of a unit, by its number.
    answer
        What its future gives.
    cost
        Seconds of the dispatcher's time that sending a task and receiving its answer takes.
    """

    def __init__(
        self, world: World, ready: list[float], service: Callable[[int], float], answer: Callable[[int], Any], cost: float
    ) -> None:
        self.world, self.service, self.answer, self.cost = world, service, answer, cost
        self.idle = 0
        self.queue: deque[tuple[int, Future[Any]]] = deque()
        self.busy = 0.0
        for when in ready:
            world.at(when, self._free)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Take a unit, the only argument."""
        self.world.spend(self.cost)
        future: Future[Any] = Future()
        self.queue.append((args[0], future))
        self._next()
        return future

    def _free(self) -> None:
        self.idle += 1
        self._next()

    def _next(self) -> None:
        while self.idle and self.queue:
            unit, future = self.queue.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            self.idle -= 1
            seconds = self.service(unit)
            self.busy += seconds
            self.world.at(self.world.now() + seconds, lambda u=unit, f=future: self._end(u, f))  # type: ignore[misc]

    def _end(self, unit: int, future: Future[Any]) -> None:
        future.set_result(self.answer(unit))
        self._free()


@dataclass
class VirtualDriver:
    """Driver over virtual workers."""

    pool: VirtualExecutor
    workers: int
    name: str = "virtual"
    isolated: bool = True
    restartable: bool = True
    elastic: bool = False

    def executor(self) -> Executor:
        """Return the executor."""
        return self.pool

    def casualties(self) -> set[int] | None:
        """Nobody dies."""
        return None

    def discard(self, code: int = 1) -> None:
        """Nothing to kill."""

    def close(self) -> None:
        """Nothing to stop."""

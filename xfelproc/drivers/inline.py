"""Everything in this process, one unit after the other: for debugging, and the reference of every other driver."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from xfelproc.drivers.threads import pin_threads

T = TypeVar("T")


class InlineExecutor(Executor):
    """Computes on submission."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Compute now and return a finished future; what the call raises, this raises."""
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class InlineDriver:
    """Driver ``inline``."""

    name = "inline"
    workers = 1
    isolated = False
    restartable = True
    elastic = False
    note = None

    def __init__(self) -> None:
        pin_threads()
        self._executor = InlineExecutor()

    def executor(self) -> Executor:
        """Return the executor."""
        return self._executor

    def casualties(self) -> set[int] | None:
        """Nobody dies here but the dispatcher."""
        return None

    def discard(self, code: int = 1) -> None:
        """Nothing runs between calls."""

    def close(self) -> None:
        """Nothing to stop."""

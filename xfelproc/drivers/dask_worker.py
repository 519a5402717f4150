"""What runs in a Dask worker; imported where Dask is."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from distributed import Worker, WorkerPlugin, get_worker

from xfelproc.drivers.threads import check_threads, pin_threads
from xfelproc.errors import ConfigError
from xfelproc.io.inflight import forgive_on_sigterm

T = TypeVar("T")

_ONE_AT_A_TIME = threading.Lock()
_FIT: list[str] = []
"""This worker, once it is known to be fit."""


class SetUp(WorkerPlugin):
    """Sets a worker up: the dispatcher handles the interrupts, and computing is on one thread.

    Parameters
    ----------
    preload
        Modules to import before the first task.
    """

    def __init__(self, preload: tuple[str, ...]) -> None:
        self.preload = preload

    def setup(self, worker: Worker) -> None:
        """Set this worker up.

        Raises
        ------
        ConfigError
            If it has more threads than one, or its libraries have.
        """
        pin_threads()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        forgive_on_sigterm()
        for name in self.preload:
            import_module(name)
        _check(worker)


def _check(worker: Worker) -> None:
    if worker.state.nthreads != 1:
        raise ConfigError(
            f"the Dask worker {worker.address} has {worker.state.nthreads} threads, and a unit needs a process of its own: "
            "start the workers with --nthreads 1"
        )
    check_threads()
    _FIT.append(worker.address)


def compute(fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Compute in a worker that is fit for it; of one that came late, Dask would only write its `SetUp`'s errors down."""
    with _ONE_AT_A_TIME:
        if not _FIT:
            _check(get_worker())
        return fn(*args, **kwargs)

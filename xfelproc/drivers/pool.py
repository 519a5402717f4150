"""Worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import MutableMapping
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import forkserver
from typing import Any

from xfelproc.drivers.threads import check_threads, pin_threads
from xfelproc.io.inflight import forgive, forgive_on_sigterm


def _watch_parent() -> None:
    """End with the dispatcher: a worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        forgive()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="watch-parent").start()


def start_worker() -> None:
    """Set up a worker: the dispatcher handles the interrupts, and computing is on one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    forgive_on_sigterm()
    _watch_parent()
    check_threads()


def start_server(preload: tuple[str, ...] = ()) -> None:
    """Start the fork server, which imports in its own time what the workers need; a command calls this before its own imports."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["xfelproc.drivers.pool", *preload])
    if threading.current_thread() is not threading.main_thread():
        forkserver.ensure_running()
        return
    # SLURM may send its warning to every process of a step: the servers inherit that it is ignored
    previous = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGUSR1, previous)


class PoolDriver:
    """Driver ``pool``: processes made by a fork server that has opened no file, so that no HDF5 handle is inherited.

    Parameters
    ----------
    workers
        Processes; None: as many as CPUs this process may use.
    preload
        Modules the fork server imports once for all workers.
    """

    name = "pool"
    isolated = True
    restartable = True
    elastic = False
    note = None

    def __init__(self, workers: int | None = None, preload: tuple[str, ...] = ()) -> None:
        pin_threads()
        self.workers = workers or len(os.sched_getaffinity(0))
        self._context = multiprocessing.get_context("forkserver")
        start_server(preload)
        self._executor: ProcessPoolExecutor | None = None
        self._processes: MutableMapping[int, Any] = {}

    def executor(self) -> Executor:
        """Return the executor, started if need be."""
        if self._executor is None:
            self._executor = ProcessPoolExecutor(self.workers, mp_context=self._context, initializer=start_worker)
            # the pool has no public way to end a worker that does not return, nor to ask which one died
            self._processes = self._executor._processes
        return self._executor

    def casualties(self) -> set[int] | None:
        """Return the workers that ended by anything but the SIGTERM that a broken pool sends to the others."""
        codes = {pid: process.exitcode for pid, process in dict(self._processes).items()}
        return {pid for pid, code in codes.items() if code not in (None, -signal.SIGTERM)}

    def discard(self, code: int = 1) -> None:
        """Kill the workers."""
        executor, self._executor = self._executor, None
        if executor is None:
            return
        processes = list(self._processes.values())
        self._processes = {}
        for process in processes:
            process.kill()
        executor.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.join(10)

    def close(self) -> None:
        """Let running tasks finish, then stop."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)

"""Worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import forkserver

from xfelproc.drivers.threads import check_threads, pin_threads


def _watch_parent() -> None:
    """End with the dispatcher: a worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="watch-parent").start()


def start_worker() -> None:
    """Set up a worker: the dispatcher handles the interrupts, and computing is on one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _watch_parent()
    check_threads()


def start_server(preload: tuple[str, ...] = ()) -> None:
    """Start the fork server, which imports in its own time what the workers need; a command calls this before its own imports."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["xfelproc.drivers.pool", *preload])
    forkserver.ensure_running()


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

    def __init__(self, workers: int | None = None, preload: tuple[str, ...] = ()) -> None:
        pin_threads()
        self.workers = workers or len(os.sched_getaffinity(0))
        self._context = multiprocessing.get_context("forkserver")
        start_server(preload)
        self._executor: ProcessPoolExecutor | None = None

    def executor(self) -> Executor:
        """Return the executor, started if need be."""
        if self._executor is None:
            self._executor = ProcessPoolExecutor(self.workers, mp_context=self._context, initializer=start_worker)
        return self._executor

    def discard(self) -> None:
        """Kill the workers."""
        executor, self._executor = self._executor, None
        if executor is None:
            return
        # the pool has no public way to end a worker that does not return
        processes = list((getattr(executor, "_processes", None) or {}).values())
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

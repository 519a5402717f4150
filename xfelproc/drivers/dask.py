"""Dask workers: processes of this machine, SLURM jobs that dask-jobqueue submits, or those of a scheduler that runs already."""

from __future__ import annotations

import asyncio
import logging
import logging.config
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from xfelproc.drivers.base import WorkerLost
from xfelproc.drivers.settings import Dask
from xfelproc.drivers.threads import VARIABLES, pin_threads
from xfelproc.errors import ConfigError, JobLostError

T = TypeVar("T")

_ANSWER = 15.0
"""Seconds within which a scheduler must answer."""
_RECOUNT = 5.0
"""Seconds between counts of the workers of somebody else's scheduler."""
_RESTART = 60.0
"""Seconds within which killed workers must be back."""
_CLOSE = 5.0
"""Seconds a cluster gets to end by itself."""
_LOGGERS = ("distributed", "tornado", "asyncio", "dask_jobqueue")
_LEAN = {"distributed.worker.profile.enabled": False, "distributed.admin.system-monitor.interval": "5s"}
"""Dask's own watching of its workers, which nobody reads here: it would take their time a hundred times a second."""


class DaskExecutor(Executor):
    """An executor over a Dask client: a task is computed once, and a worker's death is told and not tried again."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._open: dict[Future[Any], Any] = {}

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Send a task; its future breaks if its worker dies.

        Raises
        ------
        BrokenExecutor
            If the scheduler is gone.
        """
        from xfelproc.drivers.dask_worker import compute

        if self._client.status != "running":
            raise BrokenExecutor("the Dask scheduler is gone")
        remote = self._client.submit(compute, fn, *args, **kwargs, pure=False, retries=0)
        future: Future[T] = Future()
        with self._lock:
            self._open[future] = remote
        future.add_done_callback(self._forget)
        self._client.loop.add_callback(self._follow, future, remote)
        return future

    def _follow(self, future: Future[Any], remote: Any) -> None:
        """Wait for the result, in the client's event loop."""
        task = asyncio.ensure_future(self._client.gather(remote, asynchronous=True))
        task.add_done_callback(partial(self._hand_on, future))

    def _hand_on(self, future: Future[Any], task: asyncio.Future[Any]) -> None:
        from distributed.scheduler import KilledWorker

        if not future.set_running_or_notify_cancel():
            if not task.cancelled():
                task.exception()  # nobody waits for it
            return
        error = CancelledError() if task.cancelled() else task.exception()
        if isinstance(error, KilledWorker):
            error = WorkerLost(f"the Dask worker {error.last_worker.address} died")
        elif isinstance(error, CancelledError):
            error = BrokenExecutor(f"the Dask scheduler dropped a task or is gone: {error}")
        future.set_result(task.result()) if error is None else future.set_exception(error)

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            remote = self._open.pop(future, None)
        if remote is not None and future.cancelled():
            remote.cancel()

    def give_up(self) -> int:
        """Drop all tasks; return how many may be at work."""
        with self._lock:
            flying = list(self._open)
        for future in flying:
            future.cancel()
        return len(flying)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Drop or await the tasks."""
        if cancel_futures:
            self.give_up()
        with self._lock:
            flying = list(self._open)
        for future in flying if wait else ():
            with suppress(CancelledError):
                future.exception()


class DaskDriver:
    """Driver ``dask``.

    Parameters
    ----------
    workers
        Processes of a local cluster; None: as many as CPUs this process may use.
    settings
        Which cluster.
    preload
        Modules that a worker imports before its first task.
    logs
        Folder for what Dask has to tell.

    Raises
    ------
    ConfigError
        If Dask is not installed, the scheduler does not answer, or its workers cannot be used.
    """

    name = "dask"
    isolated = True
    restartable = True

    def __init__(self, workers: int | None, settings: Dask, preload: tuple[str, ...] = (), logs: Path = Path()) -> None:
        pin_threads()
        _configure(logs / "dask.log")
        self._settings, self._preload, self._logs = settings, preload, logs
        self._wanted = workers or len(os.sched_getaffinity(0))
        self._cluster: Any = None
        self._client: Any = None
        self._executor: DaskExecutor | None = None
        self._spoiled = False
        self._count, self._counted = 1, -_RECOUNT
        self._connect()

    @property
    def workers(self) -> int:
        """Worker processes, as many as there are now in a cluster of somebody else's."""
        if self._settings.scheduler is not None:
            # asked seldom, and not while the connection is lost: the answer would be waited for
            if self._client is not None and self._client.status == "running" and time.monotonic() - self._counted > _RECOUNT:
                self._count, self._counted = max(1, len(self._found())), time.monotonic()
            return self._count
        return self._settings.jobs * self._settings.cores if self._settings.cluster == "slurm" else self._wanted

    @property
    def elastic(self) -> bool:
        """Workers of somebody else, or of a batch system, come and go."""
        return self._settings.scheduler is not None or self._settings.cluster == "slurm"

    @property
    def note(self) -> str | None:
        """What a user may not expect."""
        if self._settings.scheduler is not None or self._settings.cluster != "slurm":
            return None
        return f"{self._settings.jobs} SLURM jobs are asked for; frames are processed as these start (squeue --me)"

    def _found(self) -> dict[str, Any]:
        workers: dict[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        return workers

    def _connect(self) -> None:
        from distributed import Client

        from xfelproc.drivers.dask_worker import SetUp

        settings = self._settings
        if settings.scheduler is None:
            self._cluster = self._slurm() if settings.cluster == "slurm" else self._local()
            self._client = Client(self._cluster, timeout=_ANSWER, set_as_default=False)
        else:
            where = settings.scheduler
            given = {"address": where} if "://" in where else {"scheduler_file": where}
            if "scheduler_file" in given and not Path(where).is_file():
                raise ConfigError(f"execution.dask.scheduler: {where} is no address (tcp://host:port), and there is no such file")
            try:
                self._client = Client(**given, timeout=_ANSWER, set_as_default=False)
            except OSError as error:  # a TimeoutError is one
                raise ConfigError(f"execution.dask.scheduler: no Dask scheduler answers at {where}: {error}") from error
        self._client.register_plugin(SetUp(self._preload), name="xfelproc")
        self._executor = DaskExecutor(self._client)

    def _local(self) -> Any:
        from distributed import LocalCluster

        return LocalCluster(
            n_workers=self._wanted,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,
            dashboard_address=":0",  # any free port: the usual one belongs to the first cluster of a machine
            scheduler_kwargs={"dashboard": False},
            silence_logs=logging.CRITICAL,
        )

    def _slurm(self) -> Any:
        from dask_jobqueue.slurm import SLURMCluster

        settings = self._settings
        cluster = SLURMCluster(
            queue=settings.queue,
            account=settings.account,
            walltime=settings.walltime,
            cores=settings.cores,
            processes=settings.cores,
            memory=settings.memory,
            job_extra_directives=list(settings.directives),
            job_script_prologue=[*settings.prologue, *(f"export {name}=1" for name in VARIABLES)],
            interface=settings.interface,
            log_directory=str(self._logs),
            python=sys.executable,
            nanny=True,
        )
        cluster.scale(jobs=settings.jobs)
        return cluster

    def executor(self) -> Executor:
        """Return the executor, started if need be.

        Raises
        ------
        JobLostError
            If the scheduler that was named does not answer any more.
        """
        if self._executor is None:
            self._revive()
        assert self._executor is not None
        return self._executor

    def _revive(self) -> None:
        """Restart the workers, or all of it if that does not help."""
        if self._client is not None and self._client.status == "running":
            try:
                if self._spoiled:
                    self._client.restart_workers(list(self._found()), timeout=_RESTART, raise_for_error=True)
            except (OSError, RuntimeError):  # a TimeoutError is an OSError
                pass
            else:
                self._spoiled = False
                self._executor = DaskExecutor(self._client)
                return
        self._tear_down()
        try:
            self._connect()
        except ConfigError as error:
            raise JobLostError(f"{error}; the same command goes on from here once there is one") from error

    def casualties(self) -> set[int] | None:
        """Return the workers of which is known that they died: a death is told by the tasks it ended."""
        return set()

    def discard(self, code: int = 1) -> None:
        """Give up all tasks; the workers that are at them are killed before the next task, or at the end."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.give_up()
            self._spoiled = True

    def close(self) -> None:
        """Let running tasks finish, then stop what was started here."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(cancel_futures=True)
        self._tear_down()

    def _tear_down(self) -> None:
        client, self._client = self._client, None
        cluster, self._cluster = self._cluster, None
        for part in (client, cluster):
            if part is not None:
                with suppress(OSError):  # a TimeoutError is one: what does not end by itself is killed with this process
                    part.close(timeout=_CLOSE)


def _configure(log: Path) -> None:
    """Set Dask up for this process, before its loggers are made: what it has to tell goes to a file, not to the user's terminal."""
    try:
        import dask
    except ImportError as error:
        raise ConfigError(f"execution.driver = \"dask\" needs Dask: pip install 'xfelproc[dask]' ({error})") from error
    file = {"class": "logging.FileHandler", "filename": str(log), "delay": True, "formatter": "plain"}
    quiet: dict[str, Any] = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(asctime)s %(name)s %(levelname)s %(message)s"}},
        "handlers": {"file": file},
        "loggers": {name: {"level": "WARNING", "handlers": ["file"], "propagate": False} for name in _LOGGERS},
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    dask.config.set({"logging": quiet, "distributed.scheduler.allowed-failures": 0, **_LEAN})
    logging.config.dictConfig(quiet)

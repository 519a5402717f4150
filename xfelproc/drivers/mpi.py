"""MPI ranks: rank 0 dispatches, the others compute; a lost rank ends the job, and the next start of the command goes on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn, TypeVar

from xfelproc.drivers.inline import InlineExecutor
from xfelproc.drivers.threads import check_threads, pin_threads
from xfelproc.errors import ConfigError, JobLostError
from xfelproc.io.inflight import forgive_on_sigterm

T = TypeVar("T")

_ENVIRONMENT = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
"""Where launchers tell a process its rank and how many there are: Open MPI, MPICH and Intel, MVAPICH, srun."""
_TAG = 7
_SERVE, _QUIT = 1, 2
_PAUSE = 0.02
"""Seconds between looks of a rank that waits for rank 0: MPI's own waiting would keep its core busy while rank 0 plans."""


@dataclass(frozen=True)
class Launch:
    """What the launcher said: this process's rank, and how many there are."""

    rank: int
    size: int


def launched() -> Launch | None:
    """Return the rank that a launcher (mpiexec, srun) gave this process, or None where there is no other; MPI is not asked."""
    for rank, size in _ENVIRONMENT:
        given = os.environ.get(rank, ""), os.environ.get(size, "")
        if all(text.isdigit() for text in given) and int(given[1]) > 1:
            return Launch(int(given[0]), int(given[1]))
    return None


def check_launch(driver: str) -> None:
    """See that a command that several ranks were started for will use them.

    Raises
    ------
    ConfigError
        If each rank would run the whole job.
    """
    launch = launched()
    if launch is not None and driver != "mpi":
        raise ConfigError(
            f"{launch.size} ranks were started, and the driver {driver} would run the whole job in each: add --driver mpi, "
            "or start the command without mpiexec or srun"
        )


class _World:
    """All ranks, as rank 0 sees them."""

    def __init__(self, comm: Any) -> None:
        self.comm = comm
        self.size: int = comm.Get_size()
        self.waiting = True
        """The other ranks have not been told yet what to do."""
        self.lost = False
        """Ranks may be at a task whose result nobody waits for: they cannot be sent home, only killed."""

    def tell(self, what: int) -> None:
        """Let the other ranks go on."""
        self.waiting = False
        for rank in range(1, self.size):
            self.comm.send(what, dest=rank, tag=_TAG)


_WORLD: list[_World] = []


def start(preload: Iterable[str] = ()) -> None:
    """Start MPI; returns in rank 0 alone: the others serve until it has no more work for them, and then exit.

    Parameters
    ----------
    preload
        Modules that a rank imports before its first task.

    Raises
    ------
    ConfigError
        If there is no MPI, or the computing libraries run on several threads.
    """
    if _WORLD:
        return
    pin_threads()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # mpiexec passes it on to every rank; the loop of rank 0 takes it
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"execution.driver = \"mpi\" needs an MPI: pip install 'xfelproc[mpi]', or mpi4py built with your site's ({error})"
        ) from error
    launch, size = launched(), MPI.COMM_WORLD.Get_size()
    if launch is not None and size == 1:
        raise ConfigError(
            f"{launch.size} processes were started, and each is alone in its MPI: mpiexec or srun belongs to another MPI than "
            f"mpi4py, which uses {MPI.Get_library_version().split(',')[0].strip()}; use that one's mpiexec (the one beside this "
            "python), or build mpi4py with yours (docs/howto/mpi.md)"
        )
    if MPI.COMM_WORLD.Get_rank() == 0:
        _WORLD.append(_World(MPI.COMM_WORLD))
    else:
        _serve(MPI.COMM_WORLD, preload)


def _serve(comm: Any, preload: Iterable[str]) -> NoReturn:
    """Wait for rank 0, compute what it sends, exit."""
    sys.stdout, sys.stderr = sys.__stdout__ or sys.stdout, sys.__stderr__ or sys.stderr
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    forgive_on_sigterm()
    try:
        for name in preload:
            import_module(name)
        check_threads()
        while not comm.iprobe(source=0, tag=_TAG):
            time.sleep(_PAUSE)
        if comm.recv(source=0, tag=_TAG) == _SERVE:
            from mpi4py.futures import MPICommExecutor

            with MPICommExecutor(comm, root=0):
                pass
    except BaseException as error:
        sys.stderr.write(f"xfelproc: rank {comm.Get_rank()}: {type(error).__name__}: {error}\n")
        sys.stderr.flush()
        comm.Abort(getattr(error, "exit_code", 1))
        raise
    raise SystemExit(0)


def finish(code: int) -> None:
    """End all ranks with rank 0: nobody may wait for it at the end. Returns if they end by themselves; call it before exit.

    Parameters
    ----------
    code
        Exit code of the job.
    """
    if not _WORLD:
        return
    world = _WORLD[0]
    if world.waiting:
        world.tell(_QUIT)
    elif world.lost:
        sys.stdout.flush()
        sys.stderr.flush()
        world.comm.Abort(code or 1)


class _Counted(Executor):
    """An executor that knows how many of its tasks have not ended."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self.open = 0

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        with self._lock:
            self.open += 1
        future = self._inner.submit(fn, *args, **kwargs)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, future: Future[Any]) -> None:
        with self._lock:
            self.open -= 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._inner.shutdown(wait=wait, cancel_futures=cancel_futures)


class MPIDriver:
    """Driver ``mpi``: the ranks but the first, through `mpi4py.futures`; a rank alone computes by itself.

    Parameters
    ----------
    preload
        Modules that a rank imports before its first task.

    Raises
    ------
    ConfigError
        If there is no MPI.
    """

    name = "mpi"
    restartable = False
    elastic = False

    def __init__(self, preload: tuple[str, ...] = ()) -> None:
        start(preload)
        self._world = _WORLD[0]
        self.workers = max(1, self._world.size - 1)
        self.isolated = self._world.size > 1
        self._executor: _Counted | None = None

    @property
    def note(self) -> str | None:
        """What a user may not expect."""
        if self.isolated:
            return None
        return "one MPI rank alone: it computes by itself; mpiexec -n N starts N, of which one dispatches"

    def executor(self) -> Executor:
        """Return the executor, started if need be.

        Raises
        ------
        JobLostError
            After `discard`: lost ranks do not come back.
        """
        if self._world.lost:
            raise JobLostError("the MPI ranks of this job are gone; the same command goes on from here")
        if self._executor is None:
            self._executor = _Counted(self._start() if self.isolated else InlineExecutor())
        return self._executor

    def _start(self) -> Executor:
        from mpi4py.futures import MPICommExecutor

        self._world.tell(_SERVE)
        executor: Any = MPICommExecutor(self._world.comm, root=0).__enter__()
        assert isinstance(executor, Executor)  # this is rank 0
        return executor

    def casualties(self) -> set[int] | None:
        """Return None: a rank that died has ended the job."""

    def discard(self, code: int = 1) -> None:
        """Give the ranks up if they are at work; they end with this process, in `finish`, which lets its last words be said."""
        if self._executor is not None and self._executor.open and self.isolated:
            self._world.lost = True

    def close(self) -> None:
        """Let running tasks finish, then send the ranks home."""
        executor, self._executor = self._executor, None
        if executor is not None and not self._world.lost:
            executor.shutdown(wait=True, cancel_futures=True)

"""Suspects at work: each unit alone in a child process, watched by a thread of the dispatcher."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from xfelproc.io.atomic import discard
from xfelproc.io.inflight import InFlight, read_record, record_path
from xfelproc.run.flights import Died
from xfelproc.run.suspects import Quarantine
from xfelproc.stages.execute import UnitSummary, UnitTask

POLL = 0.5
"""Seconds between looks at how far a child is."""
START = 300.0
"""Seconds a child may be at no frame: imports from a busy file system, or publishing on one, are no frame's fault."""
MOST = 4
"""Children at a time: there is a cluster for all that is not suspect, and this machine is at work, too."""
LAUNCHERS = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_", "HYDRA_", "HYDI_", "MPI_", "MPIR_", "I_MPI_", "MV2_", "PALS_", "FLUX_")
"""Beginnings of variables by which an MPI library would take a child for a rank, or srun for a step."""
INNOCENT = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR1)
"""Exit codes of children that somebody ended on purpose."""


class IsolatedUnits:
    """Runs units of a stage alone.

    Parameters
    ----------
    run
        The run directory.
    task
        Maker of the stage's tasks.
    """

    def __init__(self, run: Path, task: Callable[[int, Quarantine], UnitTask]) -> None:
        self._run, self._task = run, task
        self._threads: ThreadPoolExecutor | None = None
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._stopped = False

    @property
    def slots(self) -> int:
        """How many at a time: a quarter of this machine's CPUs."""
        return max(1, min(MOST, len(os.sched_getaffinity(0)) // 4))

    @property
    def processes(self) -> set[int]:
        """Process ids of the children at work."""
        with self._lock:
            return set(self._children)

    def submit(self, unit: int, quarantine: Quarantine, limit: float) -> Future[UnitSummary]:
        """Return the future of a unit's summary; its exception is `Died` if the process died or stayed ``limit`` s at a frame."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.slots, "isolation")
        return self._threads.submit(self._alone, self._task(unit, quarantine), limit)

    def discard(self) -> None:
        """Kill what runs; nothing more is started."""
        with self._lock:
            self._stopped = True
            for child in self._children.values():
                child.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.discard()
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _alone(self, task: UnitTask, limit: float) -> UnitSummary:
        with self._lock:
            if self._stopped:
                raise Died(-1, "was not started", blame=False)
            command = [sys.executable, "-m", "xfelproc.stages.isolated"]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(os.environ))
            self._children[child.pid] = child
        record = record_path(self._run, child.pid)
        try:
            hung = self._watch(child, task, record, limit)
            answer = child.stdout.read() if child.stdout is not None else b""
            at = read_record(record)
        finally:
            _close(child)
            with self._lock:
                del self._children[child.pid]
            discard(record)
        if child.returncode == 0 and answer:
            summary, error = pickle.loads(answer)
            if error is not None:
                raise error
            return summary  # type: ignore[no-any-return]
        raise self._end(child.returncode, at, task.unit, f"took more than {limit:.0f} s" if hung else "died")

    def _watch(self, child: subprocess.Popen[bytes], task: UnitTask, record: Path, limit: float) -> bool:
        """Wait for the child's end; kill one that stays at a frame. Return whether it was killed so."""
        heard, stream = time.time(), child.stdin
        with suppress(BrokenPipeError):  # it is dead already: its exit code tells
            if stream is not None:  # it stays open: its end tells the child that the dispatcher is gone
                stream.write(pickle.dumps(task))
                stream.flush()
        while True:
            try:
                child.wait(POLL)
            except subprocess.TimeoutExpired:
                at = read_record(record)
                heard = heard if at is None else max(heard, at.at)
                if time.time() - heard > (limit if at is not None and at.row >= 0 else max(START, limit)):
                    child.kill()
                    child.wait()
                    return not self._stopped
            else:
                return False

    def _end(self, code: int, at: InFlight | None, unit: int, how: str) -> Exception:
        if at is not None and at.unit == unit:
            return Died(at.row, how, code, blame=code not in INNOCENT and not self._stopped)
        if code < 0:
            return Died(-1, how, code, blame=code not in INNOCENT and not self._stopped)
        return RuntimeError(f"unit {unit}: the process of its own ended with code {code} before it began: see what it printed")


def _close(child: subprocess.Popen[bytes]) -> None:
    """End a child that is not to go on, and close its pipes."""
    child.kill()
    child.wait()
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):  # what a dead child did not read
                stream.close()


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child: modules from where this process has them, and no part in an MPI job or SLURM step."""
    kept = {name: value for name, value in given.items() if not name.startswith(LAUNCHERS)}
    return kept | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

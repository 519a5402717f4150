"""In-flight records: before it touches a frame, a worker writes down unit and frame in a small file of its own.

A worker that dies leaves its record behind; who reads it knows which frame it was at. A worker that is told to end, or whose
dispatcher is gone, says first that no frame is to blame (`forgive`).
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from xfelproc.io.atomic import make_folder

FOLDER = ("logs", "inflight")
LENGTH = 160
"""Bytes of a record: always rewritten in full, so that nothing of a longer one shows."""
IDLE = "- -1 -1 0 0 -"
"""Stage, unit, row, since, at, lineage."""


@dataclass(frozen=True)
class InFlight:
    """What a worker was at when last heard of.

    ``row`` is -1 between frames and in a node of a fold; ``since`` and ``at`` are the times (s since 1970) when the unit and
    the frame began; ``lineage`` is the beginning of the unit's.
    """

    host: str
    worker: int
    stage: str
    unit: int
    row: int
    since: float
    at: float
    lineage: str


def record_path(run: Path, worker: int) -> Path:
    """Return where the record of a process of this host is."""
    return run.joinpath(*FOLDER) / f"{socket.gethostname()}-{worker}"


class InFlightRecord:
    """The record of this process in one run."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = record_path(run, os.getpid())
        make_folder(self.path.parent)
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)

    def mark(self, stage: str, unit: int, row: int, since: float, lineage: str) -> None:
        """Record what is about to be done and when the unit began.

        One small write in place, no sync: it outlives the process, which is all that is asked of it.
        """
        self._write(f"{stage} {unit} {row} {since:.3f} {time.time():.3f} {lineage[:16] or '-'}")

    def idle(self) -> None:
        """Record that nothing is being done."""
        self._write(IDLE)

    def close(self) -> None:
        """Release the file; what is in it stays, and what is written from now on goes nowhere."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _write(self, text: str) -> None:
        if self._file >= 0:
            os.pwrite(self._file, text.ljust(LENGTH - 1).encode() + b"\n", 0)


_CURRENT: dict[str, InFlightRecord] = {}


def record_of(run: Path) -> InFlightRecord:
    """Return this process's record in a run, which stays open until another run is asked for."""
    record = _CURRENT.get("record")
    if record is None or record.run != run or not record.path.exists():
        if record is not None:
            record.close()
        record = _CURRENT["record"] = InFlightRecord(run)
    return record


def forgive() -> None:
    """Record that no frame is to blame for the end of this process."""
    record = _CURRENT.get("record")
    if record is not None:
        record.idle()


def forgive_on_sigterm() -> None:
    """Let this process, a worker, end by SIGTERM without blame for the frame it is at, and leave SIGUSR1 to the dispatcher.

    SLURM, mpiexec and process pools end innocent workers by SIGTERM first.
    """

    def end(number: int, frame: FrameType | None) -> None:
        forgive()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def read_inflight(run: Path) -> list[InFlight]:
    """Return what the workers of a run, dead or alive, on whatever host, were last at; idle ones are left out."""
    found = []
    for path in sorted(run.joinpath(*FOLDER).glob("*-*")):
        record = read_record(path)
        if record is not None:
            found.append(record)
    return found


def read_record(path: Path) -> InFlight | None:
    """Return one record; None if its worker is idle, or the record is gone or not a record."""
    host, _, worker = path.name.rpartition("-")
    try:
        stage, unit, row, since, at, lineage = path.read_text().split()
        record = InFlight(host, int(worker), stage, int(unit), int(row), float(since), float(at), lineage)
    except (FileNotFoundError, ValueError):
        return None
    return record if record.unit >= 0 else None


def is_alive(worker: int) -> bool:
    """Return whether a process of this host is there."""
    try:
        os.kill(worker, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def clear_inflight(run: Path, keep: Container[int] = ()) -> None:
    """Forget dead workers; the records of the processes ``keep`` of this host stay."""
    kept = f"{socket.gethostname()}-"
    for path in run.joinpath(*FOLDER).glob("*"):
        worker = path.name.removeprefix(kept)
        if not (path.name.startswith(kept) and worker.isdecimal() and int(worker) in keep):
            path.unlink(missing_ok=True)

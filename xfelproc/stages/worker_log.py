"""What a worker did: JSON lines of its own, through the standard logging module.

One file a process, ``logs/workers/HOST/PID.jsonl``: one writer a file, and as many files a folder as a host has had workers. A
unit is a line when it is begun and one when it is done; frames have a line only where something is remarkable.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xfelproc.io.atomic import make_folder
from xfelproc.models.frames import FrameRef, WorkUnit

LOGGER = logging.getLogger("xfelproc.worker")
LINES_A_UNIT = 50
"""Remarks kept of one unit; the shard has every frame's reason anyway."""
SLOW_MEDIANS, SLOW_SECONDS = 10.0, 1.0
"""A frame is slow if it takes this many times the worker's median, and at least so many seconds."""
FRAMES_REMEMBERED, FRAMES_NEEDED = 200, 20
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")


def worker_name() -> str:
    """Return what the journal calls this process: HOST/PID, as its log."""
    return f"{socket.gethostname()}/{os.getpid()}"


def log_path(run: Path) -> Path:
    """Return the file of this process."""
    return run / "logs" / "workers" / f"{worker_name()}.jsonl"


def rank() -> int | None:
    """Return this process's rank, where a launcher gave it one."""
    found = next((os.environ[name] for name in _RANKS if os.environ.get(name, "").isdigit()), None)
    return None if found is None else int(found)


class _Formatter(logging.Formatter):
    """A record as a line of JSON: time, level, place (run, rank, stage, unit, frame), message, details."""

    def __init__(self) -> None:
        super().__init__()
        self.place: dict[str, Any] = {}

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname, **self.place, "message": record.getMessage()}
        if not record.name.startswith("xfelproc"):
            line["logger"] = record.name
        line |= getattr(record, "details", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class _Handler(logging.FileHandler):
    """Keeps a unit's remarks few, and a disk that is full from ending the work."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self.lines = self.dropped = 0
        self._failed = False

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            self.lines += 1
            if self.lines > LINES_A_UNIT:
                self.dropped += 1
                return False
        return bool(super().filter(record))

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:  # results count more than words about them: the shard's own writing ends the run if the disk is full
            sys.stderr.write(f"xfelproc: {self.baseFilename}: cannot be written: {sys.exc_info()[1]}; this log ends here\n")
        self._failed = True


class WorkerLog:
    """The log of this process in one run and stage.

    Parameters
    ----------
    run
        Run directory.
    stage
        Stage that its lines name.
    """

    def __init__(self, run: Path, stage: str) -> None:
        path = log_path(run)
        make_folder(path.parent)
        self._handler, self._formatter = _Handler(path), _Formatter()
        self._handler.setFormatter(self._formatter)
        self._place: dict[str, Any] = {"run": run.name, "stage": stage}
        if (number := rank()) is not None:
            self._place["rank"] = number
        self._formatter.place = self._place
        self._seconds: deque[float] = deque(maxlen=FRAMES_REMEMBERED)
        self._begun: float | None = None
        with self._recording():
            LOGGER.info("worker started", extra=_details(host=socket.gethostname(), pid=os.getpid(), python=sys.version.split()[0]))

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Record what is logged inside the block, by whom ever; what other libraries say from warnings on."""
        root, level = logging.getLogger(), LOGGER.level
        root.addHandler(self._handler)
        LOGGER.setLevel(logging.INFO)
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            LOGGER.setLevel(level)
            root.removeHandler(self._handler)

    @contextmanager
    def unit(self, unit: WorkUnit) -> Iterator[None]:
        """Say that a unit is begun, and record until the block ends."""
        self._handler.lines = self._handler.dropped = 0
        self._formatter.place = self._place | {"unit": unit.index, "frame": None}
        with self._recording():
            ends = [[ref.source, ref.index] for ref in (unit.frames[0], unit.frames[-1])] if unit.frames else []
            LOGGER.info("unit begun", extra=_details(frames=len(unit.frames), first_and_last=ends))
            try:
                yield
            except BaseException as error:
                LOGGER.error("unit given up: %s: %s", type(error).__name__, error)
                raise
            finally:
                self._begun = None
                self._formatter.place = self._place

    def frame(self, row: int, ref: FrameRef) -> None:
        """A frame is begun, and the one before it is done."""
        self._slow()
        self._begun = time.monotonic()
        self._formatter.place["frame"] = {"row": row, "source": ref.source, "index": ref.index}

    def failed(self, reason: str, bug: bool = False) -> None:
        """The frame failed; ``bug`` keeps the traceback of the exception at hand."""
        LOGGER.warning("frame failed: %s", reason, exc_info=bug)

    def frames_done(self) -> None:
        """The unit's last frame is done."""
        self._slow()
        self._begun = None
        self._formatter.place["frame"] = None

    def unit_done(self, counts: dict[str, int], milliseconds: dict[str, float], seconds: float) -> None:
        """The unit is published; ``milliseconds`` is the CPU time of its frames by step."""
        shown = {name: round(value, 1) for name, value in milliseconds.items()}
        dropped = {"lines_dropped": self._handler.dropped} if self._handler.dropped else {}
        LOGGER.info("unit done", extra=_details(cpu_seconds=round(seconds, 3), cpu_ms=shown, counts=counts, **dropped))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()

    def _slow(self) -> None:
        if self._begun is None:
            return
        seconds = time.monotonic() - self._begun
        if len(self._seconds) >= FRAMES_NEEDED and seconds > SLOW_SECONDS:
            usual = statistics.median(self._seconds)
            if seconds > SLOW_MEDIANS * usual:
                LOGGER.warning("slow frame: %.2f s, %.3f s in the median", seconds, usual)
        self._seconds.append(seconds)


def _details(**details: Any) -> dict[str, Any]:
    return {"details": details}

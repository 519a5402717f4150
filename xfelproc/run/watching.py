"""A run seen from outside: shards at the first look, then the journal's new lines, workers' records and the lock."""

from __future__ import annotations

import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xfelproc.drivers.slurm import QueueState, queue_state
from xfelproc.io.inflight import is_alive, read_inflight
from xfelproc.io.shards import ShardFault
from xfelproc.run.directory import open_run
from xfelproc.run.geometry import recorded_stage
from xfelproc.run.journal import JournalTail
from xfelproc.run.lineage import changed, versions
from xfelproc.run.lock import holder
from xfelproc.run.metrics import metrics_path
from xfelproc.run.progress import Progress
from xfelproc.run.suspects import SuspectFile

ASK_QUEUE_EVERY = 30.0
"""Seconds between questions to SLURM, whose controller has others to serve."""

WORKERS_A_SECOND = 200
"""Workers' records read, in the mean: each is a file."""


@dataclass(frozen=True)
class WorkerState:
    """Where a worker is: stage, unit, row of the frame (-1: none), and since when it is at that unit and that frame.

    ``alive`` is None for a worker on another host: nobody can tell from here.
    """

    host: str
    pid: int
    stage: str
    unit: int
    row: int
    since: float
    frame_since: float
    alive: bool | None


def read_workers(run: Path) -> list[WorkerState]:
    """Return the workers that are at a unit, by their in-flight records; longest at it first."""
    here = socket.gethostname()
    found = [
        WorkerState(r.host, r.worker, r.stage, r.unit, r.row, r.since, r.at, is_alive(r.worker) if r.host == here else None)
        for r in read_inflight(run)
    ]
    return sorted(found, key=lambda worker: worker.since)


class Watch:
    """What is known of a run directory; `refresh` reads what is new.

    Parameters
    ----------
    folder
        Run directory.

    Raises
    ------
    ConfigError
        If it is none.
    """

    def __init__(self, folder: Path) -> None:
        self.directory = open_run(folder)
        self.folder = folder
        manifest = self.directory.read_manifest()
        self.progress = Progress(np.diff(manifest.offsets))
        self._tail = JournalTail(folder)
        self._looked = False
        self.holder: dict[str, Any] | None = None
        self.queue: list[QueueState] = []
        self._asked = -ASK_QUEUE_EVERY
        self._workers_read = 0.0
        self._known_workers: list[WorkerState] = []

    @property
    def waiting(self) -> bool:
        """Whether SLURM still has a job for the run."""
        return any(job.is_alive for job in self.queue)

    @property
    def running(self) -> bool:
        """Whether some process is at work on the run."""
        return self.holder is not None

    def refresh(self) -> None:
        """Read what is new.

        The dispatcher counts the shards when it begins, and tells the journal; where none is at work, they are counted here.
        """
        self.holder = holder(self.folder / "lock")
        if time.monotonic() - self._asked >= ASK_QUEUE_EVERY:
            self._asked, self.queue = time.monotonic(), queue_state(self.folder)
        for event in self._tail.poll():
            self.progress.feed(event)
        if not self._looked and not (self.running and self.progress.counted):
            self.progress.look(self.folder, recorded_stage(self.directory))
            self._looked = True

    def state(self) -> str:
        """Return ``running``, ``queued``, ``done`` or ``stopped``."""
        progress = self.progress
        if self.running:
            return "running"
        if progress.last.get("event") == "end" and progress.units == len(progress.sizes):
            return "done"
        return "queued" if self.waiting else "stopped"

    def remarks(self) -> list[str]:
        """Return what is odd about the results here, and what it means."""
        lines = []
        faults, units = self.progress.faults, len(self.progress.sizes)
        if other := faults[ShardFault.OTHER_FORMAT.value]:
            differences = self._version_changes()
            why = f" ({'; '.join(differences)})" if differences else ""
            lines.append(
                f"{other} of {units} units are there in another format than this version of xfelproc writes{why}: they do not "
                "count as done, and 'run' makes them again (it refuses if another version made them: then give --restart)"
            )
        if damaged := faults[ShardFault.DAMAGED.value]:
            lines.append(f"{damaged} of {units} units are truncated or damaged: 'run' makes them again")
        return lines

    def _version_changes(self) -> list[str]:
        try:
            before = self.directory.recorded_versions()
        except ValueError as error:
            return [str(error)]
        return changed(before, versions())

    def collect(self) -> dict[str, Any]:
        """Return how far the run is, as plain values."""
        progress, state = self.progress, self.state()
        now = time.time() if self.running and progress.processing else progress.pace.last
        merged, suspects = self.directory.read_json("merge.json"), self.directory.read_json(SuspectFile.NAME)
        left = progress.seconds_left(now) if self.running and progress.processing else None
        return {
            "run": str(self.folder),
            "state": state,
            "holder": self.holder,
            "stage": {"name": progress.stage, "units_done": progress.stage_units, "units": progress.stage_total},
            "units": {"done": progress.units, "total": len(progress.sizes)},
            "frames": {"done": progress.frames, "total": progress.total_frames},
            "counts": dict(progress.counts),
            "frames_per_second": {"recent": progress.pace.recent(now), "mean": progress.pace.mean(now)},
            "seconds_left": left,
            "cpu_ms_a_frame": progress.cpu_ms_a_frame,
            "failures": dict(progress.failures.most_common(5)),
            "driver": progress.driver,
            "workers": {"asked_for": progress.workers, "lost": progress.workers_lost, "at_work": self._workers()},
            "suspects": suspects["suspects"] if suspects else [],
            "queue": [asdict(job) for job in self.queue],
            "queue_lines": [job.line() for job in self.queue],
            "quarantined": [{"stage": s, "unit": u, "row": r, "reason": why} for (s, u, r), why in progress.quarantined.items()],
            "warnings": list(progress.warnings),
            "remarks": self.remarks(),
            "updated": progress.updated or None,
            "exit_code": progress.last.get("exit_code"),
            "stopped_by": progress.last.get("why") if state == "stopped" else None,
            "merged": merged["overall"] if merged and not merged["empty"] else None,
            "report": str(self.directory.report) if self.directory.report.is_file() else None,
            "metrics": str(metrics_path(self.folder)) if metrics_path(self.folder).is_file() else None,
        }

    def _workers(self) -> list[dict[str, Any]]:
        if not self.running:
            return []
        if time.monotonic() - self._workers_read >= len(self._known_workers) / WORKERS_A_SECOND:
            self._workers_read, self._known_workers = time.monotonic(), read_workers(self.folder)
        return [asdict(worker) for worker in self._known_workers]

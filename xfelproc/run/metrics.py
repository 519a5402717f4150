"""A run's progress as a Prometheus text file, for node-exporter's textfile collector."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xfelproc.io.atomic import make_folder, write_atomic
from xfelproc.models.conventions import FrameStatus
from xfelproc.run.progress import Progress

WRITE_EVERY = 10.0
"""Seconds between writes, at least."""
_AT_ONCE = ("start", "stage", "end", "stopped")

METRICS = {
    "running": "1 while the run is at work, 0 when it has ended or was stopped",
    "frames_planned": "frames to process",
    "frames_done": "frames processed, whatever came of them",
    "frames": "frames processed, by how far they came",
    "units_planned": "work units to process",
    "units_done": "work units processed",
    "lattices": "lattices indexed",
    "frames_per_second": "frames a second, of late and since the stage began",
    "seconds_left": "time left of the stage process at the recent rate (absent: not known)",
    "workers": "workers asked for",
    "workers_lost_total": "times that workers died or were killed",
    "quarantined_frames": "frames left out because their workers died at them twice",
    "stage": "1 for the stage at work",
    "last_update_timestamp_seconds": "when this was written",
}
"""All metrics (with ``xfelproc_`` before them), each a gauge but those whose names end in ``_total``."""


def metrics_path(run: Path) -> Path:
    """Return where the file of a run is."""
    return run / "logs" / "metrics.prom"


class MetricsFile:
    """Writes the file; `event` is called with every event of the journal.

    Parameters
    ----------
    run
        Run directory.
    progress
        What counts; fed here.
    """

    def __init__(self, run: Path, progress: Progress) -> None:
        self.path, self.progress = metrics_path(run), progress
        self._name = run.absolute().name
        self._written = -WRITE_EVERY
        make_folder(self.path.parent)

    def event(self, event: dict[str, Any]) -> None:
        """Count an event, and write if it is time.

        Raises
        ------
        OutputError
            If the disk is full.
        """
        self.progress.feed(event)
        now = time.monotonic()
        if event["event"] in _AT_ONCE or now - self._written >= WRITE_EVERY:
            self._written = now
            write_atomic(self.path, metrics_text(self.progress, self._name, time.time()).encode(), durable=False)


def metrics_text(progress: Progress, run: str, now: float) -> str:
    """Return the file's text (Prometheus text exposition format 0.0.4)."""
    escaped = run.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    label = f'run="{escaped}"'
    lines, told = [], ""
    for name, more, value in _samples(progress, now):
        if name != told:
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP xfelproc_{name} {METRICS[name]}", f"# TYPE xfelproc_{name} {kind}"]
            told = name
        lines.append(f"xfelproc_{name}{{{label}{',' + more if more else ''}}} {value:.12g}")
    return "\n".join(lines) + "\n"


def _samples(progress: Progress, now: float) -> Iterator[tuple[str, str, float]]:
    yield "running", "", float(not progress.ended)
    yield "frames_planned", "", progress.total_frames
    yield "frames_done", "", progress.frames
    for status in FrameStatus:
        yield "frames", f'status="{status.name.lower()}"', progress.counts[status.name]
    yield "units_planned", "", len(progress.sizes)
    yield "units_done", "", progress.units
    yield "lattices", "", progress.counts["LATTICES"]
    for window, rate in (("recent", progress.pace.recent(now)), ("mean", progress.pace.mean(now))):
        yield "frames_per_second", f'window="{window}"', rate if progress.processing and rate else 0.0
    left = progress.seconds_left(now) if progress.processing else None
    if left is not None:
        yield "seconds_left", "", left
    yield "workers", "", progress.workers
    yield "workers_lost_total", "", progress.workers_lost
    yield "quarantined_frames", "", len(progress.quarantined)
    if progress.stage and not progress.ended:
        yield "stage", f'stage="{progress.stage}"', 1
    yield "last_update_timestamp_seconds", "", now

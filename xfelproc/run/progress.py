"""How far a run is, told from the journal's events: the dispatcher and those who watch it count in the same way."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.io.shards import ShardFault, inspect_shard, shard_path
from xfelproc.models.reasons import general_reason

MAIN_STAGE = "process"
RECENT_SECONDS = 60.0
RECENT_UNITS = 5
"""The recent rate is over the last minute, or over as long as it took to finish so many units."""
KEPT_SECONDS = 600
KEPT_WARNINGS = 20


class Pace:
    """Frames finished against time, second by second, for the last while."""

    def __init__(self) -> None:
        self._bins: deque[list[float]] = deque(maxlen=KEPT_SECONDS)
        self.begun: float | None = None
        self.last = 0.0
        self.frames = 0

    def start(self, now: float) -> None:
        """Begin anew."""
        self._bins.clear()
        self.begun, self.last, self.frames = now, now, 0

    def add(self, now: float, frames: int) -> None:
        """Count the frames of a unit that is done."""
        self.frames += frames
        self.last = now
        second = float(int(now))
        if not self._bins or self._bins[-1][0] != second:
            self._bins.append([second, 0.0, 0.0])
        self._bins[-1][1] += frames
        self._bins[-1][2] += 1

    def mean(self, now: float) -> float | None:
        """Return frames per second since the beginning; None: nothing finished yet."""
        return None if self.begun is None or not self.frames else self.frames / max(1.0, now - self.begun)

    def recent(self, now: float) -> float | None:
        """Return frames per second of late."""
        if self.begun is None:
            return None
        frames = units = 0.0
        since = oldest = self.begun
        for second, more, count in reversed(self._bins):
            if now - second > RECENT_SECONDS and units >= RECENT_UNITS:
                since = now - RECENT_SECONDS if now - oldest <= RECENT_SECONDS else second
                break
            frames, units, oldest = frames + more, units + count, second
        return frames / max(1.0, now - max(since, self.begun)) if frames else None


@dataclass
class Progress:
    """Counts of a run; `feed` takes the journal's events in their order, `look` reads the shards instead.

    Parameters
    ----------
    sizes
        Frames of each work unit of the stage ``process`` (n_units,).
    """

    sizes: NDArray[np.int64]
    frames: int = 0
    units: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    stage: str = ""
    stage_units: int = 0
    stage_total: int = 0
    workers: int = 0
    driver: str = ""
    workers_lost: int = 0
    quarantined: dict[tuple[str, int, int], str] = field(default_factory=dict)
    warnings: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_WARNINGS))
    updated: float = 0.0
    last: dict[str, Any] = field(default_factory=dict)
    counted: bool = False
    """Whether the dispatcher has told where the stage ``process`` began, so that the shards need not be read."""

    def __post_init__(self) -> None:
        self.pace = Pace()
        self._seen = np.zeros(len(self.sizes), dtype=bool)
        self._cpu = np.full(len(self.sizes), np.nan)
        self._failures: dict[int, tuple[tuple[str, int], ...]] = {}
        self._kinds: dict[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]] = {}  # units that failed alike share one

    @property
    def total_frames(self) -> int:
        """Frames to process."""
        return int(self.sizes.sum())

    @property
    def failures(self) -> Counter[str]:
        """Reasons of failure, without their numbers."""
        total: Counter[str] = Counter()
        for reasons in self._failures.values():
            for reason, count in reasons:
                total[reason] += count
        return total

    @property
    def cpu_ms_a_frame(self) -> float | None:
        """CPU time a frame, of the median unit."""
        known = self._cpu[np.isfinite(self._cpu)]
        return float(np.median(known)) if len(known) else None

    @property
    def processing(self) -> bool:
        """Whether frames are being processed now."""
        return self.stage == MAIN_STAGE and not self.ended and self.frames < self.total_frames

    @property
    def ended(self) -> bool:
        """Whether the last run came to its end, for good or for bad."""
        return self.last.get("event") in ("end", "stopped")

    def seconds_left(self, now: float) -> float | None:
        """Return how long the stage ``process`` will still take at the recent rate; None: nobody knows."""
        rate = self.pace.recent(now) or self.pace.mean(now)
        return (self.total_frames - self.frames) / rate if rate else None

    def feed(self, event: dict[str, Any]) -> None:
        """Take an event of the journal."""
        self.updated = float(event.get("time", self.updated))
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)

    def _on_start(self, event: dict[str, Any]) -> None:
        self.last, self.counted, self.stage = event, False, ""
        self.stage_units = self.stage_total = 0
        self.driver, self.workers = str(event.get("driver", "")), int(event.get("workers", 0))
        self.warnings.clear()

    def _on_restart(self, event: dict[str, Any]) -> None:
        self._failures.clear()
        self.quarantined.clear()
        self.workers_lost = 0

    def _on_stage(self, event: dict[str, Any]) -> None:
        self.stage, self.stage_units, self.stage_total = str(event["stage"]), int(event["done"]), int(event["units"])
        if self.stage == MAIN_STAGE and "counts" in event:
            self.counts, self.frames, self.units = Counter(event["counts"]), int(event["frames"]), self.stage_units
            self._seen[:] = False
            self.faults.clear()
            self.pace.start(self.updated)
            self.counted = True

    def _on_fold(self, event: dict[str, Any]) -> None:
        self.stage, self.stage_units, self.stage_total = str(event["stage"]), 0, 0

    def _on_unit(self, event: dict[str, Any]) -> None:
        unit = int(event["unit"])
        if event.get("stage") == self.stage:
            self.stage_units += 1
        if event.get("stage") != MAIN_STAGE or not 0 <= unit < len(self.sizes):
            return
        self._failures.pop(unit, None)
        if self._seen[unit] or event.get("rebuilt"):
            return
        self._seen[unit] = True
        frames = int(self.sizes[unit])
        self.counts.update(event["counts"])
        self.frames, self.units = self.frames + frames, self.units + 1
        self._cpu[unit] = 1e3 * float(event["seconds"]) / max(1, frames)
        self.pace.add(self.updated, frames)

    def _on_result(self, event: dict[str, Any]) -> None:
        self.counts = Counter(event["counts"])

    def _on_failure(self, event: dict[str, Any]) -> None:
        if event.get("stage", MAIN_STAGE) != MAIN_STAGE:
            return
        unit, reason = int(event["unit"]), general_reason(str(event["reason"]))
        known = dict(self._failures.get(unit, ()))
        known[reason] = known.get(reason, 0) + int(event["count"])
        kind = tuple(known.items())
        self._failures[unit] = self._kinds.setdefault(kind, kind)

    def _on_workers_lost(self, event: dict[str, Any]) -> None:
        self.workers_lost += 1

    def _on_quarantine(self, event: dict[str, Any]) -> None:
        place = str(event.get("stage", self.stage)), int(event["unit"]), int(event["row"])
        self.quarantined[place] = str(event["reason"])

    def _on_warning(self, event: dict[str, Any]) -> None:
        self.warnings.append(str(event["text"]))

    def _on_end(self, event: dict[str, Any]) -> None:
        self.last = event

    _on_stopped = _on_end

    def look(self, run: Path, result: str = MAIN_STAGE) -> None:
        """Count what the shards prove, whatever the journal tells; ``result`` is the stage whose shards are the result."""
        self.counts.clear()
        self.faults.clear()
        self.frames = self.units = 0
        for unit, size in enumerate(self.sizes):
            found = inspect_shard(shard_path(run, MAIN_STAGE, unit))
            if isinstance(found, ShardFault):
                if found is not ShardFault.MISSING:
                    self.faults[found.value] += 1
                continue
            self._seen[unit] = True
            later = found if result == MAIN_STAGE else inspect_shard(shard_path(run, result, unit))
            self.counts.update(found.counts if isinstance(later, ShardFault) else later.counts)
            self.frames, self.units = self.frames + int(size), self.units + 1
            self._cpu[unit] = 1e3 * found.seconds / max(1, int(size))

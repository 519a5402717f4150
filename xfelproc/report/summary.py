"""What the report needs of a run, folded unit by unit: its size depends on the detector and on the units, not on the frames."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.models.conventions import FrameStatus
from xfelproc.models.experiment import Detector
from xfelproc.models.frames import UnitResult
from xfelproc.models.reasons import general_reason

MAX_LATTICES = 20_000
"""Lattices kept for the histograms of cells: every one up to here, then none (their number is still counted)."""

STAGES = ("read", "calibrate", "find", "index", "refine", "integrate")
RESIDUAL_CELLS = 8
"""The detector residuals are averaged over this many cells along each side of a panel of a one-panel detector."""


@dataclass
class RunSummary:
    """Sums over the units folded so far; `add` takes them in unit order."""

    detector: Detector
    unit_frames: list[int] = field(default_factory=list)
    unit_hits: list[int] = field(default_factory=list)
    unit_indexed: list[int] = field(default_factory=list)
    status: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    n_lattices: int = 0
    n_reflections: int = 0
    cells: list[NDArray[np.float64]] = field(default_factory=list)
    rmsd: list[NDArray[np.float64]] = field(default_factory=list)
    n_spots: list[NDArray[np.int32]] = field(default_factory=list)
    candidates: list[tuple[float, int, int, int]] = field(default_factory=list)
    unit_times: dict[str, list[NDArray[np.float64]]] = field(default_factory=lambda: {"blank": [], "hit": []})
    spot_map: NDArray[np.float64] = field(init=False)
    residual_sum: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        n, n_slow, n_fast = self.detector.stack_shape
        self.bin = max(1, int(np.ceil(max(n_slow, n_fast) / 1000)))
        self.spot_map = np.zeros((n, -(-n_slow // self.bin), -(-n_fast // self.bin)))
        self.cells_a_side = RESIDUAL_CELLS if n == 1 else 1
        self.residual_sum = np.zeros((n, self.cells_a_side, self.cells_a_side, 5))

    def add(self, unit: int, result: UnitResult) -> None:
        """Fold the tables of a unit."""
        frames = result.frames
        status = frames["status"]
        self.unit_frames.append(len(frames))
        self.unit_hits.append(int((status >= FrameStatus.HIT).sum()))
        self.unit_indexed.append(int((status >= FrameStatus.INDEXED).sum()))
        for value in status:
            self.status[FrameStatus(value).name] += 1
        for row in np.flatnonzero(status < FrameStatus.INTEGRATED):
            self._count_reason(str(frames["reason"][row]), f"source {frames['source'][row]}, frame {frames['index'][row]}")
        for name, chosen in (("blank", status == FrameStatus.BLANK), ("hit", status >= FrameStatus.HIT)):
            if chosen.any():
                self.unit_times[name].append(np.median(frames["times"][chosen].astype(np.float64), axis=0))
        self.n_lattices += len(result.lattices)
        self.n_reflections += len(result.reflections)
        if sum(map(len, self.rmsd)) < MAX_LATTICES:
            self.cells.append(result.lattices["cell"])
            self.rmsd.append(result.lattices["rmsd"])
            self.n_spots.append(frames["n_spots"][status != FrameStatus.FAILED])
        self._add_spots(result)
        self._add_candidates(unit, result)

    def _count_reason(self, reason: str, example: str) -> None:
        general = general_reason(reason) or "no reason recorded"
        self.reasons[general] += 1
        self.examples.setdefault(general, f"{reason} ({example})")

    def _add_spots(self, result: UnitResult) -> None:
        spots, indexed = result.spots, result.indexed
        index = (
            spots["panel"],
            np.clip((spots["slow"] / self.bin).astype(int), 0, self.spot_map.shape[1] - 1),
            np.clip((spots["fast"] / self.bin).astype(int), 0, self.spot_map.shape[2] - 1),
        )
        np.add.at(self.spot_map, index, 1.0)
        rows = indexed["spot"]
        panel, fast, slow = spots["panel"][rows], spots["fast"][rows], spots["slow"][rows]
        d_fast, d_slow = fast - indexed["fast_calc"], slow - indexed["slow_calc"]
        size = self.detector.image_sizes[panel]
        cell = np.clip((np.column_stack([slow, fast]) / size[:, ::-1] * self.cells_a_side).astype(int), 0, self.cells_a_side - 1)
        values = np.column_stack([np.ones(len(rows)), d_fast, d_slow, d_fast**2, d_slow**2])
        np.add.at(self.residual_sum, (panel, cell[:, 0], cell[:, 1]), values)

    def _add_candidates(self, unit: int, result: UnitResult) -> None:
        """Keep (fraction of spots explained, unit, row, indexed?) of frames that the report may show."""
        lattices, frames = result.lattices, result.frames
        explained = np.zeros(len(frames))
        np.add.at(explained, lattices["frame"], lattices["n_indexed"])
        for row in np.flatnonzero(frames["status"] >= FrameStatus.HIT):
            indexed = int(frames["status"][row] >= FrameStatus.INDEXED)
            score = explained[row] if indexed else frames["n_spots"][row]
            self.candidates.append((float(score), unit, int(row), indexed))
        # the extremes and the middle are all that is shown: thin out the rest, in an order that does not depend on arrival
        if len(self.candidates) > 4000:
            self.candidates.sort()
            self.candidates = self.candidates[:500] + self.candidates[500:-500:8] + self.candidates[-500:]

    def chosen_frames(self) -> list[tuple[str, int, int]]:
        """Return (label, unit, row) of the best, median and worst indexed frame and of the strongest hits not indexed."""
        indexed = sorted(c for c in self.candidates if c[3])
        failed = sorted((c for c in self.candidates if not c[3]), reverse=True)
        chosen: list[tuple[str, int, int]] = []
        if indexed:
            for label, pick in (("best", indexed[-1]), ("median", indexed[len(indexed) // 2]), ("worst", indexed[0])):
                if (pick[1], pick[2]) not in {(u, r) for _, u, r in chosen}:
                    chosen.append((label, pick[1], pick[2]))
        return chosen + [("hit, not indexed", u, r) for _, u, r, _ in failed[:2]]

    def typical_times(self) -> dict[str, NDArray[Any]]:
        """Return the median over units of the median CPU time in ms a stage, of blanks and of hits: compilation does not count."""
        empty = np.zeros(len(STAGES))
        return {name: np.median(times, axis=0) if times else empty for name, times in self.unit_times.items()}

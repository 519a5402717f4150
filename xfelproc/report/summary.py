"""What the report shows of a fold's result."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from xfelproc.io.nodes import Partial
from xfelproc.models.conventions import FrameStatus
from xfelproc.report.fold import ReportFold, median_time, unit_and_row, unpacked

STAGES = ("read", "calibrate", "find", "index", "refine", "integrate")


class RunSummary:
    """View of a `ReportFold`'s result.

    Parameters
    ----------
    fold
        The fold.
    partial
        Its result.
    offsets
        First frame of each unit, and the number of frames (n_units + 1,).
    """

    def __init__(self, fold: ReportFold, partial: Partial, offsets: NDArray[np.int64]) -> None:
        self.detector, self.cells_a_side = fold.detector, fold.cells_a_side
        along = partial["along"]
        units = -(-np.arange(fold.n_bins) * max(1, fold.n_units) // fold.n_bins)
        self.first_frames = offsets[np.minimum(units, len(offsets) - 1)]
        self.bin_frames = along.sum(axis=1)
        self.bin_hits = along[:, FrameStatus.HIT :].sum(axis=1)
        self.bin_indexed = along[:, FrameStatus.INDEXED :].sum(axis=1)
        self.status: Counter[str] = Counter({s.name: int(along[:, s].sum()) for s in FrameStatus})
        self.n_lattices, self.n_reflections = (int(v) for v in partial["totals"])
        self.cells, self.rmsd = partial["lattices"][:, :6], partial["lattices"][:, 6]
        self.n_spots = partial["frame_spots"]
        self.n_readable = int(along.sum() - along[:, FrameStatus.FAILED].sum())
        reasons = unpacked(partial["reasons"])
        self.reasons: Counter[str] = Counter({general: count for general, count, _, _ in reasons})
        self.examples: dict[str, str] = {general: text for general, _, _, text in reasons}
        self.left_out = [(*unit_and_row(place), str(reason)) for place, reason in unpacked(partial["left_out"])]
        self.spot_map = partial["spot_map"].astype(np.float64)
        self.residual_sum = partial["residuals"]
        self._scores, self._places, self._strongest = partial["scores"], partial["score_places"], partial["strongest"]
        self._times = partial["times"]

    @property
    def n_frames(self) -> int:
        """Frames of the run."""
        return int(self.bin_frames.sum())

    @property
    def n_hits(self) -> int:
        """Frames with enough spots."""
        return int(self.bin_hits.sum())

    @property
    def n_indexed(self) -> int:
        """Frames with a lattice."""
        return int(self.bin_indexed.sum())

    def chosen_frames(self) -> list[tuple[str, int, int]]:
        """Return (label, unit, row) of the best, median and worst indexed frame and of the strongest hits not indexed."""
        chosen: list[tuple[str, int, int]] = []
        cumulated = np.cumsum(self._scores)
        if total := int(cumulated[-1]):
            for label, rank in (("best", total), ("median", total // 2 + 1), ("worst", 1)):
                unit, row = unit_and_row(self._places[np.searchsorted(cumulated, rank)])
                if (unit, row) not in {(u, r) for _, u, r in chosen}:
                    chosen.append((label, unit, row))
        return chosen + [("hit, not indexed", *unit_and_row(place)) for _, place in self._strongest]

    def typical_times(self) -> dict[str, NDArray[np.float64]]:
        """Return the median CPU time in ms a stage, of blanks and of hits: compilation does not count."""
        return {
            name: np.array([median_time(counts) for counts in kind])
            for name, kind in zip(("blank", "hit"), self._times, strict=True)
        }

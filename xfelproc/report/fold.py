"""What the report needs of the shards, as a fold: of a size that depends on the detector, not on the frames or the units.

Counts and selections do not depend on the order in which shards are taken (but of more than 500 different reasons): samples are
the rows with the smallest hash of their frame's place, extremes are chosen by value and then by place. Sums of residuals and
pixels are formed over the fold's fixed tree.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xfelproc.io.nodes import Partial
from xfelproc.io.shards import UnitImages
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.experiment import Detector, Vector3
from xfelproc.models.frames import UnitResult
from xfelproc.models.reasons import LEFT_OUT, general_reason
from xfelproc.report.residuals import SUMS, cells_a_side, residual_sums

VERSION = 2
BINS = 1000
"""At most so many points along the run."""
SAMPLE = 10_000
"""Lattices, and frames, kept for histograms."""
REASONS = 500
"""Different reasons counted apart; rarer ones are counted together beyond that."""
OTHER = "other reasons"
NO_REASON = "no reason recorded"
SCORES = 8192
"""Scores of indexed frames (spots explained) are counted one by one below this."""
STRONGEST = 2
"""Hits not indexed that are shown."""
LEFT_OUT_SHOWN = 200
STEPS = 6
SHORTEST, RATIO, TIMES = 1e-3, 1.02, 1050
"""CPU times a step are counted in bins from 1 µs on, each 2 % longer than the one before."""
MAP_SIDE = 1000
"""Longer side of the map of spots, about."""


class Unit(Protocol):
    """A unit's shard."""

    @property
    def block(self) -> int:
        """Number of the unit, over all runs that are folded over."""

    def result(self) -> UnitResult:
        """Return all tables."""

    def images(self) -> UnitImages | None:
        """Return the added-up pixels, if the unit has some."""


@dataclass(frozen=True)
class ReportFold:
    """Fold over the shards of a run.

    Parameters
    ----------
    detector
        Of the run's first frame.
    n_units
        Units of the run.
    direction
        From the sample to the source.
    """

    detector: Detector
    n_units: int
    direction: Vector3 = (0.0, 0.0, 1.0)

    @property
    def lineage(self) -> str:
        """Hash of what the result depends on beside the shards."""
        return hashlib.sha256(f"report {VERSION} {self.n_units} {self.detector!r} {self.direction}".encode()).hexdigest()

    @property
    def binning(self) -> int:
        """Pixels along each side of a cell of the map of spots."""
        n, n_slow, n_fast = self.detector.stack_shape
        # panels of a segmented detector are small each: the side that counts is that of their area as one square
        side = max(n_slow, n_fast) if n == 1 else np.sqrt(n * n_slow * n_fast)
        return max(1, int(np.ceil(side / MAP_SIDE)))

    @property
    def cells_a_side(self) -> int:
        """Cells of residuals along each side of a panel."""
        return cells_a_side(self.detector)

    @property
    def n_bins(self) -> int:
        """Points along the run."""
        return max(1, min(BINS, self.n_units))

    def empty(self) -> Partial:
        """Return the result of no shards."""
        n, n_slow, n_fast = self.detector.stack_shape
        cells = self.cells_a_side
        return {
            "along": np.zeros((self.n_bins, len(FrameStatus)), np.int64),
            "totals": np.zeros(2, np.int64),
            "reasons": _packed([]),
            "left_out": _packed([]),
            "lattice_keys": np.zeros(0, np.uint64),
            "lattices": np.zeros((0, 7)),
            "frame_keys": np.zeros(0, np.uint64),
            "frame_spots": np.zeros(0, np.int32),
            "scores": np.zeros(SCORES, np.int64),
            "score_places": np.full(SCORES, -1, np.int64),
            "strongest": np.zeros((0, 2), np.int64),
            "times": np.zeros((2, STEPS, TIMES), np.int64),
            "spot_map": np.zeros((n, -(-n_slow // self.binning), -(-n_fast // self.binning)), np.uint32),
            "residuals": np.zeros((n, cells, cells, SUMS)),
        }

    def accumulate(self, blocks: Iterable[Unit]) -> Partial:
        """Return the sums over some units."""
        partial = self.empty()
        for block in blocks:
            partial = self.combine(partial, self.of_unit(block.block, block.result(), block.images()))
        return partial

    def of_unit(self, unit: int, result: UnitResult, images: UnitImages | None = None) -> Partial:
        """Return what one unit yields."""
        partial, frames = self.empty(), result.frames
        status = frames["status"]
        partial["along"][unit * self.n_bins // max(1, self.n_units)] = np.bincount(status, minlength=len(FrameStatus))
        partial["totals"][:] = len(result.lattices), len(result.reflections)
        partial |= _reasons(unit, result) | _samples(unit, result) | _extremes(unit, result)
        for kind, chosen in enumerate((status == FrameStatus.BLANK, status >= FrameStatus.HIT)):
            for step, values in enumerate(frames["times"][chosen].T):
                partial["times"][kind, step] = np.bincount(_time_bins(values), minlength=TIMES)
        self._add_spots(partial, result)
        if images is not None:
            partial |= {
                "image_total": images.total.astype(np.float64),
                "image_maximum": images.maximum,
                "image_facts": np.array([images.n_frames, images.binning], np.int64),
            }
        return partial

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return the sums over both."""
        summed = ("along", "totals", "scores", "times", "spot_map", "residuals")
        partial = {name: first[name] + second[name] for name in summed}
        places = np.where(first["score_places"] < 0, second["score_places"], first["score_places"])
        both = (first["score_places"] >= 0) & (second["score_places"] >= 0)
        places[both] = np.minimum(first["score_places"], second["score_places"])[both]
        partial["score_places"] = places
        for keys, rows in (("lattice_keys", "lattices"), ("frame_keys", "frame_spots")):
            partial |= _smallest(keys, rows, *(np.concatenate([first[name], second[name]]) for name in (keys, rows)))
        partial["strongest"] = _strongest(np.concatenate([first["strongest"], second["strongest"]]))
        partial["reasons"] = _packed(_common([*unpacked(first["reasons"]), *unpacked(second["reasons"])]))
        left_out = sorted([*unpacked(first["left_out"]), *unpacked(second["left_out"])])
        partial["left_out"] = _packed(left_out[:LEFT_OUT_SHOWN])
        return partial | _combined_images(first, second)

    def _add_spots(self, partial: Partial, result: UnitResult) -> None:
        spots, spot_map = result.spots, partial["spot_map"]
        index = (
            spots["panel"],
            np.clip((spots["slow"] / self.binning).astype(int), 0, spot_map.shape[1] - 1),
            np.clip((spots["fast"] / self.binning).astype(int), 0, spot_map.shape[2] - 1),
        )
        np.add.at(spot_map, index, 1)
        partial["residuals"] = residual_sums(self.detector, self.direction, result)


def place_of(unit: int, row: Any) -> Any:
    """Return one number for the frame ``row`` of a unit; it grows along the run."""
    return (np.int64(unit) << 32) | np.asarray(row, dtype=np.int64)


def unit_and_row(place: int) -> tuple[int, int]:
    """Return the unit and the row of a place."""
    return int(place) >> 32, int(place) & 0xFFFFFFFF


def _packed(content: list[Any]) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(content).encode(), np.uint8)


def unpacked(packed: NDArray[np.uint8]) -> list[Any]:
    """Return a list that was packed into bytes."""
    content: list[Any] = json.loads(packed.tobytes())
    return content


def _hashed(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return 64 well-mixed bits of each value (the finalizer of SplitMix64; Steele, Lea & Flood 2014)."""
    mixed = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _smallest(key_name: str, row_name: str, keys: NDArray[Any], rows: NDArray[Any]) -> Partial:
    order = np.argsort(keys, kind="stable")[:SAMPLE]
    return {key_name: keys[order], row_name: rows[order]}


def _samples(unit: int, result: UnitResult) -> Partial:
    lattices, frames = result.lattices, result.frames
    # the number of a lattice in the unit goes above the row: another hash for each lattice of a frame
    number = np.arange(len(lattices), dtype=np.int64) << 16
    rows = np.column_stack([lattices["cell"], lattices["rmsd"]])
    sample = _smallest("lattice_keys", "lattices", _hashed(place_of(unit, lattices["frame"]) ^ number), rows)
    readable = np.flatnonzero(frames["status"] != FrameStatus.FAILED)
    spots = frames["n_spots"][readable].astype(np.int32)
    return sample | _smallest("frame_keys", "frame_spots", _hashed(place_of(unit, readable)), spots)


def _extremes(unit: int, result: UnitResult) -> Partial:
    """Count indexed frames by the spots explained, with the first frame of each score; choose the strongest of the other hits."""
    lattices, frames = result.lattices, result.frames
    explained = np.zeros(len(frames), dtype=np.int64)
    np.add.at(explained, lattices["frame"], lattices["n_indexed"])
    scores, places = np.zeros(SCORES, np.int64), np.full(SCORES, -1, np.int64)
    for row in np.flatnonzero(frames["status"] >= FrameStatus.INDEXED):
        score = min(int(explained[row]), SCORES - 1)
        scores[score] += 1
        if places[score] < 0:
            places[score] = place_of(unit, row)
    missed = np.flatnonzero(frames["status"] == FrameStatus.HIT)
    strongest = np.column_stack([frames["n_spots"][missed].astype(np.int64), place_of(unit, missed)])
    return {"scores": scores, "score_places": places, "strongest": _strongest(strongest)}


def _strongest(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows[np.lexsort((rows[:, 1], -rows[:, 0]))][:STRONGEST]


def _reasons(unit: int, result: UnitResult) -> Partial:
    frames = result.frames
    counts: Counter[str] = Counter()
    examples: dict[str, list[Any]] = {}
    left_out = []
    for row in np.flatnonzero(frames["status"] < FrameStatus.INTEGRATED):
        reason = str(frames["reason"][row])
        general = general_reason(reason) or NO_REASON
        counts[general] += 1
        text = f"{reason} (source {frames['source'][row]}, frame {frames['index'][row]})"
        examples.setdefault(general, [int(place_of(unit, row)), text])
        if reason.endswith(LEFT_OUT):
            left_out.append([int(place_of(unit, row)), reason])
    rows = [[general, count, *examples[general]] for general, count in counts.items()]
    return {"reasons": _packed(_common(rows)), "left_out": _packed(left_out[:LEFT_OUT_SHOWN])}


def _common(rows: list[list[Any]]) -> list[list[Any]]:
    """Return (reason, count, place, example) a reason, commonest first, with the first example; the rarest together."""
    united: dict[str, list[Any]] = {}
    for general, count, place, text in rows:
        known = united.setdefault(general, [general, 0, place, text])
        known[1] += count
        if place < known[2]:
            known[2:] = place, text
    ordered = sorted(united.values(), key=lambda row: (row[0] == OTHER, -row[1], row[0]))
    if len(ordered) <= REASONS:
        return ordered
    rest = ordered[REASONS:]
    return [*ordered[:REASONS], [OTHER, sum(row[1] for row in rest), min(row[2] for row in rest), ""]]


def _time_bins(milliseconds: NDArray[Any]) -> NDArray[np.int64]:
    bins = np.floor(np.log(np.maximum(milliseconds, SHORTEST) / SHORTEST) / np.log(RATIO)).astype(np.int64)
    clipped: NDArray[np.int64] = np.clip(bins, 0, TIMES - 1)
    return clipped


def median_time(counts: NDArray[np.int64]) -> float:
    """Return the median in ms of counted times (to 1 %); 0: nothing was counted, or no time was taken."""
    total = int(counts.sum())
    if not total:
        return 0.0
    middle = int(np.searchsorted(np.cumsum(counts), (total + 1) // 2))
    return float(SHORTEST * RATIO ** (middle + 0.5)) if middle else 0.0


def _combined_images(first: Partial, second: Partial) -> Partial:
    names = ("image_total", "image_maximum", "image_facts")
    given = [partial for partial in (first, second) if names[0] in partial]
    if not given:
        return {}
    if len(given) == 1 or first[names[0]].shape != second[names[0]].shape:
        return {name: given[0][name] for name in names}  # of another detector: the picture stays that of the first frames
    facts = first["image_facts"].copy()
    facts[0] += second["image_facts"][0]
    total = first["image_total"] + second["image_total"]
    return {names[0]: total, names[1]: np.maximum(first["image_maximum"], second["image_maximum"]), names[2]: facts}

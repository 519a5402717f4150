"""Leaving out lattices, and stretches of a run, for their ΔCC1/2: after scaling has converged, and all others scaled again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.influence import ROUNDS, Cut, low_limit
from xfelproc.io.nodes import Partial
from xfelproc.run.folding import Gathering, read_partial
from xfelproc.stages.fold import MOST_LEAVES, cut_leaves
from xfelproc.stages.merge_cycles import LeafNumbers
from xfelproc.stages.merge_influence import Influences, Parts, StretchInfluences, stretch_parts
from xfelproc.stages.merge_parts import MergeJob

STRETCH_COLUMNS = ("first", "end", "lattices", "delta_cc_half", "left_out")
Setting = str | int | None


@dataclass(frozen=True)
class Judged:
    """How often lattices were judged by ΔCC1/2, and what was found of stretches: arrays by `STRETCH_COLUMNS`, or nothing."""

    rounds: int = 0
    stretches: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def arrays(self) -> Partial:
        """Return it as named arrays; `from_arrays` takes them back, also among others."""
        return {"judged": np.array([self.rounds]), **{f"stretches.{name}": values for name, values in self.stretches.items()}}

    @classmethod
    def from_arrays(cls, arrays: Partial) -> Self:
        """Return what `arrays` came from."""
        names = [name for name in STRETCH_COLUMNS if f"stretches.{name}" in arrays]
        return cls(int(arrays["judged"][0]), {name: arrays[f"stretches.{name}"] for name in names})

    def record(self) -> list[dict[str, Any]]:
        """Return the stretches for ``merge.json``, the most harmful first."""
        if not self.stretches:
            return []
        rows = [dict(zip(STRETCH_COLUMNS, row, strict=True)) for row in zip(*map(_plain, self.stretches.values()), strict=True)]
        return sorted(rows, key=lambda row: (row["delta_cc_half"] is None, row["delta_cc_half"] or 0.0, row["first"]))


def _plain(values: NDArray[Any]) -> list[Any]:
    return [None if value != value else value for value in values.tolist()]


@dataclass(frozen=True)
class Judge:
    """What it needs to judge lattices: the leaves, how they are shared among tasks, units in each run and frames in each unit."""

    gathering: Gathering
    job: MergeJob
    blocks: LeafNumbers
    parts: tuple[int, ...]
    frames: NDArray[np.int64]
    runs: tuple[int, ...]
    stage: str

    def wanted(self, judged: Judged) -> bool:
        """Return whether anything is asked for that is not known yet."""
        settings = self.job.settings
        cuts = settings.delta_cc_half_cut is not None or settings.stretch_cut is not None
        return judged.rounds < ROUNDS and (cuts or settings.stretches is not None)

    def judge(self, path: Path, number: int, judged: Judged) -> tuple[Cut | None, Judged]:
        """Return what is to be left out (None: nothing more) of the state after ``number`` passes, and what is known."""
        settings, limit, takes = self.job.settings, float("-inf"), False
        if settings.delta_cc_half_cut is not None or settings.stretch_cut is not None:
            fold = Influences(self.job, path, number)
            values = read_partial(self.gathering.fold(fold, f"{self.stage}/influence", number, self.blocks, self.parts))["values"]
            limit = low_limit(values, settings.delta_cc_half_cut)
            takes = bool(np.any(values < limit))
        cut, judged = Cut(limit), replace(judged, rounds=judged.rounds + 1)
        if settings.stretches is not None:
            cut, stretches = self._stretches(path, number, limit, judged.stretches)
            judged = replace(judged, stretches=stretches)
        return (cut if takes or cut.stretches else None), judged

    def _stretches(
        self, path: Path, number: int, limit: float, before: Mapping[str, NDArray[Any]]
    ) -> tuple[Cut, Mapping[str, NDArray[Any]]]:
        settings, n_units = self.job.settings, len(self.frames)
        bounds = stretch_bounds(settings.stretches, self.frames, self.runs)
        parts = Parts(self.job, tuple(stretch_parts(bounds, self.blocks.first, n_units)))
        offsets = cut_leaves(np.diff(bounds), max(1, -(-n_units // MOST_LEAVES)))
        fold = StretchInfluences(self.job, path, number)
        found = read_partial(self.gathering.fold(fold, f"{self.stage}/stretches", number, parts, offsets))
        values = found["values"] / np.maximum(found["lattices"], 1)
        pairs = np.stack([bounds[:-1], bounds[1:]], axis=1)
        cut = Cut.of_stretches(limit, pairs, values, settings.stretch_cut)
        gone = np.isin(bounds[:-1], [first for first, _ in cut.stretches])
        if before:  # those left out before have no value any more
            known = np.isfinite(values)
            values = np.where(known, values, before["delta_cc_half"])
            found["lattices"] = np.where(known, found["lattices"], before["lattices"])
            gone |= before["left_out"]
        columns = (pairs[:, 0], pairs[:, 1], found["lattices"], values, gone)
        return cut, dict(zip(STRETCH_COLUMNS, columns, strict=True))


def stretch_bounds(setting: Setting, frames: NDArray[np.int64], runs: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the first units of stretches, and the number of units: whole runs, units, or units of ``setting`` frames together.

    ``frames`` are those of each unit, ``runs`` the units of each run; no stretch goes beyond its run.
    """
    ends = np.cumsum(runs)
    if setting == "run":
        return np.concatenate([[0], ends]).astype(np.int64)
    if not isinstance(setting, int):
        return np.arange(len(frames) + 1)
    bounds = [0]
    for first, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        bounds += [first + b for b in cut_leaves(frames[first:end], setting)[1:]]
    return np.array(bounds, dtype=np.int64)

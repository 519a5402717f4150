"""Merging, from buckets of reflections to the end: the passes of `algorithms.merging.scaling` as folds over the buckets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.lattice_scales import Columns
from xfelproc.algorithms.merging.merge import Final, columns_of
from xfelproc.algorithms.merging.observations import Observations, corrected
from xfelproc.algorithms.merging.sample import Beginning, partialities
from xfelproc.algorithms.merging.scaling import Masks, Phase, ScaleState, add, run_pass
from xfelproc.algorithms.merging.symmetry_notes import Absences
from xfelproc.algorithms.merging.tables import merged_rows, scaled_bucket, unmerged_table
from xfelproc.io.exchange.mtz_pieces import unmerged_rows
from xfelproc.io.nodes import Partial, write_node
from xfelproc.models.tables import ReflectionTable
from xfelproc.stages.merge_parts import ROW, MergeJob

SCALING_COLUMNS = ("lattice", "intensity", "sigma", "d", "excitation", "partiality", "polarization")
"""All that scaling reads of a bucket; the rest is for the unmerged MTZ."""


@dataclass(frozen=True)
class Numbers:
    """Blocks that are their own numbers."""

    def lineage(self, block: int) -> str:
        """Return the number."""
        return str(block)

    def open(self, block: int) -> int:
        """Return the number."""
        return block


@dataclass(frozen=True)
class Pass:
    """One pass over the buckets.

    ``state`` is where the state is, of ``number``; ``groups`` bounds the buckets in the reflections of all.
    """

    job: MergeJob
    begin: Path
    begin_lineage: str
    state: Path
    number: int
    groups: tuple[int, ...]

    @property
    def lineage(self) -> str:
        """Hash of all that the pass depends on: what is merged, and how often it was passed over before."""
        return self.job.hash("pass", self.number)

    def accumulate(self, blocks: Iterable[int]) -> Partial:
        """Return the result of consecutive buckets; masks and rows of the unmerged MTZ are published by bucket."""
        known = self.job.read(self.state, self.job.hash("state", self.number))
        half = known.pop("half")
        state = ScaleState.from_arrays(known)
        beginning = Beginning.from_arrays(self.job.read(self.begin, self.begin_lineage))
        result: Partial | None = None
        for number in blocks:
            one = self._bucket(number, state, beginning, half)
            result = one if result is None else add(result, one)
        if result is None:
            raise ValueError("a pass over no buckets")
        return result

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return the result of both."""
        return add(first, second)

    def _bucket(self, number: int, state: ScaleState, beginning: Beginning, half: NDArray[np.uint8]) -> Partial:
        groups, settings = slice(self.groups[number], self.groups[number + 1]), self.job.settings
        output = state.phase == Phase.OUTPUT
        arrays = self._read(number, (ROW.names or ()) if output else SCALING_COLUMNS)
        columns, observations = _columns(arrays, half, beginning, self.job)
        masks = None if state.phase == Phase.START else self._masks(number, state.round)
        if output and masks is not None:
            return self._output(number, columns, masks, state, groups, observations, arrays)
        result, changed = run_pass(columns, masks, state, groups, beginning, settings)
        if changed is not None:
            round_ = 0 if masks is None else state.round + 1
            content = {"possible": changed.possible, "active": changed.active}
            write_node(self._mask_path(number, round_), self.job.hash("masks", round_, number), content)
        return result

    def _read(self, number: int, names: tuple[str, ...]) -> Partial:
        job = self.job
        more = ("starts", "unique", "isym") if "hkl" in names else ("starts",)
        return job.read(job.bucket(number), job.hash("bucket", number), (*names, *more))

    def _mask_path(self, number: int, round_: int) -> Path:
        return self.job.folder / "masks" / str(round_) / f"{number:05d}.h5"

    def _masks(self, number: int, round_: int) -> Masks:
        arrays = self.job.read(self._mask_path(number, round_), self.job.hash("masks", round_, number))
        return Masks(arrays["possible"], arrays["active"])

    def _output(
        self,
        number: int,
        columns: Columns,
        masks: Masks,
        state: ScaleState,
        groups: slice,
        observations: Observations,
        arrays: Partial,
    ) -> Partial:
        job = self.job
        scaled, sums = scaled_bucket(columns, masks, state, groups, observations, arrays["isym"], arrays["unique"], job.settings)
        rows = unmerged_rows(unmerged_table(scaled))
        write_node(job.unmerged(number), job.hash("unmerged", number), {"rows": rows})
        return merged_rows(scaled, job.group, job.settings) | sums | {"n_unmerged": np.array([len(rows)])}


def _columns(arrays: Partial, half: NDArray[np.uint8], beginning: Beginning, job: MergeJob) -> tuple[Columns, Observations]:
    table = ReflectionTable(None, **{name: arrays[name] for name in ROW.names or () if name in arrays})
    observations = corrected(table, half)
    partiality = partialities(observations, beginning.widths, job.settings)
    return columns_of(observations, partiality, arrays["starts"]), observations


def final_of(arrays: Partial) -> Final:
    """Return final results from `merge_parts.final_arrays`."""

    def members(group: str) -> Partial:
        return {name.partition(".")[2]: values for name, values in arrays.items() if name.startswith(f"{group}.")}

    limits = arrays["limits"].tolist()
    return Final(
        ScaleState.from_arrays(members("state")),
        members("rows"),
        members("sums"),
        arrays["offered"],
        arrays["half"],
        (limits[0], limits[1]) if limits else None,
        Absences(int(arrays["absences"][0]), float(arrays["absences"][1])),
        Beginning.from_arrays(members("beginning")),
    )

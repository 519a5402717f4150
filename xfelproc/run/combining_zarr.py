"""Combined lattices as one Zarr group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.io.consolidate import Consolidated, consolidate
from xfelproc.io.manifest import Manifest
from xfelproc.io.nodes import Partial
from xfelproc.models.frames import UnitResult
from xfelproc.stages.combine_rows import rows_of_units
from xfelproc.stages.fold import Shards


@dataclass(frozen=True)
class _ChosenUnits:
    """The chosen part of each unit that has one, for `io.consolidate`. ``first`` are the bounds of the units in ``rows``."""

    shards: Shards
    rows: Partial
    blocks: NDArray[np.int64]
    first: NDArray[np.int64]
    first_source: Sequence[int]

    def __len__(self) -> int:
        return len(self.blocks)

    def number(self, place: int) -> int:
        return self.shards.place(int(self.blocks[place]))[1]

    def lengths(self, place: int) -> dict[str, int]:
        part = slice(int(self.first[place]), int(self.first[place + 1]))
        n_rows = self.rows["n_rows"][part]
        _, frames = np.unique(self.rows["frame"][part], return_index=True)
        indexed, reflections = n_rows[:, 1:].sum(axis=0).tolist()
        spots = int(n_rows[frames, 0].sum())
        return {"frames": len(frames), "spots": spots, "lattices": len(n_rows), "indexed": indexed, "reflections": reflections}

    def read(self, place: int) -> UnitResult:
        block = int(self.blocks[place])
        rows = self.rows["row"][int(self.first[place]) : int(self.first[place + 1])].astype(np.int64)
        result = rows_of_units(self.shards.open(block).result(), rows)
        source = result.frames["source"] + self.first_source[self.shards.place(block)[0]]
        return replace(result, frames=result.frames.replace(source=source))


def write_zarr(
    manifests: Sequence[Manifest], shards: Shards, rows: Partial, output: Path, attributes: dict[str, Any]
) -> Consolidated:
    """Write the group.

    Parameters
    ----------
    manifests
        Of the runs.
    shards
        Of the runs, in the same order.
    rows
        One row a chosen lattice: block, row, frame, n_rows (n, 3).
    output
        Folder to make.
    attributes
        Of the group.

    Raises
    ------
    ConfigError
        If the output is there already.
    """
    first = np.concatenate([[0], np.cumsum([len(manifest.sources) for manifest in manifests])]).tolist()
    blocks, begins = np.unique(rows["block"], return_index=True)
    units = _ChosenUnits(shards, rows, blocks, np.append(begins, len(rows["block"])), first[:-1])

    def path(number: int) -> str:
        run = int(np.searchsorted(first, number, side="right")) - 1
        return manifests[run].sources.path(number - first[run])

    return consolidate(units, first[-1], path, output, {**attributes, "first_source": first[:-1]})

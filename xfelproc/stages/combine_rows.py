"""Rows of combined lattices: what selection needs to know of each, and the part of a unit's tables that is theirs."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xfelproc.io.nodes import Partial
from xfelproc.models.frames import UnitResult
from xfelproc.stages.combine_select import significant_resolution
from xfelproc.stages.fold import UnitReader

VERSION = 1


@dataclass(frozen=True)
class Survey:
    """One row a lattice: where it is, its cell, how good it is.

    Parameters
    ----------
    reflections
        Which are counted: ``indexed`` or ``integrated``.
    min_i_over_sigma
        Of a significant shell; None: the resolution is not asked for.
    """

    reflections: str
    min_i_over_sigma: float | None

    @property
    def lineage(self) -> str:
        """Hash of what the result depends on beside the shards."""
        return hashlib.sha256(f"survey {VERSION} {self.reflections} {self.min_i_over_sigma}".encode()).hexdigest()

    def accumulate(self, blocks: Iterable[UnitReader]) -> Partial:
        """Return the rows of some units."""
        parts = [self._unit(block.block, block.result()) for block in blocks]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _unit(self, block: int, result: UnitResult) -> Partial:
        lattices, n = result.lattices, len(result.lattices)
        n_indexed = np.bincount(result.indexed["lattice"], minlength=n)
        n_reflections = np.bincount(result.reflections["lattice"], minlength=n)
        n_spots = np.bincount(result.spots["frame"], minlength=len(result.frames))
        resolution = np.full(n, np.inf)
        if self.min_i_over_sigma is not None:
            resolution[:] = _resolutions(result, self.min_i_over_sigma)
        return {
            "block": np.full(n, block, np.int32),
            "row": np.arange(n, dtype=np.int32),
            "frame": lattices["frame"],
            "cell": lattices["cell"],
            "group": np.array([zlib.crc32(str(name).encode()) for name in lattices["space_group"]], np.uint32),
            "rmsd": lattices["rmsd_used"],
            "n_reflections": (n_indexed if self.reflections == "indexed" else n_reflections).astype(np.int32),
            "resolution": resolution,
            "n_rows": np.column_stack([n_spots[lattices["frame"]], n_indexed, n_reflections]).astype(np.int32).reshape(n, 3),
        }


def _resolutions(result: UnitResult, cutoff: float) -> list[float]:
    table, n = result.reflections, len(result.lattices)
    rows = np.argsort(table["lattice"], kind="stable")
    ratio = table["intensity"].astype(np.float64) / np.maximum(table["sigma"], 1e-30)
    ends = np.cumsum(np.bincount(table["lattice"], minlength=n))
    parts = np.split(rows, ends)[:n]
    return [significant_resolution(table["d"][part], ratio[part], cutoff) for part in parts]


def rows_of_units(result: UnitResult, rows: NDArray[np.int64]) -> UnitResult:
    """Return the part of a unit's tables that belongs to some of its lattices: their frames, and all spots of these."""
    frames = np.unique(result.lattices["frame"][rows])
    frame_at, lattice_at = _places(len(result.frames), frames), _places(len(result.lattices), rows)
    spots = np.flatnonzero(np.isin(result.spots["frame"], frames))
    spot_at = _places(len(result.spots), spots)
    lattices = result.lattices.select(rows)
    indexed = result.indexed.select(np.isin(result.indexed["lattice"], rows))
    reflections = result.reflections.select(np.isin(result.reflections["lattice"], rows))
    kept = result.spots.select(spots)
    return replace(
        result,
        frames=result.frames.select(frames),
        spots=kept.replace(frame=frame_at[kept["frame"]]),
        lattices=lattices.replace(frame=frame_at[lattices["frame"]]),
        indexed=indexed.replace(lattice=lattice_at[indexed["lattice"]], spot=spot_at[indexed["spot"]]),
        reflections=reflections.replace(lattice=lattice_at[reflections["lattice"]]),
    )


def _places(n: int, rows: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return where each of ``n`` rows is among those kept; -1: nowhere."""
    at = np.full(n, -1, dtype=np.int32)
    at[rows] = np.arange(len(rows))
    return at

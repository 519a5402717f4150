"""Groups of lattices in merging: the group of each frame, in a file that all workers read, and what it is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DamagedPartError, DataError
from xfelproc.io.columns import ColumnFile, write_columns
from xfelproc.io.nodes import Partial
from xfelproc.stages.fold import UnitReader

NONE = -1
"""Number of the group of frames that are in none."""


@dataclass(frozen=True)
class Wavelengths:
    """An update over shards: the wavelength of each frame (Å), NaN where it has no lattice."""

    job: str

    @property
    def lineage(self) -> str:
        """Hash of what it depends on beside the shards."""
        return hashlib.sha256(f"{self.job} wavelengths".encode()).hexdigest()

    def accumulate(self, blocks: Iterable[UnitReader]) -> Partial:
        """Return those of consecutive shards."""
        tables = [block.frames() for block in blocks]
        parts = [np.where(table["n_lattices"] > 0, table["wavelength"], np.nan) for table in tables]
        return {"wavelength": np.concatenate(parts)}


@dataclass(frozen=True)
class GroupFile:
    """The group of each frame of all shards, in their order; ``lineage`` is that of the merging."""

    path: Path
    lineage: str

    def write(self, group: NDArray[np.int16], offsets: NDArray[np.int64]) -> None:
        """Publish the groups (n_frames,); shard i has the frames ``offsets[i]`` to ``offsets[i + 1]``.

        Raises
        ------
        OutputError
            If they cannot be written.
        """
        write_columns(self.path, self.lineage, {"group": group, "offsets": offsets})

    def read(self) -> FrameGroups:
        """Return them.

        Raises
        ------
        DamagedPartError
            If the file is missing or damaged.
        """
        try:
            file = ColumnFile(self.path, self.lineage)
            return FrameGroups(file.read("group"), file.read("offsets"))
        except DataError as error:
            raise DamagedPartError("the groups of frames cannot be read: run the same command again", self.path) from error


@dataclass(frozen=True)
class FrameGroups:
    """The groups of all frames, and where each shard's begin; see `GroupFile`."""

    group: NDArray[np.int16]
    offsets: NDArray[np.int64]

    def of(self, block: int, rows: NDArray[np.int32], n_frames: int) -> NDArray[np.int16]:
        """Return the groups of the frames on some rows of a shard's table of ``n_frames``.

        Raises
        ------
        DataError
            If the shard has another number of frames than the manifest says.
        """
        first, last = self.offsets[block : block + 2].tolist()
        if last - first != n_frames:
            raise DataError(f"shard {block} has {n_frames} frames, the manifest {last - first}: groups of frames cannot be told")
        found: NDArray[np.int16] = self.group[first:last][rows]
        return found


def binned(values: NDArray[np.float64], edges: Sequence[float]) -> NDArray[np.int16]:
    """Return the bin of each value, the last edge out; `NONE` where it is in no bin, or not finite."""
    place = np.searchsorted(np.asarray(edges), values, side="right") - 1
    inside = np.isfinite(values) & (place >= 0) & (place < len(edges) - 1)
    return np.where(inside, place, NONE).astype(np.int16)

"""The manifest: sources with their fingerprints, frames, and how they are cut into work units."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.io.atomic import write_atomic
from xfelproc.io.store import get_table, opened, to_bytes
from xfelproc.models.frames import FrameRef, WorkUnit
from xfelproc.models.tables import Column, Table

UNITS_A_RUN = 128
SMALLEST_UNIT, LARGEST_UNIT = 8, 500


class SourceTable(Table):
    """One row a source (a file, or a master file)."""

    __slots__ = ()
    SCHEMA = (
        Column("path", "str", "", "absolute path"),
        Column("size", "i8", "byte", "size of the file when the run was planned"),
        Column("mtime", "i8", "ns", "time of its last change"),
        Column("n_frames", "i8", "", "frames in it; 1 where it could not be opened"),
        Column("chunk_frames", "i4", "", "frames that share a storage chunk"),
        Column("error", "str", "", "why it could not be opened; empty if it could"),
    )


@dataclass(frozen=True)
class Manifest:
    """Sources, the frames chosen (source number and index, in run order), and the offsets of the units in them."""

    sources: SourceTable
    frame_source: NDArray[np.int32]
    frame_index: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @property
    def n_frames(self) -> int:
        """Frames to process."""
        return len(self.frame_index)

    @property
    def n_units(self) -> int:
        """Work units."""
        return len(self.offsets) - 1

    def unit(self, index: int) -> WorkUnit:
        """Return work unit ``index``."""
        rows = range(int(self.offsets[index]), int(self.offsets[index + 1]))
        return WorkUnit(index, tuple(FrameRef(int(self.frame_source[i]), int(self.frame_index[i])) for i in rows))

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """Name, size and time of change of each source: what a shard's lineage says of its input."""
        rows = zip(self.sources["path"], self.sources["size"], self.sources["mtime"], strict=True)
        return tuple(f"{Path(path).name} {size} {mtime}" for path, size, mtime in rows)

    @cached_property
    def stamp(self) -> str:
        """Hash of everything in it."""
        content = hashlib.sha256("\n".join((*self.fingerprints, *map(str, self.sources["error"]))).encode())
        for array in (self.frame_source, self.frame_index, self.offsets):
            content.update(np.ascontiguousarray(array).data)
        return content.hexdigest()

    def unit_fingerprint(self, index: int) -> str:
        """Return the input of a unit as text: its frames, and its sources' fingerprints."""
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        sources = self.frame_source[part]
        used = {int(s): self.fingerprints[s] for s in np.unique(sources)}
        return f"{used} {sources.tolist()} {self.frame_index[part].tolist()}"

    def with_frames(self, rows: NDArray[np.int64], unit_size: int) -> Manifest:
        """Return a manifest of some of the frames (rows in run order), cut into plain units of ``unit_size``."""
        offsets = np.append(np.arange(0, len(rows), unit_size), len(rows))
        return Manifest(self.sources, self.frame_source[rows], self.frame_index[rows], offsets.astype(np.int64))


def default_unit_size(n_frames: int) -> int:
    """Return clamp(n / 128, 8, 500): a function of the input alone, never of workers or timing."""
    return max(SMALLEST_UNIT, min(LARGEST_UNIT, n_frames // UNITS_A_RUN))


def cut_units(source: NDArray[np.int32], index: NDArray[np.int64], chunk: NDArray[np.int32], size: int) -> NDArray[np.int64]:
    """Return the offsets of the units: about ``size`` frames each, never splitting a storage chunk.

    ``source`` and ``index`` are the frames in run order; ``chunk`` is the number of frames a chunk, by source.
    """
    n = len(index)
    if n == 0:
        return np.zeros(1, dtype=np.int64)
    block = index // chunk[source]
    starts = np.flatnonzero(np.r_[True, (np.diff(source) != 0) | (np.diff(block) != 0)])
    ends = np.append(starts[1:], n)
    offsets = [0]
    while offsets[-1] < n:
        # the first chunk's end at or beyond the size asked for
        k = int(np.searchsorted(ends, offsets[-1] + size))
        offsets.append(int(ends[min(k, len(ends) - 1)]))
    return np.array(offsets, dtype=np.int64)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Publish the manifest.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {
        "frame_source": manifest.frame_source,
        "frame_index": manifest.frame_index,
        "offsets": manifest.offsets,
    }
    write_atomic(path, to_bytes({"format": 1}, {"sources": manifest.sources}, arrays))


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises
    ------
    DataError
        If it is missing or damaged.
    """
    with opened(path) as file:
        return Manifest(
            sources=get_table(file, "sources", SourceTable),
            frame_source=file["frame_source"][()],
            frame_index=file["frame_index"][()],
            offsets=file["offsets"][()],
        )

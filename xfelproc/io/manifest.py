"""The manifest: sources with their fingerprints, frames, and how they are cut into work units."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.io.atomic import write_atomic
from xfelproc.io.names import FileNames, Texts
from xfelproc.io.store import get_table, opened, to_bytes
from xfelproc.models.frames import FrameRef, WorkUnit
from xfelproc.models.tables import Column, Table

FORMAT = 2
UNITS_A_RUN = 128
SMALLEST_UNIT, LARGEST_UNIT = 8, 500
UNSEEN = -1
"""Size and time of a file that was not looked at when the run was planned."""

State = tuple[int, int]
"""Size (byte) and time of change (ns) of a file."""


class SourceTable(Table):
    """One row a source (a file, or a master file). Its path is kept apart, see `io.names`; why it could not be opened, too."""

    __slots__ = ()
    SCHEMA = (
        Column("size", "i8", "byte", "size of the file when the run was planned; -1: not looked at, a file of one frame"),
        Column("mtime", "i8", "ns", "time of its last change; -1: not looked at"),
        Column("n_frames", "i4", "", "frames in it; 1 where it could not be opened, or was not looked at"),
        Column("chunk_frames", "i4", "", "frames that share a storage chunk"),
    )


def file_state(path: str | Path) -> State:
    """Return size and time of a file; (-2, -2) if it cannot be had."""
    try:
        found = os.stat(path)  # noqa: PTH116  (a million of them)
    except OSError:
        return -2, -2
    return found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class Sources:
    """Names, what was seen of each when the run was planned, and why some could not be opened (by number)."""

    names: FileNames
    table: SourceTable
    errors: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    def path(self, number: int) -> str:
        """Return the path of a source."""
        return self.names.path(number)

    def name(self, number: int) -> str:
        """Return the name of a source, without its folder: what identifies it wherever it lies."""
        return self.names.name(number)

    def select(self, numbers: NDArray[np.int64]) -> Sources:
        """Return some of the sources, numbered anew."""
        errors = {i: self.errors[n] for i, n in enumerate(map(int, numbers)) if n in self.errors}
        return Sources(self.names.select(numbers), self.table.select(numbers), errors)


@dataclass(frozen=True)
class UnitInput:
    """What a unit is made of: its frames (source number in the manifest, index in the source), and those sources alone."""

    index: int
    frame_source: NDArray[np.int32]
    frame_index: NDArray[np.int64]
    numbers: NDArray[np.int64]
    """Numbers in the manifest of ``sources``, ascending."""
    sources: Sources

    @property
    def unit(self) -> WorkUnit:
        """The unit."""
        return WorkUnit(self.index, tuple(map(FrameRef, self.frame_source.tolist(), self.frame_index.tolist())))

    def row(self, number: int) -> int:
        """Return the row in ``sources`` of a source of the manifest."""
        return int(np.searchsorted(self.numbers, number))

    @property
    def unseen(self) -> NDArray[np.int64]:
        """Rows of sources that were not looked at when the run was planned."""
        return np.flatnonzero(self.sources.table["size"] == UNSEEN)

    @property
    def fingerprint(self) -> str:
        """Hash of its frames, and of name, size and time of each source: what a shard's lineage says of its input."""
        content = hashlib.sha256()
        table = self.sources.table
        for array in (self.frame_source, self.frame_index, self.numbers, table["size"], table["mtime"]):
            content.update(np.ascontiguousarray(array).data)
        content.update(b"\0".join(self.sources.names.bare(row) for row in range(len(self.numbers))))
        if self.sources.errors:  # one that can be opened now may not have changed
            content.update(f"cannot be opened: {sorted(self.sources.errors)}".encode())
        return content.hexdigest()


@dataclass(frozen=True)
class Manifest:
    """Sources, the frames chosen (source number and index, in run order), and the offsets of the units in them."""

    sources: Sources
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
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return WorkUnit(index, tuple(map(FrameRef, self.frame_source[part].tolist(), self.frame_index[part].tolist())))

    def unit_input(self, index: int) -> UnitInput:
        """Return what a unit is made of."""
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        numbers = np.unique(self.frame_source[part]).astype(np.int64)
        return UnitInput(index, self.frame_source[part], self.frame_index[part], numbers, self.sources.select(numbers))

    @cached_property
    def stamp(self) -> str:
        """Hash of everything in it but the folders of the sources."""
        names, table = self.sources.names, self.sources.table
        content = hashlib.sha256("\n".join(f"{n} {error}" for n, error in sorted(self.sources.errors.items())).encode())
        texts = [array for texts in (names.beginnings, names.endings, names.middles) for array in (texts.ends, texts.text)]
        columns = [table[column.name] for column in table.SCHEMA]
        for array in (*texts, names.template, names.template_folder, *columns, self.frame_source, self.frame_index, self.offsets):
            content.update(f"{len(array)} ".encode())
            content.update(np.ascontiguousarray(array).data)
        return content.hexdigest()

    def unit_fingerprint(self, index: int) -> str:
        """Return the hash of the input of a unit: its frames, and name, size and time of their sources."""
        return self.unit_input(index).fingerprint

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


_TEXTS = ("folders", "beginnings", "endings", "middles")


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Publish the manifest.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    names, errors = manifest.sources.names, manifest.sources.errors
    arrays: dict[str, NDArray[Any]] = {
        "frame_source": manifest.frame_source,
        "frame_index": manifest.frame_index,
        "offsets": manifest.offsets,
        "names/template": names.template,
        "names/template_folder": names.template_folder,
        "errors/source": np.array(sorted(errors), dtype=np.int64),
    }
    texts = {f"names/{name}": getattr(names, name) for name in _TEXTS}
    texts["errors/reason"] = Texts.of(errors[number].encode() for number in sorted(errors))
    for name, text in texts.items():
        arrays |= {f"{name}_ends": text.ends, f"{name}_text": text.text}
    write_atomic(path, to_bytes({"format": FORMAT}, {"sources": manifest.sources.table}, arrays))


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises
    ------
    DataError
        If it is missing or damaged.
    """
    with opened(path) as file:
        texts = {name: _texts(file, f"names/{name}") for name in _TEXTS}
        names = FileNames(template=file["names/template"][()], template_folder=file["names/template_folder"][()], **texts)
        reasons = _texts(file, "errors/reason")
        errors = {int(number): reasons[i].decode() for i, number in enumerate(file["errors/source"][()])}
        return Manifest(
            sources=Sources(names, get_table(file, "sources", SourceTable), errors),
            frame_source=file["frame_source"][()],
            frame_index=file["frame_index"][()],
            offsets=file["offsets"][()],
        )


def _texts(file: Any, name: str) -> Texts:
    return Texts(file[f"{name}_ends"][()], file[f"{name}_text"][()])

"""All shards of a run as one Zarr v3 group: a group a table, an array a column, rows numbered through the run.

Read it with zarr or dask alone. Shards are streamed in unit order; what is held in memory is one chunk of each column.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from xfelproc.errors import ConfigError
from xfelproc.io.atomic import make_folder, output_error, sync_folder
from xfelproc.io.shards import TABLES, read_lengths, read_shard
from xfelproc.models.frames import UnitResult
from xfelproc.models.tables import Column, Table

VERSION = 1
ROWS_A_CHUNK = 1_000_000
LINKS = {
    ("spots", "frame"): "frames",
    ("lattices", "frame"): "frames",
    ("indexed", "lattice"): "lattices",
    ("indexed", "spot"): "spots",
    ("reflections", "lattice"): "lattices",
}
"""Columns that hold row numbers of another table: in a shard of the unit's, here of the run's."""
UNIT_COLUMN = Column("unit", "i4", "", "work unit: the number of the shard it was in")
SOURCE_COLUMNS = (Column("path", "str", "", "absolute path of the file when the run was planned"),)


@dataclass(frozen=True)
class Consolidated:
    """What was written: rows by table."""

    path: Path
    rows: dict[str, int]


class Units(Protocol):
    """What is put together, unit by unit."""

    def __len__(self) -> int:
        """Return how many there are."""

    def number(self, place: int) -> int:
        """Return the number of the shard."""

    def lengths(self, place: int) -> dict[str, int]:
        """Return the rows of each table."""

    def read(self, place: int) -> UnitResult:
        """Return the tables."""


@dataclass(frozen=True)
class WholeShards:
    """All of some shards."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def number(self, place: int) -> int:
        """Return the number of the shard."""
        return place

    def lengths(self, place: int) -> dict[str, int]:
        """Return the rows of each table."""
        return read_lengths(self.paths[place])

    def read(self, place: int) -> UnitResult:
        """Return the tables."""
        return read_shard(self.paths[place])


def consolidate(
    units: Units,
    n_sources: int,
    source_path: Callable[[int], str],
    output: Path,
    attributes: Mapping[str, Any],
    rows_a_chunk: int = ROWS_A_CHUNK,
    progress: Callable[[int], None] = lambda done: None,
) -> Consolidated:
    """Write the group; it appears under its name when it is complete.

    Parameters
    ----------
    units
        What to put together, in order.
    n_sources, source_path
        Number of sources of the run, and the path of each.
    output
        Folder to make.
    attributes
        Of the group: plain values.
    rows_a_chunk
        Rows of each column in a chunk.
    progress
        Called with the number of units read so far.

    Raises
    ------
    ConfigError
        If the output is there already.
    DataError
        If a shard is missing or damaged.
    OutputError
        If the disk is full or read-only.
    """
    if output.exists():
        raise ConfigError(f"{output} exists already: remove it, or choose another name")
    make_folder(output.absolute().parent)
    temporary = output.with_name(f".tmp-{socket.gethostname()}-{os.getpid()}-{output.name}")
    threads, blosc.use_threads = blosc.use_threads, False  # with threads the order of blocks in a chunk depends on timing
    try:
        rows = _write(units, n_sources, source_path, temporary, attributes, rows_a_chunk, progress)
        _sync(temporary)
        temporary.rename(output)
        sync_folder(output.absolute().parent)
    except OSError as error:
        raise output_error(error, output) from error
    finally:
        blosc.use_threads = threads
        shutil.rmtree(temporary, ignore_errors=True)
    return Consolidated(output, rows)


def _write(
    units: Units,
    n_sources: int,
    source_path: Callable[[int], str],
    folder: Path,
    attributes: Mapping[str, Any],
    rows_a_chunk: int,
    progress: Callable[[int], None],
) -> dict[str, int]:
    lengths = [units.lengths(place) for place in range(len(units))]
    rows = {name: sum(length[name] for length in lengths) for name in TABLES} | {"sources": n_sources}
    group = zarr.create_group(folder, zarr_format=3, attributes={"format": "xfelproc", "format_version": VERSION, **attributes})
    writers = {name: _TableWriter(group, name, columns_of(name), rows[name], rows_a_chunk) for name in rows}
    first = dict.fromkeys(TABLES, 0)
    for place in range(len(units)):
        result = units.read(place)
        for name in TABLES:
            writers[name].add(_global(name, result, units.number(place), first))
        for name in TABLES:
            first[name] += len(getattr(result, name))
        progress(place + 1)
    for part in _parts(n_sources, rows_a_chunk):
        writers["sources"].add({"path": np.array([source_path(number) for number in part], dtype=object)})
    for writer in writers.values():
        writer.finish()
    return rows


def _parts(n: int, size: int) -> Iterator[range]:
    for begin, end in pairwise([*range(0, n, size), n]):
        yield range(begin, end)


def columns_of(name: str) -> tuple[Column, ...]:
    """Return the columns of a table of the group; numbers of rows are 64-bit."""
    if name == "sources":
        return SOURCE_COLUMNS
    columns = []
    for column in TABLES[name].SCHEMA:
        target = LINKS.get((name, column.name))
        link = None if target is None else Column(column.name, "i8", "", f"row of the table {target}")
        columns.append(link or column)
    return (*columns, UNIT_COLUMN) if name == "frames" else tuple(columns)


def _global(name: str, result: UnitResult, unit: int, first: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Return a unit's columns with the row numbers of the run; ``first`` is the unit's first row of each table."""
    table: Table = getattr(result, name)
    columns = {column.name: table[column.name] for column in table.SCHEMA}
    for (owner, column), target in LINKS.items():
        if owner == name:
            columns[column] = columns[column].astype(np.int64) + first[target]
    if name == "frames":
        columns["unit"] = np.full(len(table), unit, dtype=np.int32)
    return columns


class _TableWriter:
    """Fills one chunk of each column and writes it when it is full."""

    def __init__(self, group: Any, name: str, columns: Sequence[Column], n_rows: int, rows_a_chunk: int) -> None:
        self._size = max(1, min(n_rows, rows_a_chunk))
        self._written = self._filled = 0
        parent = group.create_group(name, attributes={"rows": n_rows})
        self._arrays = {c.name: _create(parent, name, c, n_rows, self._size) for c in columns}
        self._buffers = {c.name: np.empty((self._size, *c.shape), dtype=object if c.dtype == "str" else c.dtype) for c in columns}

    def add(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Append rows."""
        n, taken = len(next(iter(columns.values()))), 0
        while taken < n:
            count = min(n - taken, self._size - self._filled)
            for name, values in columns.items():
                self._buffers[name][self._filled : self._filled + count] = values[taken : taken + count]
            self._filled, taken = self._filled + count, taken + count
            if self._filled == self._size:
                self._flush()

    def finish(self) -> None:
        """Write what is left."""
        if self._filled:
            self._flush()

    def _flush(self) -> None:
        part = slice(self._written, self._written + self._filled)
        for name, array in self._arrays.items():
            array[part] = self._buffers[name][: self._filled]
        self._written, self._filled = part.stop, 0


def _create(parent: Any, table: str, column: Column, n_rows: int, chunk: int) -> Any:
    attributes = {"doc": column.doc}
    if column.unit:
        attributes["unit"] = column.unit
    if target := LINKS.get((table, column.name)):
        attributes["row_of"] = target
    options: dict[str, Any] = {}
    if column.dtype != "str":
        options["compressors"] = BloscCodec(cname="zstd", clevel=5, shuffle="shuffle", typesize=np.dtype(column.dtype).itemsize)
    return parent.create_array(
        column.name,
        shape=(n_rows, *column.shape),
        dtype=str if column.dtype == "str" else np.dtype(column.dtype),
        chunks=(chunk, *column.shape),
        dimension_names=(table, *(f"{column.name}_{k}" for k in range(len(column.shape)))),
        attributes=attributes,
        **options,
    )


def _sync(folder: Path) -> None:
    """Make the files durable before the folder gets its name."""
    for root, _, files in os.walk(folder):
        for name in files:
            descriptor = os.open(Path(root) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(root))

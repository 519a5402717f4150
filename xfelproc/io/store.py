"""Tables in HDF5, one dataset a column, as their schema declares."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")  # shared file systems refuse locks; files appear by rename

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.atomic import discard, output_error
from xfelproc.models.tables import Column, Table

COMPRESS_ABOVE = 8192
"""Bytes from which a column is compressed; below it the chunk's overhead is more than the gain."""

ROWS_A_CHUNK = 8192
"""Of tables that are written piece by piece."""

T = TypeVar("T", bound=Table)


def put(group: Any, name: str, values: NDArray[Any], **attributes: str) -> None:
    """Write one array, bit-shuffled and lz4-compressed if it is large, with text attributes."""
    options: dict[str, Any] = {}
    if values.nbytes >= COMPRESS_ABOVE:
        chunk = (min(len(values), max(1, (1 << 20) // max(1, values.nbytes // len(values)))), *values.shape[1:])
        options = {"chunks": chunk, "compression": hdf5plugin.Bitshuffle(cname="lz4")}
    dataset = group.create_dataset(name, data=values, **options)
    for key, value in attributes.items():
        dataset.attrs[key] = value


def _encode(column: Column, values: NDArray[Any]) -> NDArray[Any]:
    if column.dtype != "str":
        return values
    encoded = [str(v).encode() for v in values.ravel()]
    width = max([1, *map(len, encoded)])
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", width)).reshape(values.shape)


def _decode(column: Column, values: NDArray[Any]) -> NDArray[Any]:
    if column.dtype != "str":
        return values
    return np.array([v.decode() for v in values.ravel()], dtype=object).reshape(values.shape)


def put_table(parent: Any, name: str, table: Table) -> None:
    """Write a table as a group; each column carries its unit."""
    group = parent.create_group(name)
    for column in table.SCHEMA:
        attributes = {"unit": column.unit} if column.unit else {}
        put(group, column.name, _encode(column, table[column.name]), **attributes)


def get_table(parent: Any, name: str, kind: type[T], columns: tuple[str, ...] | None = None) -> T:
    """Read a table, or some of its columns (the others are zeros)."""
    group = parent[name]
    wanted = [c for c in kind.SCHEMA if columns is None or c.name in columns]
    values = {c.name: _decode(c, group[c.name][()]) for c in wanted}
    return kind(None, **values)


def to_bytes(
    attributes: Mapping[str, Any], tables: Mapping[str, Table], arrays: Mapping[str, NDArray[Any]], plain: bool = False
) -> bytes:
    """Return an HDF5 file's image, made in memory: the disk sees one plain write, whose failure is an ordinary OSError.

    ``plain`` leaves the arrays in one piece each, not compressed: for those that are read by small parts.
    """
    with h5py.File("image", "w", driver="core", backing_store=False, libver="latest") as file:
        for key, value in attributes.items():
            file.attrs[key] = value
        for name, table in tables.items():
            put_table(file, name, table)
        for name, array in arrays.items():
            if plain:
                file.create_dataset(name, data=array)
            else:
                put(file, name, array)
        file.flush()
        return bytes(file.id.get_file_image())


def write_growing(path: Path, name: str, kind: type[T], tables: Iterable[T]) -> None:
    """Publish the rows of tables, one after the other, as one table ``name`` in a file: only one of them is in memory at a time.

    Text columns are not for this: they have no width before all rows are known.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    temporary = path.with_name(f".tmp-{socket.gethostname()}-{os.getpid()}-{path.name}")
    try:
        with h5py.File(temporary, "w", libver="latest", locking=False) as file:
            group = file.create_group(name)
            for column in kind.SCHEMA:
                options = {"chunks": (ROWS_A_CHUNK, *column.shape), "compression": hdf5plugin.Bitshuffle(cname="lz4")}
                shape, most = (0, *column.shape), (None, *column.shape)
                dataset = group.create_dataset(column.name, shape, column.dtype, maxshape=most, **options)
                if column.unit:
                    dataset.attrs["unit"] = column.unit
            n = 0
            for table in tables:
                for column in kind.SCHEMA:
                    group[column.name].resize(n + len(table), axis=0)
                    group[column.name][n:] = table[column.name]
                n += len(table)
        temporary.replace(path)
    except OSError as error:
        discard(temporary)
        raise output_error(error, path) from error


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open an HDF5 file of ours for reading.

    Raises
    ------
    DataError
        If it is missing, truncated or damaged, on opening or while it is read.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        raise DataError(f"cannot be read ({error}): it is truncated or damaged", path) from error

"""Rows sorted into consecutive slices, one file a writer: each slice is read by itself, with a checksum of its own."""

from __future__ import annotations

import itertools
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.atomic import make_folder, write_atomic
from xfelproc.io.store import opened, to_bytes

Rows = NDArray[Any]


def write_slices(path: Path, lineage: str, rows: Rows, bounds: NDArray[np.int64]) -> None:
    """Publish rows (a structured array) and the ``bounds`` (n + 1,) of n slices of them.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    make_folder(path.parent)
    checksums = np.array([_checksum(rows[a:b]) for a, b in itertools.pairwise(bounds)], dtype=np.uint32)
    arrays = {"rows": rows, "bounds": np.asarray(bounds), "crc32": checksums}
    write_atomic(path, to_bytes({"lineage": lineage}, {}, arrays, plain=True))


def read_slice(path: Path, lineage: str, number: int) -> Rows:
    """Return the rows of a slice.

    Raises
    ------
    DataError
        If the file is missing, damaged, or of another lineage.
    """
    with opened(path) as file:
        first, last = (int(v) for v in file["bounds"][number : number + 2])
        rows = np.asarray(file["rows"][first:last])
        expected, found = int(file["crc32"][number]), str(file.attrs["lineage"])
    if found != lineage or _checksum(rows) != expected:
        raise DataError("is damaged, or of another run: remove this file's folder and run the same command again", path)
    return rows


def _checksum(rows: Rows) -> int:
    return zlib.crc32(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)

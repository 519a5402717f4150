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


def write_slices(path: Path, lineage: str, rows: Rows, bounds: NDArray[np.int64], durable: bool = True) -> None:
    """Publish rows (n, ...) and the ``bounds`` (n + 1,) of n slices of them.

    What is not ``durable`` is not synced to the disk: for what is made anew after a crash of the machine.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    make_folder(path.parent)
    checksums = np.array([_checksum(rows[a:b]) for a, b in itertools.pairwise(bounds)], dtype=np.uint32)
    arrays = {"rows": rows, "bounds": np.asarray(bounds), "crc32": checksums}
    write_atomic(path, to_bytes({"lineage": lineage}, {}, arrays, plain=True), durable)


def read_slice(path: Path, lineage: str, number: int) -> Rows:
    """Return the rows of a slice; see `SliceReader`."""
    return SliceReader(path, lineage).read(number)


class SliceReader:
    """Reads slices of a file, which stays closed between them: there may be thousands.

    Raises
    ------
    DataError
        If the file is missing, damaged, or of another lineage.
    """

    def __init__(self, path: Path, lineage: str) -> None:
        self.path = path
        with opened(path) as file:
            rows = file["rows"]
            self._bounds, self._checksums = np.asarray(file["bounds"][()]), np.asarray(file["crc32"][()])
            self._dtype, self._shape, self._place = rows.dtype, rows.shape[1:], rows.id.get_offset()
            found = str(file.attrs["lineage"])
        if found != lineage:
            raise self._damaged()

    @property
    def n_slices(self) -> int:
        """Number of slices."""
        return len(self._checksums)

    def read(self, number: int) -> Rows:
        """Return the rows of a slice.

        Raises
        ------
        DataError
            If they are missing or damaged.
        """
        first, last = (int(v) for v in self._bounds[number : number + 2])
        if first == last:
            return np.zeros((0, *self._shape), dtype=self._dtype)
        size = self._dtype.itemsize * int(np.prod(self._shape))
        try:
            with self.path.open("rb", buffering=0) as stream:
                stream.seek(self._place + first * size)
                content = stream.read((last - first) * size)
        except OSError as error:
            raise self._damaged() from error
        if len(content) != (last - first) * size:
            raise self._damaged()
        rows = np.frombuffer(content, dtype=self._dtype).reshape(-1, *self._shape)
        if _checksum(rows) != self._checksums[number]:
            raise self._damaged()
        return rows

    def _damaged(self) -> DataError:
        return DataError("is damaged, or of another run: remove this file's folder and run the same command again", self.path)


def _checksum(rows: Rows) -> int:
    return zlib.crc32(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)

"""Plain files of named arrays, for what is large and read again and again: one line of JSON, then the arrays as they are in memory.

They are written without a copy and read by memory map; each array has a checksum. Like all files of ours they are complete or not
there. They are not synced to the disk: what a crash of the machine damages is seen, and made anew.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.atomic import make_folder, write_pieces

FORMAT = 1
ALIGNMENT = 64
Arrays = Mapping[str, NDArray[Any]]


def write_columns(path: Path, lineage: str, arrays: Arrays) -> None:
    """Publish named arrays.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    make_folder(path.parent)
    plain = {name: np.asarray(values, order="C") for name, values in arrays.items()}
    described = [[name, values.dtype.str, values.shape, _checksum(values)] for name, values in plain.items()]
    line = json.dumps({"format": FORMAT, "lineage": lineage, "arrays": described}).encode()
    front = line + b" " * (-(len(line) + 1) % ALIGNMENT) + b"\n"
    write_pieces(path, _pieces(front, plain.values()), durable=False)


def _pieces(front: bytes, arrays: Any) -> Iterator[bytes]:
    yield front
    for values in arrays:
        yield _bytes(values)
        yield bytes(-values.nbytes % ALIGNMENT)


class ColumnFile:
    """A file of named arrays, mapped: nothing of it is read before it is asked for.

    Raises
    ------
    DataError
        If the file is missing, damaged, or of another lineage.
    """

    def __init__(self, path: Path, lineage: str) -> None:
        self.path = path
        self._places: dict[str, tuple[int, np.dtype[Any], list[int], int]] = {}
        try:
            with path.open("rb") as stream:
                content = json.loads(stream.readline())
                place = stream.tell()
            self._data = np.memmap(path, dtype=np.uint8, mode="r")
            self._lineage = content["lineage"] if content["format"] == FORMAT else ""
            for name, kind, shape, checksum in content["arrays"]:
                dtype = np.dtype(kind)
                self._places[name] = place, dtype, shape, checksum
                size = _size(dtype, shape)
                place += size + -size % ALIGNMENT
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"cannot be read ({error}): it is missing, truncated or damaged", path) from error
        if self._lineage != lineage:
            raise DataError("is of another run: remove it and run the same command again", path)

    def read(self, name: str) -> NDArray[Any]:
        """Return an array, not to be written to.

        Raises
        ------
        DataError
            If it is not there, or damaged.
        """
        if name not in self._places:
            raise DataError(f"has no array {name!r}: remove it and run the same command again", self.path)
        place, dtype, shape, checksum = self._places[name]
        size = _size(dtype, shape)
        piece = np.asarray(self._data[place : place + size])
        if len(piece) != size or zlib.crc32(piece.data) != checksum:
            raise DataError(f"array {name!r} does not match its checksum: remove it and run the same command again", self.path)
        return piece.view(dtype).reshape(shape)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(self._places)


def read_columns(path: Path, lineage: str, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file, or some of them; see `ColumnFile`."""
    file = ColumnFile(path, lineage)
    return {name: file.read(name) for name in (file.names if names is None else names)}


def _size(dtype: np.dtype[Any], shape: Sequence[int]) -> int:
    return dtype.itemsize * int(np.prod(shape, dtype=np.int64))


def _bytes(values: NDArray[Any]) -> Any:
    return values.reshape(-1).view(np.uint8).data


def _checksum(values: NDArray[Any]) -> int:
    return zlib.crc32(_bytes(values))

"""Nodes: one HDF5 file a partial result of a fold, with its lineage and a checksum; like a shard, complete or not there."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.atomic import make_folder, write_atomic
from xfelproc.io.store import opened, to_bytes

FORMAT = 1

Partial = dict[str, NDArray[Any]]
"""Named arrays of a size that the model sets (unique reflections, panels, bins), not the frames."""


def node_path(folder: Path, level: int, node: int) -> Path:
    """Return where a node is; level 0 are the leaves."""
    return folder / f"{level}-{node:04d}.h5"


def _checksum(values: NDArray[Any]) -> int:
    values = np.ascontiguousarray(values)
    crc = zlib.crc32(f"{values.dtype.str} {values.shape}".encode())
    return zlib.crc32(values.reshape(-1).view(np.uint8).data, crc)


def write_node(path: Path, lineage: str, partial: Mapping[str, NDArray[Any]]) -> None:
    """Publish a partial result.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    make_folder(path.parent)
    arrays = {name: np.asarray(values) for name, values in partial.items()}
    checksums = json.dumps({name: _checksum(values) for name, values in arrays.items()})
    attributes = {"format": FORMAT, "lineage": lineage, "crc32": checksums}
    write_atomic(path, to_bytes(attributes, {}, arrays))


def read_node(path: Path, names: Sequence[str] | None = None) -> tuple[str, Partial]:
    """Return the lineage and the arrays of a node, or some of them.

    Raises
    ------
    DataError
        If it is missing or damaged.
    """
    with opened(path) as file:
        partial = {name: np.asarray(file[name][()]) for name in (file if names is None else names)}
        lineage, checksums = str(file.attrs["lineage"]), json.loads(file.attrs["crc32"])
    if any(_checksum(values) != checksums[name] for name, values in partial.items()):
        raise DataError("the arrays do not match their checksums: remove this file and run the same command again", path)
    return lineage, partial


def find_node(path: Path, lineage: str) -> Partial | None:
    """Return the arrays of a node if it is there, whole, and of this lineage."""
    if not path.exists():
        return None
    try:
        found, partial = read_node(path)
    except DataError:
        return None
    return partial if found == lineage else None

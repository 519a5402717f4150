"""Shards: one HDF5 file a work unit, complete from the moment it exists. They alone say what is done."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.atomic import write_pieces
from xfelproc.io.store import get_table, opened, to_bytes
from xfelproc.models.frames import Control, UnitResult
from xfelproc.models.tables import FrameTable, IndexedTable, LatticeTable, ReflectionTable, SpotTable, Table

FORMAT = 2
FRONT = 1024
"""Bytes before the HDF5 part, a size that HDF5 allows for what is not its own."""
FILES_A_FOLDER = 1000

TABLES: dict[str, type[Table]] = {
    "frames": FrameTable,
    "spots": SpotTable,
    "lattices": LatticeTable,
    "indexed": IndexedTable,
    "reflections": ReflectionTable,
}

_COLUMNS = [(name, [(c.name, c.dtype, c.unit, c.shape) for c in kind.SCHEMA]) for name, kind in TABLES.items()]
SCHEMA = f"{zlib.crc32(repr(_COLUMNS).encode()):08x}"
"""Of the columns, their types and units: a shard with others is not done."""


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says of itself: unit, lineage, the CPU instruction set it was made on, and counts."""

    unit: int
    lineage: str
    instructions: str
    counts: dict[str, int]
    seconds: float
    path: Path = field(compare=False)
    planned: str = ""
    """The lineage as far as it was known when the run was planned: without size and time of files that were seen on reading."""


@dataclass(frozen=True)
class UnitImages:
    """Pixels of some frames of a unit added up (virtual powder) and their maximum, binned; (panel, slow, fast)."""

    total: NDArray[np.float32]
    maximum: NDArray[np.float32]
    n_frames: int
    binning: int


def shard_path(run: Path, stage: str, unit: int) -> Path:
    """Return where a unit's shard is: at most a thousand to a folder."""
    folder = run / "shards" / stage
    thousand = unit // FILES_A_FOLDER
    return (folder if thousand == 0 else folder / f"{thousand:03d}k") / f"{unit:06d}.h5"


def _checksum(result: UnitResult) -> int:
    """CRC-32 over the tables' bytes: a shard damaged in the middle opens, but does not pass."""
    crc = 0
    for name in TABLES:
        table: Table = getattr(result, name)
        for column in table.SCHEMA:
            values = table[column.name]
            content = "\0".join(map(str, values.ravel())).encode() if column.dtype == "str" else np.ascontiguousarray(values).data
            crc = zlib.crc32(content, crc)
    return crc


def write_shard(
    path: Path,
    header: ShardHeader,
    result: UnitResult,
    images: UnitImages | None = None,
    files: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
) -> None:
    """Publish a unit's result.

    ``files`` are numbers of sources (n,) and their size and time (n, 2) as they were read, where the manifest does not have them.

    The header stands twice: in the attributes of the HDF5 file, and before it, as a line of JSON that is read without HDF5.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    attributes: dict[str, Any] = {
        "format": FORMAT,
        "schema": SCHEMA,
        "unit": header.unit,
        "lineage": header.lineage,
        "instructions": header.instructions,
        "counts": json.dumps(header.counts),
        "seconds": header.seconds,
        "crc32": _checksum(result),
        "planned": header.planned,
    }
    arrays: dict[str, NDArray[Any]] = {}
    if images is not None:
        attributes |= {"image_frames": images.n_frames, "image_binning": images.binning}
        arrays = {"image_total": images.total, "image_maximum": images.maximum}
    if files is not None and len(files[0]):
        arrays |= {"file_source": files[0], "file_size": files[1][:, 0], "file_mtime": files[1][:, 1]}
    if result.control is not None and len(result.control):
        arrays |= {f"control_{column.name}": getattr(result.control, column.name) for column in fields(Control)}
    image = to_bytes(attributes, {name: getattr(result, name) for name in TABLES}, arrays)
    write_pieces(path, (_front(attributes, len(image)), image))


def _front(attributes: dict[str, Any], size: int) -> bytes:
    """Return the user block of a shard: its header as a line of JSON, and the size of what follows."""
    line = json.dumps({**attributes, "counts": json.loads(attributes["counts"]), "bytes": size}).encode()
    return line.ljust(FRONT - 1) + b"\n"


class ShardFault(Enum):
    """Why a shard does not count as done."""

    MISSING = "missing"
    OTHER_FORMAT = "of another format"
    DAMAGED = "truncated or damaged"


def inspect_shard(path: Path) -> ShardHeader | ShardFault:
    """Return what a shard says of itself, or why it does not count. Reads its first line alone."""
    try:
        with path.open("rb", buffering=0) as file:
            front, size = file.read(FRONT), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return ShardFault.MISSING
    except OSError:
        return ShardFault.DAMAGED
    if front.startswith(b"\x89HDF"):
        return ShardFault.OTHER_FORMAT  # of before there was a line in front
    try:
        content = json.loads(front)
        if (content["format"], content["schema"]) != (FORMAT, SCHEMA):
            return ShardFault.OTHER_FORMAT
        if content["bytes"] + FRONT != size:
            return ShardFault.DAMAGED
        return ShardHeader(
            unit=int(content["unit"]),
            lineage=str(content["lineage"]),
            instructions=str(content["instructions"]),
            counts={str(name): int(count) for name, count in content["counts"].items()},
            seconds=float(content["seconds"]),
            path=path,
            planned=str(content["planned"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return ShardFault.DAMAGED


def read_header(path: Path) -> ShardHeader | None:
    """Return what a shard says of itself; None if it is not there, truncated or damaged, and so not done."""
    found = inspect_shard(path)
    return found if isinstance(found, ShardHeader) else None


def published_units(run: Path, stage: str) -> NDArray[np.int64]:
    """Return the units of a stage that have a shard, ascending: one listing of each folder, no shard is opened."""
    found: list[int] = []
    folders = [run / "shards" / stage]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.name.endswith(".h5") and entry.name[:-3].isdecimal():
                        found.append(int(entry.name[:-3]))
                    elif entry.is_dir():
                        folders.append(Path(entry.path))
        except FileNotFoundError:
            continue
    return np.array(sorted(found), dtype=np.int64)


def read_shard(path: Path) -> UnitResult:
    """Return a unit's tables.

    Raises
    ------
    DataError
        If the shard is missing or damaged.
    """
    with opened(path) as file:
        result = UnitResult(
            frames=get_table(file, "frames", FrameTable),
            spots=get_table(file, "spots", SpotTable),
            lattices=get_table(file, "lattices", LatticeTable),
            indexed=get_table(file, "indexed", IndexedTable),
            reflections=get_table(file, "reflections", ReflectionTable),
        )
        expected = int(file.attrs["crc32"])
    if _checksum(result) != expected:
        raise DataError("the tables do not match their checksum: remove this shard and run the same command again", path)
    return result


def read_lengths(path: Path) -> dict[str, int]:
    """Return the number of rows of each of a unit's tables.

    Raises
    ------
    DataError
        If the shard is missing or damaged.
    """
    with opened(path) as file:
        return {name: len(file[name][kind.SCHEMA[0].name]) for name, kind in TABLES.items()}


def read_frames(path: Path) -> FrameTable:
    """Return a unit's FrameTable alone."""
    with opened(path) as file:
        return get_table(file, "frames", FrameTable)


def read_lattices(path: Path) -> LatticeTable:
    """Return a unit's LatticeTable alone."""
    with opened(path) as file:
        return get_table(file, "lattices", LatticeTable)


def read_images(path: Path) -> UnitImages | None:
    """Return a unit's added-up pixels, if it has some."""
    with opened(path) as file:
        if "image_total" not in file:
            return None
        return UnitImages(
            total=file["image_total"][()],
            maximum=file["image_maximum"][()],
            n_frames=int(file.attrs["image_frames"]),
            binning=int(file.attrs["image_binning"]),
        )


def read_control(path: Path) -> Control | None:
    """Return what was integrated between the reflections of a unit's lattices, if anything was."""
    with opened(path) as file:
        if "control_lattice" not in file:
            return None
        return Control(**{column.name: file[f"control_{column.name}"][()] for column in fields(Control)})

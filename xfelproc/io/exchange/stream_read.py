"""CrystFEL streams, versions 2.1 to 2.3: reading."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.models.conventions import FLIP_XZ

Floats = NDArray[np.float64]

_DECODERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}


@dataclass
class ReadCrystal:
    """A crystal as read: A (columns a*, b*, c*, 1/Å, our frame), cell (Å, degrees), other ``name = value`` lines, reflections."""

    a_matrix: Floats = field(default_factory=lambda: np.zeros((3, 3)))
    cell: tuple[float, ...] = ()
    entries: dict[str, str] = field(default_factory=dict)
    hkl: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int32))
    values: Floats = field(default_factory=lambda: np.zeros((0, 6)))
    """(n, 6): I, sigma(I), peak, background, fs, ss."""
    panels: tuple[str, ...] = ()


@dataclass
class ReadChunk:
    """A chunk as read: its ``name = value`` and ``name: value`` lines, peaks (n, 4: fs, ss, 1/d in 1/nm, intensity), crystals."""

    entries: dict[str, str] = field(default_factory=dict)
    peaks: Floats = field(default_factory=lambda: np.zeros((0, 4)))
    peak_panels: tuple[str, ...] = ()
    crystals: list[ReadCrystal] = field(default_factory=list)


@dataclass
class ReadStream:
    """A stream as read: version line, text of the geometry file, target cell's lines, chunks."""

    version: str
    geometry: str
    cell: dict[str, str]
    chunks: list[ReadChunk]


def read_stream(path: Path) -> ReadStream:
    """Read a stream (plain, .gz, .bz2 or .xz).

    Raises
    ------
    DataError
        If it is no stream, or ends in the middle of a chunk.
    """
    try:
        content = path.read_bytes()
        lines = _DECODERS.get(path.suffix, bytes)(content).decode().splitlines()
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise DataError(f"cannot be read as a stream: {error}", path) from error
    if not lines or not lines[0].startswith("CrystFEL stream format"):
        raise DataError("not a CrystFEL stream: the first line does not say so", path)
    rows = iter(lines)
    stream = ReadStream(next(rows), "", {}, [])
    try:
        for line in rows:
            if line == "----- Begin geometry file -----":
                stream.geometry = "\n".join(_until(rows, "----- End geometry file -----")) + "\n"
            elif line == "----- Begin unit cell -----":
                found = _until(rows, "----- End unit cell -----")
                stream.cell = dict(_entry(item) for item in found if "=" in item)
            elif line == "----- Begin chunk -----":
                stream.chunks.append(_chunk(rows))
    except (StopIteration, ValueError, IndexError) as error:
        raise DataError(f"damaged in chunk {len(stream.chunks) + 1}: it ends early or holds a wrong number", path) from error
    return stream


def _until(rows: Iterator[str], end: str) -> list[str]:
    found = []
    while (line := next(rows)) != end:
        found.append(line)
    return found


def _entry(line: str) -> tuple[str, str]:
    colon, equals = line.find(": "), line.find(" = ")
    at, width = (colon, 2) if equals < 0 or 0 <= colon < equals else (equals, 3)
    return line[:at].strip(), line[at + width :].strip()


def _chunk(rows: Iterator[str]) -> ReadChunk:
    chunk = ReadChunk()
    while (line := next(rows)) != "----- End chunk -----":
        if line == "Peaks from peak search":
            found = [item.split() for item in _until(rows, "End of peak list")[1:]]
            chunk.peaks = np.array([item[:4] for item in found], dtype=np.float64).reshape(-1, 4)
            chunk.peak_panels = tuple(item[4] if len(item) > 4 else "" for item in found)
        elif line == "--- Begin crystal":
            chunk.crystals.append(_crystal(rows))
        elif " = " in line or ": " in line:
            name, value = _entry(line)
            chunk.entries[name] = value
    return chunk


def _crystal(rows: Iterator[str]) -> ReadCrystal:
    crystal = ReadCrystal()
    reciprocal: dict[str, list[float]] = {}
    while (line := next(rows)) != "--- End crystal":
        words = line.split()
        if line.startswith("Cell parameters"):
            crystal.cell = (*(10.0 * float(w) for w in words[2:5]), *(float(w) for w in words[6:9]))
        elif words and words[0] in ("astar", "bstar", "cstar"):
            reciprocal[words[0]] = [float(w) for w in words[2:5]]
        elif line == "Reflections measured after indexing":
            _take_reflections(crystal, [item.split() for item in _until(rows, "End of reflections")[1:]])
        elif " = " in line:
            name, value = _entry(line)
            crystal.entries[name] = value
    crystal.a_matrix = 0.1 * FLIP_XZ @ np.array([reciprocal[name] for name in ("astar", "bstar", "cstar")]).T
    return crystal


def _take_reflections(crystal: ReadCrystal, found: list[list[str]]) -> None:
    crystal.hkl = np.array([item[:3] for item in found], dtype=np.int32).reshape(-1, 3)
    crystal.values = np.array([item[3:9] for item in found], dtype=np.float64).reshape(-1, 6)
    crystal.panels = tuple(item[9] if len(item) > 9 else "" for item in found)

"""Read CrystFEL streams: geometry, peak lists, crystals, reflections.

Streams give lengths in nm, reciprocal lengths in 1/nm and CrystFEL's laboratory frame; what is returned is in Å, 1/Å, mm and
the frame of `models.conventions`. Pixel coordinates are those of the data file: a panel's first pixel is at its ``min_fs``,
``min_ss`` (see `panel_positions`).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.models.conventions import FLIP_XZ, HC
from xfelproc.models.experiment import Crystal, as_matrix

Floats = NDArray[np.float64]

_GEOMETRY = ("----- Begin geometry file -----", "----- End geometry file -----")
_CELL = ("----- Begin unit cell -----", "----- End unit cell -----")
_CHUNK = ("----- Begin chunk -----", "----- End chunk -----")
_CRYSTAL = ("--- Begin crystal", "--- End crystal")
_PEAKS = ("Peaks from peak search", "End of peak list")
_REFLECTIONS = ("Reflections measured after indexing", "End of reflections")


@dataclass(frozen=True)
class StreamHeader:
    """What stands before the first chunk; texts are empty where the stream has none."""

    version: str
    geometry: str
    cell: str
    command: str


@dataclass(frozen=True, eq=False)
class StreamSpots:
    """Peaks: pixel coordinates in the data file, intensity and the panel's name ("" in old streams)."""

    fast: Floats
    slow: Floats
    intensity: Floats
    panel: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.fast)


@dataclass(frozen=True, eq=False)
class StreamReflections:
    """Integrated reflections: indices (n, 3), intensity, σ, peak, background, position and panel."""

    hkl: NDArray[np.int32]
    intensity: Floats
    sigma: Floats
    peak: Floats
    background: Floats
    fast: Floats
    slow: Floats
    panel: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.hkl)


@dataclass(frozen=True, eq=False)
class StreamCrystal:
    """A crystal. ``shift`` (mm) is the detector shift (x, y) as written; ``d_min`` (Å) the resolution limit, 0 if none."""

    crystal: Crystal
    lattice_type: str
    centering: str
    unique_axis: str
    shift: tuple[float, float]
    d_min: float
    reflections: StreamReflections
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StreamChunk:
    """One frame. ``camera_length`` is in mm (NaN: not written); ``values`` holds all ``key = value`` lines, as text."""

    image: str
    event: str
    hit: bool
    indexed_by: str
    photon_energy: float
    camera_length: float
    peaks: StreamSpots
    crystals: tuple[StreamCrystal, ...]
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def wavelength(self) -> float:
        """Wavelength in Å."""
        return HC / self.photon_energy


def _open(path: str | Path) -> IO[str]:
    name = str(path)
    for suffix, opener in ((".xz", lzma.open), (".gz", gzip.open), (".bz2", bz2.open)):
        if name.endswith(suffix):
            return cast(IO[str], opener(path, "rt", encoding="utf-8", errors="replace"))
    return Path(path).open(encoding="utf-8", errors="replace")


class _Lines:
    """Lines of a stream with their number, for messages."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.number = 0
        try:
            self._file = _open(path)
        except OSError as error:
            raise DataError(f"cannot read the stream ({error.strerror})", path) from error

    def __iter__(self) -> Iterator[str]:
        try:
            for line in self._file:
                self.number += 1
                yield line.rstrip("\n")
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise self.error(f"the file is damaged ({error})") from error

    def close(self) -> None:
        self._file.close()

    def until(self, lines: Iterator[str], end: str) -> Iterator[str]:
        """Yield lines up to the one that starts with ``end``."""
        start = self.number
        for line in lines:
            if line.startswith(end):
                return
            yield line
        raise self.error(f"the block that begins at line {start} has no {end!r}: the stream is cut short")

    def error(self, message: str) -> DataError:
        return DataError(f"line {self.number}: {message}", self.path)


def read_stream_header(path: str | Path) -> StreamHeader:
    """Return what stands before the first chunk.

    Raises
    ------
    DataError
        If the file cannot be read or is no stream.
    """
    with closing(_Lines(path)) as source:
        lines = iter(source)
        first = next(lines, "")
        if not first.startswith("CrystFEL stream format"):
            raise DataError(f"not a CrystFEL stream: its first line is {first[:60]!r}", path)
        geometry, cell, command = "", "", ""
        for line in lines:
            if line.startswith(_GEOMETRY[0]):
                geometry = "\n".join(source.until(lines, _GEOMETRY[1])) + "\n"
            elif line.startswith(_CELL[0]):
                cell = "\n".join(source.until(lines, _CELL[1])) + "\n"
            elif line.startswith(_CHUNK[0]):
                break
            elif "indexamajig" in line and not command:
                command = line
        return StreamHeader(first.split()[-1], geometry, cell, command)


def read_stream(path: str | Path) -> Iterator[StreamChunk]:
    """Yield the chunks of a stream, one at a time.

    Raises
    ------
    DataError
        If the file cannot be read, or a block is cut short or cannot be understood (the message names the line).
    """
    with closing(_Lines(path)) as source:
        lines = iter(source)
        for line in lines:
            if line.startswith(_CHUNK[0]):
                yield _chunk(source, lines)


def _chunk(source: _Lines, lines: Iterator[str]) -> StreamChunk:
    values: dict[str, str] = {}
    peaks = StreamSpots(np.empty(0), np.empty(0), np.empty(0), ())
    crystals: list[StreamCrystal] = []
    for line in source.until(lines, _CHUNK[1]):
        if line.startswith(_PEAKS[0]):
            peaks = _peaks(source, lines)
        elif line.startswith(_CRYSTAL[0]):
            crystals.append(_crystal(source, lines))
        else:
            _note(line, values)
    energy = _number(source, values, "photon_energy_eV")
    camera = values.get("average_camera_length", "").split()
    return StreamChunk(
        values.get("Image filename", ""),
        values.get("Event", ""),
        values.get("hit", "1" if crystals else "0").strip() == "1",
        values.get("indexed_by", "none"),
        energy,
        1000.0 * float(camera[0]) if camera else float("nan"),
        peaks,
        tuple(crystals),
        values,
    )


def _note(line: str, values: dict[str, str]) -> None:
    """Keep a ``key = value`` or ``key: value`` line."""
    for separator in (" = ", ": "):
        key, found, value = line.partition(separator)
        if found:
            values[key.strip()] = value.strip()
            return


def _number(source: _Lines, values: Mapping[str, str], key: str) -> float:
    try:
        return float(values[key].split()[0])
    except (KeyError, ValueError, IndexError):
        raise source.error(f"the block that ends here has no number for {key!r} (found {values.get(key)!r})") from None


def _rows(source: _Lines, lines: Iterator[str], end: str, columns: int) -> list[list[str]]:
    """Return the split rows of a table of at least ``columns`` columns; its first line is the heading."""
    heading = next(lines, "")
    rows = []
    for line in source.until(lines, end):
        words = line.split()
        if len(words) < columns:
            raise source.error(f"expected at least {columns} columns under {heading.strip()!r}, found {line!r}")
        rows.append(words)
    return rows


def _table(source: _Lines, rows: list[list[str]], columns: int) -> Floats:
    try:
        return np.array([[float(word) for word in row[:columns]] for row in rows], dtype=np.float64).reshape(-1, columns)
    except ValueError as error:
        raise source.error(f"the table that ends here holds something that is no number ({error})") from None


def _peaks(source: _Lines, lines: Iterator[str]) -> StreamSpots:
    rows = _rows(source, lines, _PEAKS[1], 4)
    table = _table(source, rows, 4)
    panel = tuple(row[4] if len(row) > 4 else "" for row in rows)
    return StreamSpots(table[:, 0], table[:, 1], table[:, 3], panel)


def _reflections(source: _Lines, lines: Iterator[str]) -> StreamReflections:
    rows = _rows(source, lines, _REFLECTIONS[1], 9)
    t = _table(source, rows, 9)
    panel = tuple(row[9] if len(row) > 9 else "" for row in rows)
    hkl = t[:, :3].astype(np.int32)
    return StreamReflections(hkl, t[:, 3], t[:, 4], t[:, 5], t[:, 6], t[:, 7], t[:, 8], panel)


def _crystal(source: _Lines, lines: Iterator[str]) -> StreamCrystal:
    values: dict[str, str] = {}
    empty = np.empty(0)
    reflections = StreamReflections(np.empty((0, 3), dtype=np.int32), empty, empty, empty, empty, empty, empty, ())
    for line in source.until(lines, _CRYSTAL[1]):
        if line.startswith(_REFLECTIONS[0]):
            reflections = _reflections(source, lines)
        else:
            _note(line, values)
    columns = []
    for key in ("astar", "bstar", "cstar"):
        try:
            columns.append([0.1 * float(word) for word in values[key].split()[:3]])
        except (KeyError, ValueError):
            raise source.error(f"the crystal that ends here has no usable {key!r}") from None
    a_matrix = FLIP_XZ @ np.array(columns).T
    shift = values.get("predict_refine/det_shift x", "")
    words = shift.replace("=", " ").split()  # as in "0.022 y = -0.009 mm"
    limit = values.get("diffraction_resolution_limit", "0").split()
    inverse = 0.1 * float(limit[0])
    return StreamCrystal(
        Crystal(as_matrix(a_matrix)),
        values.get("lattice_type", ""),
        values.get("centering", ""),
        values.get("unique_axis", ""),
        (float(words[0]), float(words[2])) if len(words) >= 3 else (0.0, 0.0),
        1.0 / inverse if inverse > 0 else 0.0,
        reflections,
        values,
    )


def panel_positions(
    spots: StreamSpots | StreamReflections, corners: Mapping[str, tuple[int, float, float]]
) -> tuple[NDArray[np.int32], Floats, Floats]:
    """Return panel numbers, fast and slow within the panel.

    ``corners`` gives, by panel name, its number and the ``min_fs``, ``min_ss`` of the geometry.

    Raises
    ------
    DataError
        If a panel's name is not among them.
    """
    unknown = sorted(set(spots.panel) - set(corners))
    if unknown:
        raise DataError(f"the geometry has no panel {', '.join(unknown)}: is it the stream's own?")
    places = np.array([corners[name] for name in spots.panel], dtype=np.float64).reshape(-1, 3)
    return places[:, 0].astype(np.int32), spots.fast - places[:, 1], spots.slow - places[:, 2]

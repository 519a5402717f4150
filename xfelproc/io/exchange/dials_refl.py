"""DIALS reflection tables (``.refl``): read, write.

The file is msgpack: ``["dials::af::reflection_table", 1, {"identifiers": {id: identifier}, "nrows": n, "data": {column: [type,
[rows, bytes]]}}]``, columns sorted by name, numbers little-endian. Shoeboxes and other columns of variable length are kept as the
bytes they are.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.geometry.detector import mm_to_lab, pixel_to_mm
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.experiment import Beam, Detector, Experiment
from xfelproc.models.tables import IndexedTable, ReflectionTable, SpotTable

Floats = NDArray[np.float64]

MAGIC, VERSION = "dials::af::reflection_table", 1

TYPES: dict[str, tuple[str, int]] = {
    "bool": ("?", 1),
    "int": ("<i4", 1),
    "std::size_t": ("<u8", 1),
    "double": ("<f8", 1),
    "vec2<double>": ("<f8", 2),
    "vec3<double>": ("<f8", 3),
    "mat3<double>": ("<f8", 9),
    "int6": ("<i4", 6),
    "cctbx::miller::index<>": ("<i4", 3),
}
"""Type of a number and count of them a row, by the name of the column's type."""

_DECODERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}


class DialsFlag(IntFlag):
    """Bits of the column ``flags``, as DIALS documents them."""

    PREDICTED = 1 << 0
    OBSERVED = 1 << 1
    INDEXED = 1 << 2
    USED_IN_REFINEMENT = 1 << 3
    STRONG = 1 << 5
    DONT_INTEGRATE = 1 << 7
    INTEGRATED_SUM = 1 << 8
    OVERLOADED = 1 << 10
    OVERLAPPED_FOREGROUND = 1 << 12
    FOREGROUND_INCLUDES_BAD_PIXELS = 1 << 14
    CENTROID_OUTLIER = 1 << 17
    FAILED_DURING_BACKGROUND_MODELLING = 1 << 18
    FAILED_DURING_SUMMATION = 1 << 19


_FLAGS = (
    (ReflectionFlag.INTEGRATED, DialsFlag.INTEGRATED_SUM),
    (ReflectionFlag.OVERLOADED, DialsFlag.OVERLOADED),
    (ReflectionFlag.BAD_PIXEL, DialsFlag.FOREGROUND_INCLUDES_BAD_PIXELS),
    (ReflectionFlag.OVERLAP, DialsFlag.OVERLAPPED_FOREGROUND),
    (ReflectionFlag.BACKGROUND, DialsFlag.FAILED_DURING_BACKGROUND_MODELLING),
    (ReflectionFlag.OBSERVED, DialsFlag.OBSERVED | DialsFlag.STRONG | DialsFlag.INDEXED),
)


@dataclass(frozen=True)
class RawColumn:
    """A column of a type that is not a fixed count of numbers: its bytes."""

    kind: str
    content: bytes


@dataclass(frozen=True)
class ReflectionFile:
    """A ``.refl`` file. ``columns`` are arrays (n,) or (n, k), or `RawColumn`; ``kinds`` name their types."""

    identifiers: dict[int, str]
    n_rows: int
    columns: dict[str, NDArray[Any] | RawColumn]
    kinds: dict[str, str]

    def array(self, name: str) -> NDArray[Any]:
        """Return a column of numbers. Raises KeyError if there is none of that name, or it holds no plain numbers."""
        column = self.columns[name]
        if isinstance(column, RawColumn):
            raise KeyError(f"{name} holds {column.kind}, not numbers")
        return column


def read_refl(path: Path) -> ReflectionFile:
    """Read a ``.refl`` (plain, .gz, .bz2 or .xz).

    Raises
    ------
    DataError
        If the file is missing, damaged, or of another kind.
    """
    try:
        content = path.read_bytes()
        content = _DECODERS.get(path.suffix, bytes)(content)
        document = msgpack.unpackb(content, raw=False, strict_map_key=False)
        kind, version, body = document
        found_rows, data, identifiers = int(body["nrows"]), dict(body["data"]), dict(body["identifiers"])
    except (OSError, EOFError, ValueError, TypeError, KeyError, lzma.LZMAError, msgpack.exceptions.UnpackException) as error:
        raise DataError(f"cannot be read as a DIALS reflection table: {error}", path) from error
    if kind != MAGIC or version != VERSION:
        raise DataError(
            f"is {kind!r} version {version!r}, not {MAGIC!r} version {VERSION}: write it again with DIALS 1.14 or later", path
        )
    columns: dict[str, NDArray[Any] | RawColumn] = {}
    for name, (kind, (rows, packed)) in data.items():
        columns[name] = _unpack(path, name, kind, int(rows), packed)
    return ReflectionFile({int(k): str(v) for k, v in identifiers.items()}, found_rows, columns, {n: c[0] for n, c in data.items()})


def _unpack(path: Path, name: str, kind: str, rows: int, packed: bytes) -> NDArray[Any] | RawColumn:
    if kind not in TYPES:
        return RawColumn(kind, packed)
    dtype, width = TYPES[kind]
    if len(packed) != rows * width * np.dtype(dtype).itemsize:
        raise DataError(f"column {name!r} has {len(packed)} bytes, not those of {rows} x {kind}: the file is damaged", path)
    values = np.frombuffer(packed, dtype=dtype)
    return values if width == 1 else values.reshape(rows, width)


def refl_bytes(table: ReflectionFile) -> bytes:
    """Return the file's bytes.

    Raises
    ------
    ValueError
        If a column has not ``n_rows`` rows of its type.
    """
    data = {}
    for name in sorted(table.columns):
        column, kind = table.columns[name], table.kinds[name]
        if isinstance(column, RawColumn):
            data[name] = [kind, [table.n_rows, column.content]]
            continue
        dtype, width = TYPES[kind]
        if column.size != table.n_rows * width:
            raise ValueError(f"column {name!r} of {kind} has {column.size} numbers, not {table.n_rows} x {width}")
        data[name] = [kind, [table.n_rows, np.ascontiguousarray(column, dtype=dtype).tobytes()]]
    body = {"identifiers": table.identifiers, "nrows": table.n_rows, "data": data}
    return bytes(msgpack.packb([MAGIC, VERSION, body], use_bin_type=True))


@dataclass(frozen=True)
class LatticeReflections:
    """One lattice to export: its experiment (refined detector, crystal, identifier) and its reflections.

    ``observed`` (m, 5) are the indexed spots: row of ``reflections``, centroid (fast, slow) in px, its variances in px².
    ``indexed`` and ``spots`` are the same spots with all that is known of them, row by row.
    """

    experiment: Experiment
    reflections: ReflectionTable
    observed: Floats | None = None
    indexed: IndexedTable = field(default_factory=IndexedTable)
    spots: SpotTable = field(default_factory=SpotTable)


def integrated_table(lattices: Sequence[LatticeReflections]) -> ReflectionFile:
    """Return the integrated reflections of stills as DIALS has them; ``id`` is the lattice's place in the sequence.

    ``xyzobs`` are the centroids of indexed spots where there is one, else the prediction with variance 0. On a still z is 0
    (px) and 0.5 for observations, as of image 1; φ in mm-tables is 0. ``intensity.sum`` is not corrected for polarisation.
    """
    parts = [integrated_columns(number, item) for number, item in enumerate(lattices)]
    identifiers = {number: item.experiment.identifier for number, item in enumerate(lattices)}
    kinds = dict(COLUMN_KINDS)
    columns: dict[str, NDArray[Any] | RawColumn] = {}
    for name, kind in kinds.items():
        dtype, width = TYPES[kind]
        shape = (0,) if width == 1 else (0, width)
        columns[name] = np.concatenate([p[name] for p in parts]) if parts else np.zeros(shape, dtype=dtype)
    images: dict[object, int] = {}
    imageset = [images.setdefault(item.experiment.image or number, len(images)) for number, item in enumerate(lattices)]
    columns["imageset_id"] = np.repeat(np.array(imageset, dtype=np.int32), [len(item.reflections) for item in lattices])
    kinds["imageset_id"] = "int"
    return ReflectionFile(identifiers, sum(len(item.reflections) for item in lattices), columns, kinds)


COLUMN_KINDS = {
    "background.mean": "double",
    "background.sum.value": "double",
    "bbox": "int6",
    "d": "double",
    "delpsical.rad": "double",
    "entering": "bool",
    "flags": "std::size_t",
    "id": "int",
    "intensity.sum.value": "double",
    "intensity.sum.variance": "double",
    "miller_index": "cctbx::miller::index<>",
    "num_pixels.foreground": "int",
    "panel": "std::size_t",
    "partiality": "double",
    "s1": "vec3<double>",
    "xyzcal.mm": "vec3<double>",
    "xyzcal.px": "vec3<double>",
    "xyzobs.mm.value": "vec3<double>",
    "xyzobs.mm.variance": "vec3<double>",
    "xyzobs.px.value": "vec3<double>",
    "xyzobs.px.variance": "vec3<double>",
}
"""Columns written, with their types, but for imageset_id."""


def _flags(table: ReflectionTable) -> NDArray[np.uint64]:
    flags = np.full(len(table), int(DialsFlag.PREDICTED), dtype=np.uint64)
    for ours, theirs in _FLAGS:
        flags[table["flags"] & int(ours) != 0] |= np.uint64(int(theirs))
    return flags


def _millimetres(detector: Detector, panel: NDArray[Any], calculated: Floats, observed: Floats) -> tuple[Floats, Floats]:
    """Return two sets of pixel positions (n, 2 or more) on the same panels in mm, at the cost of one call for small sets."""
    both = np.concatenate([calculated[:, :2], observed[:, :2]])
    found = pixel_to_mm(detector, np.concatenate([panel, panel]), both[:, 0], both[:, 1])
    return found[: len(panel)], found[len(panel) :]


def _rays(detector: Detector, beam: Beam, panel: NDArray[Any], xy: Floats) -> Floats:
    """Return (n, 3) wave vectors in 1/Å of the rays that enter panels at ``xy`` (n, 2) mm."""
    lab = mm_to_lab(detector, panel, xy)
    rays: Floats = lab / (np.linalg.norm(lab, axis=1, keepdims=True) * beam.wavelength)
    return rays


def integrated_columns(number: int, item: LatticeReflections) -> dict[str, NDArray[Any]]:
    """Return the columns of `COLUMN_KINDS` of one lattice; ``number`` is its ``id``. See `integrated_table`."""
    table, experiment = item.reflections, item.experiment
    n, panel = len(table), table["panel"]
    detector, beam = experiment.detector, experiment.beam
    calculated = np.column_stack([table["fast"], table["slow"], np.zeros(n)])
    observed, variance = calculated + np.array([0.0, 0.0, 0.5]), np.zeros((n, 3))
    if item.observed is not None and len(item.observed):
        rows = item.observed[:, 0].astype(np.int64)
        observed[rows, :2], variance[rows, :2] = item.observed[:, 1:3], item.observed[:, 3:5]
    size = detector.pixel_sizes[panel] if n else np.zeros((0, 2))
    calculated_mm, observed_mm = _millimetres(detector, panel, calculated, observed)
    half = np.ceil(np.sqrt(np.maximum(table["n_pixels"], 1) / np.pi)).astype(np.int32)
    fast, slow = np.floor(table["fast"]).astype(np.int32), np.floor(table["slow"]).astype(np.int32)
    zeros = np.zeros(n)
    return {
        "background.mean": table["background"],
        "background.sum.value": table["background"] * table["n_pixels"],
        "bbox": np.column_stack([fast - half, fast + half + 1, slow - half, slow + half + 1, zeros, zeros + 1]).astype(np.int32),
        "d": table["d"],
        "delpsical.rad": np.radians(table["delta_psi"].astype(np.float64)),
        "entering": np.zeros(n, dtype=bool),
        "flags": _flags(table),
        "id": np.full(n, number, dtype=np.int32),
        "intensity.sum.value": table["intensity"],
        "intensity.sum.variance": table["sigma"].astype(np.float64) ** 2,
        "miller_index": table["hkl"],
        "num_pixels.foreground": table["n_pixels"],
        "panel": panel.astype(np.uint64),
        "partiality": table["partiality"],
        "s1": _rays(detector, beam, panel, calculated_mm),
        "xyzcal.mm": np.column_stack([calculated_mm, zeros]),
        "xyzcal.px": calculated,
        "xyzobs.mm.value": np.column_stack([observed_mm, zeros]),
        "xyzobs.mm.variance": np.column_stack([variance[:, :2] * size**2, zeros]),
        "xyzobs.px.value": observed,
        "xyzobs.px.variance": variance,
    }


_INTEGRATED_ONLY = {"background.mean", "background.sum.value", "num_pixels.foreground", "partiality"}
INDEXED_KINDS = {name: kind for name, kind in COLUMN_KINDS.items() if name not in _INTEGRATED_ONLY} | {
    "n_signal": "int",
    "rlp": "vec3<double>",
}
"""Columns of indexed spots, with their types, but for imageset_id."""


def indexed_columns(number: int, item: LatticeReflections) -> dict[str, NDArray[Any]]:
    """Return the columns of `INDEXED_KINDS` of one lattice's indexed spots, as DIALS has them after a refinement.

    A spot's z is 0.5 px, of variance 1/12, as of image 1; ``s1`` is the predicted ray, ``rlp`` the observed lattice point.
    """
    spots, indexed, experiment = item.spots, item.indexed, item.experiment
    n, panel = len(indexed), spots["panel"]
    detector, beam = experiment.detector, experiment.beam
    size = detector.pixel_sizes[panel] if n else np.zeros((0, 2))
    variance = np.column_stack([spots["var_fast"], spots["var_slow"]]).astype(np.float64)
    calculated = np.column_stack([indexed["fast_calc"], indexed["slow_calc"]])
    observed = np.column_stack([spots["fast"], spots["slow"]])
    calculated_mm, observed_mm = _millimetres(detector, panel, calculated, observed)
    zeros, box = np.zeros(n), spots["bbox"]
    outlier = np.uint64(int(DialsFlag.CENTROID_OUTLIER))
    found = np.uint64(int(DialsFlag.PREDICTED | DialsFlag.INDEXED | DialsFlag.STRONG))
    used = np.uint64(int(DialsFlag.USED_IN_REFINEMENT))
    return {
        "bbox": np.column_stack([box, zeros, zeros + 1]).astype(np.int32),
        "d": spots["d"],
        "delpsical.rad": np.radians(indexed["delta_psi"].astype(np.float64)),
        "entering": np.zeros(n, dtype=bool),
        "flags": found | np.where(indexed["used"], used, outlier),
        "id": np.full(n, number, dtype=np.int32),
        "intensity.sum.value": spots["intensity"],
        "intensity.sum.variance": (spots["intensity"] / np.maximum(spots["snr"], 1e-9)).astype(np.float64) ** 2,
        "miller_index": indexed["hkl"],
        "n_signal": spots["n_pixels"],
        "panel": panel.astype(np.uint64),
        "rlp": _rays(detector, beam, panel, observed_mm) - beam.s0,
        "s1": _rays(detector, beam, panel, calculated_mm),
        "xyzcal.mm": np.column_stack([calculated_mm, zeros]),
        "xyzcal.px": np.column_stack([calculated, zeros]),
        "xyzobs.mm.value": np.column_stack([observed_mm, zeros]),
        "xyzobs.mm.variance": np.column_stack([variance * size**2, zeros]),
        "xyzobs.px.value": np.column_stack([observed, zeros + 0.5]),
        "xyzobs.px.variance": np.column_stack([variance, zeros + 1.0 / 12.0]),
    }

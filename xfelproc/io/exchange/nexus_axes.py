"""NeXus transformations: axes, chains of them, and the frames they lead to.

An axis rotates by its value about ``vector`` or moves along it, from a point displaced by ``offset``; it depends on the next axis
out. A position in an axis's own frame is ``R x + t`` in the frame it depends on (NXtransformations of the NeXus standard).
NeXus's laboratory frame is McStas's: z along the beam, y up; ours is ``diag(-1, 1, -1)`` of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.geometry.cells import rotation_matrix
from xfelproc.models.experiment import Vector3, as_vector

Floats = NDArray[np.float64]

LENGTHS = {
    **dict.fromkeys(("m", "metre", "meter", "metres", "meters"), 1000.0),
    **dict.fromkeys(("mm", "millimetre", "millimeter"), 1.0),
    **dict.fromkeys(("cm", "centimetre", "centimeter"), 10.0),
    **dict.fromkeys(("um", "µm", "micron", "microns", "micrometre", "micrometer"), 1e-3),
    **dict.fromkeys(("nm", "nanometre", "nanometer"), 1e-6),
}
ANGLES = {
    **dict.fromkeys(("deg", "degree", "degrees", "°"), 1.0),
    **dict.fromkeys(("rad", "radian", "radians"), float(np.degrees(1.0))),
}


@dataclass(frozen=True)
class Axis:
    """One axis: ``kind`` "rotation" (values in degrees) or "translation" (mm); ``values`` one, or one a frame; ``offset`` in mm."""

    path: str
    kind: str
    vector: Vector3
    offset: Vector3
    values: tuple[float, ...]
    depends_on: str = "."

    def value(self, index: int) -> float:
        """Return the value at a frame."""
        return self.values[index] if len(self.values) > 1 else self.values[0]

    def transform(self, index: int) -> tuple[Floats, Floats]:
        """Return R (3, 3) and t (mm) at a frame."""
        v = np.asarray(self.vector)
        if self.kind == "rotation":
            return rotation_matrix(v * np.radians(self.value(index))), np.asarray(self.offset, dtype=np.float64)
        return np.eye(3), np.asarray(self.offset) + v * self.value(index)


def frame_of(chain: Sequence[Axis], index: int = 0) -> tuple[Floats, Floats]:
    """Return R and t of the innermost frame of a chain (innermost axis first) in McStas's laboratory frame."""
    rotation, move = np.eye(3), np.zeros(3)
    for axis in chain:
        r, t = axis.transform(index)
        rotation, move = r @ rotation, r @ move + t
    return rotation, move


def text(value: object) -> str:
    """Return an attribute as str, whatever it is stored as."""
    item = value.reshape(-1)[0] if isinstance(value, np.ndarray) and value.size else value
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)


def factor_of(unit: str, table: dict[str, float], default: float) -> float:
    """Return what a unit is in ours; ``default`` for a unit that is missing or not known."""
    return table.get(unit.strip(), table.get(unit.strip().lower(), default))


def read_axis(dataset: Any, path: str) -> Axis:
    """Return the axis of an HDF5 dataset.

    Raises
    ------
    DataError
        If it has no vector, or its value is not a number.
    """
    attributes = dataset.attrs
    kind = text(attributes.get("transformation_type", "translation")).lower()
    if kind not in ("rotation", "translation") or "vector" not in attributes:
        raise DataError(f"{dataset.name} is no axis: transformation_type {kind!r}, vector {attributes.get('vector')}", path)
    vector = np.asarray(attributes["vector"], dtype=np.float64).reshape(-1)
    length = float(np.linalg.norm(vector)) if vector.size == 3 else 0.0
    if length == 0.0 or not np.isfinite(length):
        raise DataError(f"{dataset.name} has the vector {vector.tolist()}: three numbers, not all zero, are needed", path)
    unit = text(attributes.get("units", ""))
    scale = factor_of(unit, ANGLES, 1.0) if kind == "rotation" else factor_of(unit, LENGTHS, 1000.0)
    offset_unit = text(attributes.get("offset_units", unit if kind == "translation" else ""))
    offset = np.asarray(attributes.get("offset", (0.0, 0.0, 0.0)), dtype=np.float64).reshape(-1) * factor_of(
        offset_unit, LENGTHS, 1000.0
    )
    try:
        values = np.asarray(dataset[()], dtype=np.float64).reshape(-1) * scale
    except (TypeError, ValueError, OSError) as error:
        raise DataError(f"{dataset.name} cannot be read as numbers ({error})", path) from error
    if not values.size or not np.isfinite(values).all():
        raise DataError(f"{dataset.name} holds no number, or not a finite one", path)
    return Axis(
        path=str(dataset.name),
        kind=kind,
        vector=as_vector(vector / length),
        offset=as_vector(offset),
        values=tuple(float(v) for v in values),
        depends_on=text(attributes.get("depends_on", ".")),
    )


def read_chain(group: Any, depends_on: str, path: str) -> tuple[Axis, ...]:
    """Return the axes from ``depends_on`` outwards, innermost first; relative names count from ``group``.

    Raises
    ------
    DataError
        If an axis is missing or the chain is closed.
    """
    chain: list[Axis] = []
    where = group
    name = depends_on.strip()
    while name not in (".", ""):
        try:
            dataset = where[name]
        except (KeyError, OSError, RuntimeError) as error:
            raise DataError(
                f"axis {name} (needed by {where.name}) is not in the file: its geometry is not complete", path
            ) from error
        if not isinstance(dataset, h5py.Dataset):
            raise DataError(f"axis {name} is a group, not a dataset", path)
        axis = read_axis(dataset, path)
        if any(axis.path == a.path for a in chain):
            raise DataError(f"the axes depend on one another in a circle at {axis.path}", path)
        chain.append(axis)
        where, name = dataset.parent, axis.depends_on.strip()
    return tuple(chain)

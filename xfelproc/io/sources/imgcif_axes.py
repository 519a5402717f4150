"""The axes of imgCIF: settings, composition, panels and their hierarchy.

An axis moves what depends on it: a rotation by its angle about its vector, a translation by its displacement along it; then its
offset is added, and the axis it depends on acts in turn (imgCIF dictionary, category AXIS). Vectors and offsets are given in the
laboratory frame with all settings at zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.geometry.cells import rotation_matrix
from xfelproc.models.experiment import DetectorGroup, Vector3, as_vector

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """A row of the category AXIS, with its setting: ``angle`` in degrees, ``displacement`` in mm."""

    name: str
    kind: str
    equipment: str
    depends_on: str
    vector: Vector3
    offset: Vector3
    angle: float = 0.0
    displacement: float = 0.0


class AxisTree:
    """All axes of a file at their settings.

    Raises
    ------
    DataError
        (any method) If an axis is missing or depends on itself.
    """

    def __init__(self, axes: Iterable[Axis], path: object = None) -> None:
        self.axes = {axis.name: axis for axis in axes}
        self.path = path
        self._affine: dict[str, tuple[Floats, Floats]] = {}

    def __getitem__(self, name: str) -> Axis:
        if name not in self.axes:
            raise DataError(f"axis {name!r} is used but not defined in the table of axes: give a geometry file instead", self.path)
        return self.axes[name]

    def chain(self, name: str) -> tuple[str, ...]:
        """Return the axes from ``name`` outwards to the base."""
        found: list[str] = []
        while name:
            if name in found:
                raise DataError(f"axis {name!r} depends on itself: give a geometry file instead", self.path)
            found.append(name)
            name = self[name].depends_on
        return tuple(found)

    def to_lab(self, name: str, points: Floats, settings: Mapping[str, tuple[float, float]] | None = None) -> Floats:
        """Return laboratory positions (mm) of ``points`` (n, 3) attached to axis ``name``.

        ``settings`` (angle, displacement) replace those of the axes.
        """
        left = dict(settings or {})
        for link in self.chain(name):
            if not left:
                turn, shift = self._to_lab(link)
                return points @ turn.T + shift
            axis = self[link]
            turn, shift = _move(axis, *left.pop(link, (axis.angle, axis.displacement)))
            points = points @ turn.T + shift
        return points

    def _to_lab(self, name: str) -> tuple[Floats, Floats]:
        """Return rotation and shift from what is attached to axis ``name`` to the laboratory, all axes at their settings."""
        if name not in self._affine:
            axis = self[name]
            turn, shift = _move(axis, axis.angle, axis.displacement)
            if axis.depends_on:
                outer_turn, outer_shift = self._to_lab(axis.depends_on)
                turn, shift = outer_turn @ turn, outer_turn @ shift + outer_shift
            self._affine[name] = (turn, shift)
        return self._affine[name]

    def frame(self, name: str) -> tuple[Vector3, Vector3, Vector3]:
        """Return the laboratory x axis, y axis and origin of what is attached to axis ``name``."""
        origin, x, y = self.to_lab(name, np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        return as_vector(x - origin), as_vector(y - origin), as_vector(origin)

    def innermost(self, names: Iterable[str]) -> str:
        """Return the one of ``names`` whose chain holds all others.

        Raises
        ------
        DataError
            If there is none.
        """
        wanted = set(names)
        for name in sorted(wanted):
            if wanted <= set(self.chain(name)):
                return name
        raise DataError(
            f"the axes {', '.join(sorted(wanted))} do not depend on one another: give a geometry file instead", self.path
        )


def _move(axis: Axis, angle: float, displacement: float) -> tuple[Floats, Floats]:
    """Return rotation and shift of an axis at a setting."""
    vector, offset = np.asarray(axis.vector), np.asarray(axis.offset)
    if axis.kind == "rotation":
        return rotation_matrix(np.radians(angle) * vector), offset
    return np.eye(3), offset + displacement * vector if axis.kind == "translation" else offset


@dataclass(frozen=True)
class Step:
    """How one index of an array moves along an axis: the displacement (mm) of its first element's edge, and the increment."""

    axis: str
    displacement: float
    increment: float


@dataclass(frozen=True)
class PanelFrame:
    """Origin (mm), unit axes and pixel size of a panel, and the axis its pixels hang on."""

    origin: Vector3
    fast_axis: Vector3
    slow_axis: Vector3
    pixel_size: tuple[float, float]
    mount: str


def place_panel(tree: AxisTree, fast: tuple[Step, ...], slow: tuple[Step, ...]) -> PanelFrame:
    """Return where the pixels lie that step along ``fast`` and ``slow``.

    Raises
    ------
    DataError
        If the steps are zero, or their axes do not hang together.
    """
    steps = (*fast, *slow)
    leaf = tree.innermost(step.axis for step in steps)

    def position(i: int, j: int) -> Floats:
        settings: dict[str, tuple[float, float]] = {}
        for step, count in [*((s, i) for s in fast), *((s, j) for s in slow)]:
            angle, displacement = settings.get(step.axis, (tree[step.axis].angle, 0.0))
            settings[step.axis] = (angle, displacement + step.displacement + count * step.increment)
        at: Floats = tree.to_lab(leaf, np.zeros((1, 3)), settings)[0]
        return at

    origin = position(0, 0)
    along = (position(1, 0) - origin, position(0, 1) - origin)
    size = (float(np.linalg.norm(along[0])), float(np.linalg.norm(along[1])))
    if min(size) <= 0:
        raise DataError(f"the pixels along axis {leaf!r} have size {size} mm: give a geometry file instead", tree.path)
    unit = (along[0] / size[0], along[1] / size[1])
    # rounding leaves the digits that differences of positions have
    size = (round(size[0], 10), round(size[1], 10))
    own = {step.axis for step in steps}
    mount = next((name for name in tree.chain(leaf) if name not in own), "")
    return PanelFrame(as_vector(origin), as_vector(unit[0]), as_vector(unit[1]), size, mount)


def hierarchy(tree: AxisTree, mounts: tuple[str, ...]) -> DetectorGroup | None:
    """Return the tree of the axes that carry panels; ``mounts`` names the axis of each panel. None for one panel.

    An axis that carries a single group or panel is no level of its own.
    """
    if len(mounts) < 2 or not all(mounts):
        return None
    paths = [tuple(reversed(tree.chain(mount))) for mount in mounts]
    group = _group(tree, "detector", list(enumerate(paths)), 0)
    return group if isinstance(group, DetectorGroup) else None


def _group(tree: AxisTree, name: str, members: list[tuple[int, tuple[str, ...]]], depth: int) -> DetectorGroup | int:
    branches: dict[str | int, list[tuple[int, tuple[str, ...]]]] = {}
    for number, path in members:
        branches.setdefault(path[depth] if depth < len(path) else number, []).append((number, path))
    children: list[DetectorGroup | int] = []
    for key, inside in branches.items():
        children.append(key if isinstance(key, int) else _group(tree, key, inside, depth + 1))
    if len(children) == 1:
        return children[0]
    if name not in tree.axes:
        return DetectorGroup(name, tuple(children))
    fast, slow, origin = tree.frame(name)
    return DetectorGroup(name, tuple(children), fast, slow, origin)

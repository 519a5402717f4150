"""How two geometries of one detector differ, level by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from xfelproc.errors import ConfigError
from xfelproc.geometry.motion import corners, levels, orthonormal, panels_of, rigid_motion
from xfelproc.models.experiment import Detector, DetectorGroup, Panel, Vector3
from xfelproc.models.tables import DetectorShiftTable

Floats = NDArray[np.float64]
Motion = tuple[Floats, Floats]


def matched(first: Detector, second: Detector) -> tuple[int, ...]:
    """Return the panel of ``second`` for each panel of ``first``: by name where the names are the same, else by number.

    Raises
    ------
    ConfigError
        If these are not panels of one detector.
    """
    a, b = [p.name for p in first.panels], [p.name for p in second.panels]
    if len(a) != len(b):
        raise ConfigError(f"the first geometry has {len(a)} panels, the second {len(b)}: they are not of one detector")
    places = {name: number for number, name in enumerate(b)}
    named = len(places) == len(b) and set(a) == set(b)
    order = tuple(places[name] for name in a) if named else tuple(range(len(b)))
    for panel, number in zip(first.panels, order, strict=True):
        other = second.panels[number]
        if panel.image_size != other.image_size or not np.allclose(panel.pixel_size, other.pixel_size, rtol=1e-4):
            found = f"{other.image_size} pixels of {other.pixel_size} mm"
            expected = f"{panel.image_size} of {panel.pixel_size}"
            raise ConfigError(f"panel {other.name!r} has {found}, not {expected}: the geometries are not of one detector")
    return order


@dataclass(frozen=True)
class _Comparison:
    first: Detector
    second: Detector
    order: tuple[int, ...]
    beam: Floats
    common: Motion

    def motion(self, node: DetectorGroup | int) -> Motion:
        panels = panels_of(node)
        return rigid_motion(corners(self.first, panels), corners(self.second, [self.order[p] for p in panels]))

    def row(self, level: int, node: DetectorGroup | int, parent: Motion | None) -> Mapping[str, object]:
        panels = panels_of(node)
        axes, centre = _axes(self.first, node), corners(self.first, panels).mean(axis=0)
        motion = self.motion(node)
        shift, rotation, distance = self._parts(motion, None, axes, centre)
        free_shift, free_rotation, free_distance = self._parts(motion, self.common, axes, centre)
        own_shift, own_rotation, _ = self._parts(motion, parent, axes, centre)
        return {
            "level": level,
            "name": _name(self.first, node, level),
            "n_panels": len(panels),
            "shift": shift,
            "rotation": rotation,
            "distance": distance,
            "free_shift": free_shift,
            "free_rotation": free_rotation,
            "free_distance": free_distance,
            "own_shift": own_shift,
            "own_rotation": own_rotation,
        }

    def _parts(self, motion: Motion, without: Motion | None, axes: Floats, centre: Floats) -> tuple[Floats, Floats, float]:
        """Return shift, rotation (degrees) along the columns of ``axes``, and the distance, less another motion made before."""
        rotation, translation = motion
        moved = rotation @ centre + translation
        if without is not None:
            # the other motion undone: x -> R0^-1 (R x + t - t0)
            rotation, moved = without[0].T @ rotation, without[0].T @ (moved - without[1])
        shift = moved - centre
        turn = Rotation.from_matrix(rotation).as_rotvec(degrees=True)
        return axes.T @ shift, axes.T @ turn, float(shift @ self.beam)


def _axes(detector: Detector, node: DetectorGroup | int) -> Floats:
    item: Panel | DetectorGroup = detector.panels[node] if isinstance(node, int) else node
    fast, slow = orthonormal(np.asarray(item.fast_axis, dtype=np.float64), np.asarray(item.slow_axis, dtype=np.float64))
    return np.column_stack([fast, slow, np.cross(fast, slow)])


def _name(detector: Detector, node: DetectorGroup | int, level: int) -> str:
    if isinstance(node, int):
        return detector.panels[node].name or str(node)
    return node.name or ("detector" if level == 0 else f"panels {min(node.panels())}-{max(node.panels())}")


def detector_shifts(first: Detector, second: Detector, direction: Vector3 = (0.0, 0.0, 1.0)) -> DetectorShiftTable:
    """Return how each group of panels of ``first`` has moved in ``second``; its hierarchy is the first one's.

    The motion of a group is the rigid one that takes the corners of its panels nearest to where they are in the second geometry.

    Parameters
    ----------
    direction
        From the sample to the source.

    Raises
    ------
    ConfigError
        If these are not panels of one detector.
    """
    order = matched(first, second)
    everything = tuple(range(len(first)))
    common = rigid_motion(corners(first, everything), corners(second, order))
    comparison = _Comparison(first, second, order, -np.asarray(direction), common)
    rows: list[Mapping[str, object]] = []
    above: dict[int, Motion] = {}
    for level, nodes in enumerate(levels(first)):
        motions: dict[int, Motion] = {}
        for node in nodes:
            panels = panels_of(node)
            rows.append(comparison.row(level, node, above.get(panels[0])))
            motions |= dict.fromkeys(panels, comparison.motion(node))
        above = motions
    return DetectorShiftTable(None, **{c.name: [row[c.name] for row in rows] for c in DetectorShiftTable.SCHEMA})


def displaced(first: Detector, second: Detector, free: bool = True) -> tuple[Floats, Floats]:
    """Return the centre of each panel of ``first`` and how far it has moved (panel, 3) in the laboratory, mm.

    ``free``: without the motion of the detector as a whole.
    """
    order = matched(first, second)
    everything: Sequence[int] = range(len(first))
    before, after = corners(first, everything), corners(second, order)
    if free:
        rotation, translation = rigid_motion(before, after)
        after = (after - translation) @ rotation
    centre = before.reshape(-1, 4, 3).mean(axis=1)
    return centre, after.reshape(-1, 4, 3).mean(axis=1) - centre

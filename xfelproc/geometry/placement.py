"""Where the panels of a detector are: as plain values, compared, and carried over from one detector to another.

A refined geometry is known for the detector of a run's first frame. Frames whose detector stands elsewhere as a whole (another
distance, an arm turned by another angle) take it over by the rigid motion that leads from the one to the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xfelproc.geometry.detector import mm_to_lab, mm_to_pixel, pixel_to_mm
from xfelproc.geometry.motion import corners, rigid_motion
from xfelproc.models.experiment import Detector, DetectorGroup, Panel, as_vector, carried, carried_tree

Floats = NDArray[np.float64]

SAME = 1e-9
"""Largest difference (mm, or of components of axes) of detectors at the same place."""
RIGID = 0.01
"""Largest distance (mm) of the panels' corners from where a rigid motion of the whole detector would have them."""


@dataclass(frozen=True)
class Motion:
    """A turn (3, 3) about the laboratory's origin, then a translation (3,) in mm."""

    turn: Floats
    move: Floats

    def points(self, lab: Floats) -> Floats:
        """Return points (n, 3) of the laboratory moved."""
        moved: Floats = lab @ self.turn.T + self.move
        return moved


def _frame(item: Panel | DetectorGroup) -> list[list[float]]:
    return [list(item.fast_axis), list(item.slow_axis), list(item.origin)]


def placement_of(detector: Detector) -> dict[str, Any]:
    """Return where panels and groups are, as plain values: fast axis, slow axis and origin (mm) of each."""
    panels = [{"name": panel.name, "frame": _frame(panel)} for panel in detector.panels]
    return {"panels": panels, "hierarchy": None if detector.hierarchy is None else _group_values(detector.hierarchy)}


def _group_values(group: DetectorGroup) -> dict[str, Any]:
    children = [child if isinstance(child, int) else _group_values(child) for child in group.children]
    return {"name": group.name, "frame": _frame(group), "children": children}


def with_placement(detector: Detector, values: Mapping[str, Any]) -> Detector:
    """Return a detector whose panels are where `placement_of` says, with its hierarchy.

    Raises
    ------
    ValueError
        If it has another number of panels.
    """
    if len(values["panels"]) != len(detector):
        raise ValueError(f"the placement is of {len(values['panels'])} panels, the detector has {len(detector)}")
    panels = tuple(_placed(panel, found["frame"]) for panel, found in zip(detector.panels, values["panels"], strict=True))
    tree = values["hierarchy"]
    return Detector(panels, None if tree is None else _group_of(tree))


def _placed(panel: Panel, frame: Any) -> Panel:
    fast, slow, origin = (as_vector(part) for part in frame)
    return replace(panel, fast_axis=fast, slow_axis=slow, origin=origin)


def _group_of(values: Mapping[str, Any]) -> DetectorGroup:
    children = tuple(child if isinstance(child, int) else _group_of(child) for child in values["children"])
    return DetectorGroup(values["name"], children, *(as_vector(part) for part in values["frame"]))


def alike(first: Detector, second: Detector) -> bool:
    """Whether two detectors have panels of the same sizes, in the same order."""
    return len(first) == len(second) and all(
        a.image_size == b.image_size and a.pixel_size == b.pixel_size for a, b in zip(first.panels, second.panels, strict=True)
    )


def same_place(first: Detector, second: Detector) -> bool:
    """Whether the panels of two detectors that are `alike` are at the same places."""
    return first is second or bool(np.max(np.abs(first.d_matrices - second.d_matrices)) <= SAME)


def whole_motion(first: Detector, second: Detector) -> Motion | None:
    """Return the motion that takes one detector as a whole to the place of another; None if there is none."""
    if not alike(first, second):
        return None
    if same_place(first, second):
        return Motion(np.eye(3), np.zeros(3))
    a, b = corners(first, range(len(first))), corners(second, range(len(second)))
    motion = Motion(*rigid_motion(a, b))
    off = float(np.max(np.linalg.norm(motion.points(a) - b, axis=1)))
    return motion if off <= RIGID else None


def transferred(detector: Detector, before: Detector, after: Detector) -> Detector | None:
    """Return ``detector`` with the refinement that took ``before`` to ``after``; None if it is another detector.

    What is no place (trusted range, gain, mask, sensor) stays the detector's own.
    """
    motion = whole_motion(before, detector)
    if motion is None:
        return None
    still = bool(np.all(motion.turn == np.eye(3)) and not motion.move.any())
    tree = after.hierarchy
    panels = tuple(_like(own, new, None if still else motion) for own, new in zip(detector.panels, after.panels, strict=True))
    return Detector(panels, tree if tree is None or still else carried_tree(tree, motion.turn, motion.move))


def _like(own: Panel, new: Panel, motion: Motion | None) -> Panel:
    there = new if motion is None else carried(new, motion.turn, motion.move)
    return replace(own, fast_axis=there.fast_axis, slow_axis=there.slow_axis, origin=there.origin)


def displacements(before: Detector, after: Detector) -> Floats:
    """Return (panel, 3) mm by which the panels' middles have moved along their fast and slow axes and their normal."""
    half = 0.5 * before.image_sizes * before.pixel_sizes
    numbers = np.arange(len(before))
    moved = mm_to_lab(after, numbers, half) - mm_to_lab(before, numbers, half)
    axes = before.d_matrices[:, :, :2]
    normals = np.cross(axes[:, :, 0], axes[:, :, 1])
    along = np.einsum("pij,pi->pj", axes, moved)
    found: Floats = np.column_stack([along, np.einsum("pi,pi->p", normals, moved)])
    return found


def seen_from(
    target: Detector, detector: Detector, panel: NDArray[np.int64], pixels: Floats, turns: ArrayLike, moves: ArrayLike
) -> Floats:
    """Return where on ``target`` the rays are recorded that ``detector``, turned and then moved, recorded at ``pixels`` (n, 2).

    ``turns`` (n, 3, 3) and ``moves`` (n, 3) are those of each ray; the panel stays the same. The sensor's parallax is that of
    the detectors as they are: turns are small.
    """
    lab = mm_to_lab(detector, panel, pixel_to_mm(detector, panel, pixels[:, 0], pixels[:, 1]))
    moved = np.einsum("nij,nj->ni", np.asarray(turns, dtype=np.float64), lab) + np.asarray(moves, dtype=np.float64)
    v = np.einsum("nij,nj->ni", target.inverse_d_matrices[panel], moved)
    return mm_to_pixel(target, panel, v[:, :2] / v[:, 2:])

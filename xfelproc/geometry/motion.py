"""Rigid motions of a detector's panels and groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.cells import nearest_rotation
from xfelproc.models.experiment import Detector, DetectorGroup, carried

Floats = NDArray[np.float64]


def corners(detector: Detector, panels: Iterable[int]) -> Floats:
    """Return the corners (4 n, 3) of panels in the laboratory, mm: of each the origin, then along fast, slow, both."""
    rows = np.fromiter(panels, dtype=np.int64)
    size = detector.image_sizes[rows] * detector.pixel_sizes[rows]
    unit = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    xy = np.concatenate([unit[None] * size[:, None, :], np.ones((len(rows), 4, 1))], axis=2)
    points: Floats = np.einsum("pij,pcj->pci", detector.d_matrices[rows], xy)
    return points.reshape(-1, 3)


def rigid_motion(before: Floats, after: Floats) -> tuple[Floats, Floats]:
    """Return the rotation (3, 3) and the translation (3,) that take points (n, 3) nearest to others, by least squares.

    After Kabsch (1976), Acta Cryst. A32, 922. Flat sets of points are allowed, those on one line are not.
    """
    middle, other = before.mean(axis=0), after.mean(axis=0)
    rotation = nearest_rotation((after - other).T @ (before - middle))
    return rotation, other - rotation @ middle


def orthonormal(fast: Floats, slow: Floats) -> tuple[Floats, Floats]:
    """Return the two perpendicular unit vectors nearest to two that are nearly so, in the same plane."""
    plus, minus = (
        fast / np.linalg.norm(fast) + slow / np.linalg.norm(slow),
        fast / np.linalg.norm(fast) - slow / np.linalg.norm(slow),
    )
    plus, minus = plus / np.linalg.norm(plus), minus / np.linalg.norm(minus)
    return (plus + minus) / np.sqrt(2.0), (plus - minus) / np.sqrt(2.0)


def levels(detector: Detector) -> tuple[tuple[DetectorGroup | int, ...], ...]:
    """Return the nodes of each level of the hierarchy: the whole detector first, its panels last.

    Where a branch ends sooner, its panel stands on all levels below. Levels with the same nodes as the one above are left out.
    """
    root = detector.hierarchy or DetectorGroup("", tuple(range(len(detector))))
    found: list[tuple[DetectorGroup | int, ...]] = [(root,)]
    while not all(isinstance(node, int) for node in found[-1]):
        below: list[DetectorGroup | int] = []
        for node in found[-1]:
            below.extend((node,) if isinstance(node, int) else node.children)
        if [panels_of(node) for node in below] != [panels_of(node) for node in found[-1]] or all(isinstance(n, int) for n in below):
            found.append(tuple(below))
        else:
            found[-1] = tuple(below)
    return tuple(found)


def panels_of(node: DetectorGroup | int) -> tuple[int, ...]:
    """Return the panels of a node."""
    return (node,) if isinstance(node, int) else node.panels()


def with_motions(detector: Detector, nodes: Sequence[DetectorGroup | int], motions: Sequence[tuple[Floats, Floats]]) -> Detector:
    """Return the detector with nodes of one level, and all below them, moved by a rotation and then a translation each.

    Frames of the tree above them move as the panels below do on the whole.
    """
    by_panel = {panel: motion for node, motion in zip(nodes, motions, strict=True) for panel in panels_of(node)}
    by_group = {id(node): motion for node, motion in zip(nodes, motions, strict=True)}
    moved = Detector(tuple(carried(panel, *by_panel[i]) if i in by_panel else panel for i, panel in enumerate(detector.panels)))

    def walk(group: DetectorGroup, motion: tuple[Floats, Floats] | None) -> DetectorGroup:
        motion = by_group.get(id(group), motion)
        children = tuple(child if isinstance(child, int) else walk(child, motion) for child in group.children)
        if motion is None:  # a frame above the nodes
            motion = rigid_motion(corners(detector, group.panels()), corners(moved, group.panels()))
        return carried(replace(group, children=children), *motion)

    return moved if detector.hierarchy is None else Detector(moved.panels, walk(detector.hierarchy, None))

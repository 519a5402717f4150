"""The detector's tree as groups of panels that move rigidly, one set of groups a level, and which moves no data can tell.

A move of a group is six numbers: a translation along its fast axis, slow axis and normal (mm), then a rotation vector in the same
axes (radians), about its centre. Level 0 is the whole detector; level n has the nodes n steps below the root, and the panels
that hang higher; the last level has the panels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xfelproc.errors import ConfigError
from xfelproc.geometry.cells import nearest_rotation, rotation_matrix
from xfelproc.geometry.motion import corners
from xfelproc.models.experiment import Beam, Detector, DetectorGroup, Panel, carried

Floats = NDArray[np.float64]
MOVES = ("fast", "slow", "normal", "about_fast", "about_slow", "about_normal")
"""The six parts of a move."""


@dataclass(frozen=True)
class PanelGroup:
    """Panels that move as one.

    ``axes`` (3, 3) has the unit vectors along fast, slow and normal as rows, ``centre`` (3,) is the mean of the panels' centres
    (mm, laboratory), ``reach`` the root mean square distance (mm) of the panels' corners from it.
    """

    name: str
    panels: tuple[int, ...]
    axes: Floats
    centre: Floats
    reach: float


def n_levels(detector: Detector) -> int:
    """Return the number of levels of a detector: 1 for a single panel, 2 for panels without a tree."""
    if len(detector) == 1:
        return 1
    return 2 if detector.hierarchy is None else _depth(detector.hierarchy)


def _depth(node: DetectorGroup | int) -> int:
    return 1 if isinstance(node, int) else 1 + max((_depth(child) for child in node.children), default=0)


def distinct_levels(detector: Detector) -> tuple[int, ...]:
    """Return the levels whose groups are not those of the level before."""
    chosen: list[int] = []
    last: list[tuple[int, ...]] = []
    for level in range(n_levels(detector)):
        panels = [group.panels for group in groups_of(detector, level)]
        if panels != last:
            chosen.append(level)
        last = panels
    return tuple(chosen)


@lru_cache(maxsize=64)
def groups_of(detector: Detector, level: int) -> tuple[PanelGroup, ...]:
    """Return the groups of a level, in the order of the tree.

    Raises
    ------
    ConfigError
        If the detector has no such level, or its tree leaves a panel out or holds one twice.
    """
    if not 0 <= level < n_levels(detector):
        raise ConfigError(f"the detector has levels 0 to {n_levels(detector) - 1}, none {level}")
    root = detector.hierarchy
    if root is None:
        nodes: list[DetectorGroup | int] = list(range(len(detector)))
        if level == 0:
            nodes = [DetectorGroup("detector", tuple(nodes), detector.panels[0].fast_axis, detector.panels[0].slow_axis)]
    else:
        if sorted(root.panels()) != list(range(len(detector))):
            raise ConfigError("the detector's tree does not hold each panel once: correct the geometry file")
        nodes = list(_nodes(root, level))
    return tuple(_group(detector, node) for node in nodes)


def _nodes(node: DetectorGroup | int, level: int) -> Iterator[DetectorGroup | int]:
    if level == 0 or isinstance(node, int):
        yield node
        return
    for child in node.children:
        yield from _nodes(child, level - 1)


def _group(detector: Detector, node: DetectorGroup | int) -> PanelGroup:
    frame: Panel | DetectorGroup = detector.panels[node] if isinstance(node, int) else node
    panels = (node,) if isinstance(node, int) else node.panels()
    fast, slow = np.asarray(frame.fast_axis), np.asarray(frame.slow_axis)
    axes = np.array([fast, slow, _cross(fast, slow)])
    points = corners(detector, panels)
    centre = points.mean(axis=0)
    reach = float(np.sqrt(np.mean(np.sum((points - centre) ** 2, axis=1))))
    return PanelGroup(frame.name or ("detector" if len(panels) > 1 else f"panel {panels[0]}"), panels, axes, centre, reach)


def _cross(u: Floats, v: Floats) -> Floats:
    """Return u × v of two vectors; numpy's own costs ten times as much."""
    return np.array([u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]])


def group_of_panel(groups: Sequence[PanelGroup], n_panels: int) -> NDArray[np.int32]:
    """Return the number of each panel's group."""
    out = np.full(n_panels, -1, dtype=np.int32)
    for number, group in enumerate(groups):
        out[list(group.panels)] = number
    return out


def parents_of(groups: Sequence[PanelGroup], above: Sequence[PanelGroup]) -> NDArray[np.int32]:
    """Return the number, of the groups of a level ``above``, of the one each group is part of."""
    n_panels = 1 + max(max(group.panels) for group in above)
    of_panel = group_of_panel(above, n_panels)
    return np.array([of_panel[group.panels[0]] for group in groups], dtype=np.int32)


def apply_moves(detector: Detector, groups: Sequence[PanelGroup], moves: ArrayLike) -> Detector:
    """Return the detector with its groups moved, (group, 6) mm and radians; frames of the tree inside a group move with it.

    A frame that holds several groups moves as the groups below it do on the whole, where they are all that it holds.
    """
    parts = np.asarray(moves, dtype=np.float64).reshape(len(groups), 6)
    rigid = [_rigid(group, move) for group, move in zip(groups, parts, strict=True)]
    of_panel = group_of_panel(groups, len(detector))
    panels = tuple(
        panel if number < 0 else carried(panel, *rigid[number]) for panel, number in zip(detector.panels, of_panel, strict=True)
    )
    if detector.hierarchy is None:
        return Detector(panels)
    return Detector(panels, _moved_node(detector.hierarchy, of_panel, rigid))


def _rigid(group: PanelGroup, move: Floats) -> tuple[Floats, Floats]:
    """Return rotation and translation, x -> R x + t in the laboratory, of a group's move."""
    turn = rotation_matrix(group.axes.T @ move[3:])
    return turn, group.centre + group.axes.T @ move[:3] - turn @ group.centre


def _moved_node(node: DetectorGroup, of_panel: NDArray[np.int32], rigid: list[tuple[Floats, Floats]]) -> DetectorGroup:
    numbers = {int(of_panel[p]) for p in node.panels()}
    children = tuple(c if isinstance(c, int) else _moved_node(c, of_panel, rigid) for c in node.children)
    moved = node if len(numbers) != 1 or -1 in numbers else carried(node, *rigid[numbers.pop()])
    return replace(moved, children=children)


def moves_between(before: Detector, after: Detector, groups: Sequence[PanelGroup]) -> Floats:
    """Return (group, 6), mm and radians, the rigid moves of groups of ``before`` that bring their panels nearest to ``after``."""
    out = np.empty((len(groups), 6))
    for row, group in zip(out, groups, strict=True):
        here = corners(before, group.panels) - group.centre
        there = corners(after, group.panels)
        middle = there.mean(axis=0)
        # corners of one panel lie in a plane: the axes give the third direction
        ends = np.concatenate([here, _normals(before, group.panels) * group.reach])
        moved = np.concatenate([there - middle, _normals(after, group.panels) * group.reach])
        turn = nearest_rotation(moved.T @ ends)
        row[:3] = group.axes @ (middle - group.centre)
        row[3:] = group.axes @ rotation_vector(turn)
    return out


def _normals(detector: Detector, panels: Sequence[int]) -> Floats:
    d = detector.d_matrices[np.asarray(panels)]
    return np.asarray(np.cross(d[:, :, 0], d[:, :, 1]), dtype=np.float64)


def rotation_vector(turn: Floats) -> Floats:
    """Return the vector (radians) of a rotation of less than half a turn."""
    axis = 0.5 * np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    sine, cosine = float(np.linalg.norm(axis)), 0.5 * (float(np.trace(turn)) - 1.0)
    scale = 1.0 if sine < 1e-12 else float(np.arctan2(sine, cosine)) / sine
    return np.asarray(scale * axis, dtype=np.float64)


def chain(groups: Sequence[PanelGroup], above: Sequence[PanelGroup]) -> Floats:
    """Return (6 groups, 6 above), the moves of groups when those of a level above move: to first order, as all derivatives."""
    out = np.zeros((6 * len(groups), 6 * len(above)))
    for row, parent in enumerate(parents_of(groups, above)):
        out[6 * row : 6 * row + 6, 6 * parent : 6 * parent + 6] = _transfer(groups[row], above[parent].axes, above[parent].centre)
    return out


def rigid_modes(groups: Sequence[PanelGroup], axes: ArrayLike, pivot: ArrayLike) -> Floats:
    """Return (6 groups, 6): the groups' moves when the whole moves along ``axes`` (rows) and turns about them at ``pivot``."""
    frame, point = np.asarray(axes, dtype=np.float64), np.asarray(pivot, dtype=np.float64)
    return np.concatenate([_transfer(group, frame, point) for group in groups])


def _transfer(group: PanelGroup, axes: Floats, pivot: Floats) -> Floats:
    """Return (6, 6), the move of a group when a frame at ``pivot`` moves along and about its ``axes`` (rows)."""
    out = np.zeros((6, 6))
    arm = group.centre - pivot
    out[:3, :3] = out[3:, 3:] = group.axes @ axes.T
    out[:3, 3:] = group.axes @ np.array([_cross(axis, arm) for axis in axes]).T
    return out


def turn_about_beam(groups: Sequence[PanelGroup], beam: Beam) -> Floats:
    """Return (6 groups), the moves of a turn of the whole about the beam: with the crystals turned alike it changes nothing."""
    frame = beam_frame(beam)
    mode: Floats = rigid_modes(groups, frame, np.zeros(3))[:, 5]
    return mode


def beam_frame(beam: Beam) -> Floats:
    """Return rows x, y normal to the beam (as near to the laboratory's as can be) and its direction of travel reversed."""
    z = np.asarray(beam.direction, dtype=np.float64)
    z = z / np.linalg.norm(z)
    x = np.array([1.0, 0.0, 0.0]) - z[0] * z
    x = x / np.linalg.norm(x) if np.linalg.norm(x) > 0.1 else np.cross([0.0, 1.0, 0.0], z)
    x = x / np.linalg.norm(x)
    return np.array([x, np.cross(z, x), z])

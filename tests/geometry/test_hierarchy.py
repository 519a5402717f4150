from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.algorithms.metrology.simulated import BEAM, cspad
from xfelproc.errors import ConfigError
from xfelproc.geometry.hierarchy import (
    apply_moves,
    chain,
    distinct_levels,
    group_of_panel,
    groups_of,
    moves_between,
    n_levels,
    parents_of,
    turn_about_beam,
)
from xfelproc.models.experiment import Detector, DetectorGroup

DETECTOR = cspad()


def test_levels() -> None:
    assert n_levels(DETECTOR) == 4
    assert [len(groups_of(DETECTOR, level)) for level in range(4)] == [1, 4, 32, 64]
    assert distinct_levels(DETECTOR) == (0, 1, 2, 3)
    flat = Detector(DETECTOR.panels)
    assert distinct_levels(flat) == (0, 1)
    assert distinct_levels(Detector(DETECTOR.panels[:1])) == (0,)
    with pytest.raises(ConfigError, match="levels 0 to 3"):
        groups_of(DETECTOR, 4)


def test_levels_of_the_same_groups_count_once() -> None:
    children = tuple(DetectorGroup(f"m{i}", (i,)) for i in range(3))
    detector = Detector(DETECTOR.panels[:3], DetectorGroup("root", children))
    assert n_levels(detector) == 3
    assert distinct_levels(detector) == (0, 1)


def test_a_tree_without_all_panels_is_refused() -> None:
    detector = Detector(DETECTOR.panels[:3], DetectorGroup("root", (0, 1)))
    with pytest.raises(ConfigError, match="each panel once"):
        groups_of(detector, 1)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_moves_are_found_again(level: int) -> None:
    rng = np.random.default_rng(level)
    groups = groups_of(DETECTOR, level)
    moves = rng.normal(size=(len(groups), 6)) * [0.1, 0.1, 0.5, 0.02, 0.02, 0.02]
    moved = apply_moves(DETECTOR, groups, moves)
    assert moves_between(DETECTOR, moved, groups) == pytest.approx(moves, abs=1e-9)


def test_frames_of_the_tree_go_along() -> None:
    groups = groups_of(DETECTOR, 1)
    moves = np.zeros((4, 6))
    moves[2, 0], moves[2, 5] = 0.3, 0.01
    tree, moved = DETECTOR.hierarchy, apply_moves(DETECTOR, groups, moves).hierarchy
    assert tree is not None
    assert moved is not None
    assert moved.origin == tree.origin
    assert moved.children[1] == tree.children[1]
    quadrant, sensor = moved.children[2], moved.children[2].children[0]  # type: ignore[union-attr]
    assert quadrant.origin != tree.children[2].origin  # type: ignore[union-attr]
    assert sensor.fast_axis != tree.children[2].children[0].fast_axis  # type: ignore[union-attr]


@pytest.mark.parametrize("upper", [0, 1, 2])
def test_chain_is_the_rigid_motion_to_first_order(upper: int) -> None:
    above, groups = groups_of(DETECTOR, upper), groups_of(DETECTOR, 3)
    rng = np.random.default_rng(1)
    moves = 1e-7 * rng.normal(size=(len(above), 6))
    moved = apply_moves(DETECTOR, above, moves)
    expected = moves_between(DETECTOR, moved, groups).ravel()
    assert chain(groups, above) @ moves.ravel() == pytest.approx(expected, abs=1e-11)
    assert list(parents_of(groups, above)) == [int(group_of_panel(above, 64)[g.panels[0]]) for g in groups]


def test_turn_about_the_beam() -> None:
    groups = groups_of(DETECTOR, 3)
    moved = apply_moves(DETECTOR, groups, 1e-4 * turn_about_beam(groups, replace(BEAM, direction=(0.0, 0.0, 1.0))))
    c, s = np.cos(1e-4), np.sin(1e-4)
    for old, new in zip(DETECTOR.panels, moved.panels, strict=True):
        x, y, z = old.origin
        assert new.origin == pytest.approx((c * x - s * y, s * x + c * y, z), abs=1e-6)

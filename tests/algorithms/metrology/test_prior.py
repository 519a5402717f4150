"""Uncertainties under the prior of all levels, on linear data with known moves."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.algorithms.metrology.simulated import BEAM, cspad
from xfelproc.algorithms.metrology import Metrology
from xfelproc.algorithms.metrology.precision import half_moves, uncertainty
from xfelproc.algorithms.metrology.prior import KINDS
from xfelproc.algorithms.metrology.solve import LevelFrame, level_frame, levers, solve_level
from xfelproc.geometry.hierarchy import chain, groups_of, turn_about_beam

Floats = NDArray[np.float64]
DETECTOR = cspad(n_quadrants=2)
PANELS = groups_of(DETECTOR, 3)
SETTINGS = Metrology()
PANELS_ALONE = {1: (1e-4, 1e-4, 1e-4, 1e-4), 2: (1e-4, 1e-4, 1e-4, 1e-4), 3: (0.09, 0.055, 0.03, 0.02)}
ALL_LEVELS = {1: (0.09, 0.06, 0.05, 0.05), 2: (0.05, 0.03, 0.03, 0.03), 3: (0.01, 0.01, 0.01, 0.01)}


def information(n_spots: NDArray[np.int64]) -> Floats:
    """Return what so many spots tell of each panel: the normal as a tenth, turns out of the plane as a fifth of the plane."""
    precise = np.repeat(np.sqrt(n_spots) / 0.02, 6) * np.tile([1.0, 1.0, 0.1, 0.2, 0.2, 1.0], len(n_spots)) * levers(PANELS)
    tilted = np.eye(6 * len(n_spots))
    for number, group in enumerate(PANELS):  # a spot tells where the ray goes: a move along the normal is one outward, too
        tilted[6 * number : 6 * number + 2, 6 * number + 2] = (group.axes @ group.centre)[:2] / 125.0
    root = precise[:, None] * tilted
    normal = root.T @ root
    turn = turn_about_beam(PANELS, BEAM)
    told = normal @ turn
    return np.asarray(normal - np.outer(told, told) / (turn @ told))  # the crystals turn with the whole


def pulls(spreads: dict[int, tuple[float, ...]], rng: np.random.Generator) -> tuple[LevelFrame, Floats, Floats, Floats, Floats]:
    """Return the frame, spots a panel, and error / σ of moves inside (panel, 6), across the beam (2, panel, 2), of half-sets."""
    n_spots = rng.choice([0, 0, 3, 8, 20, 45, 100, 300, 1000], size=len(PANELS))
    moved = np.tile([0.1, -0.05, 0.3, 0.0, 0.0, 0.0], 1) @ chain(PANELS, groups_of(DETECTOR, 0)).T
    for level, values in spreads.items():
        groups = groups_of(DETECTOR, level)
        own = rng.normal(size=6 * len(groups)) * np.tile(np.asarray(values)[KINDS], len(groups)) / levers(groups)
        moved = moved + (own if level == 3 else chain(PANELS, groups) @ own)
    half = 0.5 * information(n_spots)
    roots, vectors = np.linalg.eigh(half)
    noise = [vectors @ (np.sqrt(np.maximum(roots, 0.0)) * rng.normal(size=len(half))) for _ in range(2)]
    gradients = [half @ moved + n for n in noise]
    spread: dict[int, tuple[float, ...]] = {}
    for _ in range(2):
        frame = level_frame(SETTINGS, DETECTOR, BEAM, 3, PANELS, n_spots, spread)
        solution = solve_level(frame, 2 * half, gradients[0] + gradients[1], 1.0, np.zeros(len(half)), spread, True)
        spread = solution.spreads
    known = uncertainty(frame, solution, 1.0, np.zeros(len(half)), np.ones(len(PANELS)))
    off = solution.moves - moved
    # what the panels without a say cannot tell of the whole is taken away as the uncertainty does
    inside = (known.projector @ off) / np.sqrt(known.internal)
    halves = half_moves(frame, solution, [half, half], [g - half @ solution.moves for g in gradients], solution.moves)
    apart = (known.projector @ (halves[0] - halves[1])) / np.sqrt(np.maximum(known.halves, 1e-30))
    return frame, n_spots, inside.reshape(-1, 6), apart[frame.own], np.array([solution.spreads[3]])


@pytest.mark.parametrize("spreads", [PANELS_ALONE, ALL_LEVELS], ids=["panels", "levels"])
def test_errors_are_as_stated(spreads: dict[int, tuple[float, ...]]) -> None:
    few, many, apart, found = [], [], [], []
    for seed in range(16):
        _, n_spots, inside, halves, own = pulls(spreads, np.random.default_rng(seed))
        few.append(inside[n_spots < 50].ravel())
        many.append(inside[n_spots >= 50].ravel())
        apart.append(halves)
        found.append(own[0])
    for pull in (np.concatenate(few), np.concatenate(many)):
        assert 0.85 < np.sqrt(np.mean(pull**2)) < 1.15
        assert np.mean(np.abs(pull) > 3.0) < 0.01
    assert 0.67 < np.sqrt(np.mean(np.concatenate(apart) ** 2)) < 1.5
    assert np.mean(found, axis=0) == pytest.approx(spreads[3], rel=0.3)

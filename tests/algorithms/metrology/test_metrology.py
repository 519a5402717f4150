"""Metrology on spots traced to panels that are displaced."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from tests.algorithms.metrology.simulated import BEAM, Errors, cspad, displaced, shots
from xfelproc.algorithms.metrology import CrystalSpots, Metrology
from xfelproc.errors import ConfigError
from xfelproc.geometry.hierarchy import groups_of, moves_between, rigid_modes
from xfelproc.models.experiment import Detector

RECORDED = cspad()
PIXEL = 0.11


@pytest.fixture(scope="module")
def scene() -> tuple[Detector, list[CrystalSpots]]:
    rng = np.random.default_rng(11)
    truth = displaced(RECORDED, Errors(), rng, (0.05, -0.08, 0.3))
    return truth, shots(truth, 120, rng, noise=0.15)


def internal_errors(found: Detector, truth: Detector) -> np.ndarray:
    """Return (panel, 2) errors in the plane (px) without common shift, rotation and scale."""
    groups = groups_of(truth, 3)
    off = moves_between(truth, found, groups)
    modes = rigid_modes(groups, np.eye(3), np.zeros(3))[:, [0, 1, 5]]
    scale = np.array([np.append(g.axes @ [g.centre[0], g.centre[1], 0.0], [0, 0, 0]) for g in groups]).reshape(-1, 1)
    rows = (6 * np.arange(len(groups))[:, None] + [0, 1]).ravel()
    design = np.concatenate([modes, scale], axis=1)[rows]
    left = off.ravel()[rows] - design @ np.linalg.lstsq(design, off.ravel()[rows], rcond=None)[0]
    return left.reshape(-1, 2) / PIXEL


def test_displaced_panels_are_found(scene: tuple[Detector, list[CrystalSpots]]) -> None:
    truth, crystals = scene
    state = Metrology().refine(RECORDED, BEAM, crystals)
    assert state.converged, state.why
    enough = state.after[:, 1] >= 50
    before, after = internal_errors(RECORDED, truth)[enough], internal_errors(state.detector, truth)[enough]
    assert np.sqrt(np.mean(before**2)) > 0.6
    assert np.sqrt(np.mean(after**2)) < 0.15


def test_parts_add_up(scene: tuple[Detector, list[CrystalSpots]]) -> None:
    _, crystals = scene
    metrology = Metrology()
    state = metrology.begin(RECORDED, BEAM)
    whole = metrology.accumulate(state, crystals)
    parts = [metrology.accumulate(pickle.loads(pickle.dumps(state)), crystals[i : i + 50]) for i in (0, 50, 100)]
    together = metrology.combine(metrology.combine(parts[0], parts[1]), parts[2])
    for name, values in whole.items():
        assert together[name] == pytest.approx(values, rel=1e-9, abs=1e-6 * np.abs(values).max()), name


def test_too_few_crystals(scene: tuple[Detector, list[CrystalSpots]]) -> None:
    state = Metrology().refine(RECORDED, BEAM, scene[1][:5])
    assert state.finished
    assert not state.converged
    assert "5 lattices" in state.why
    assert state.detector is RECORDED


def test_panels_without_spots_follow_the_others(scene: tuple[Detector, list[CrystalSpots]]) -> None:
    _, crystals = scene
    bare = [
        replace(c, **{n: getattr(c, n)[c.panel != 5] for n in ("hkl", "panel", "fast", "slow", "var_fast", "var_slow")})
        for c in crystals
    ]
    state = Metrology().refine(RECORDED, BEAM, bare)
    assert state.converged, state.why
    assert any("q0a5 (0)" in note for note in state.notes)
    end = state.outcomes[-1]
    assert end.tied[5]
    assert end.tied.sum() == 1
    assert end.sigma[5, 0] > 5 * np.median(end.sigma[:, 0])


def test_levels_are_checked() -> None:
    with pytest.raises(ConfigError, match="levels 0 to 3"):
        Metrology(levels=(0, 4)).begin(RECORDED, BEAM)
    with pytest.raises(ConfigError, match="ascend"):
        Metrology(levels=(2, 1)).begin(RECORDED, BEAM)

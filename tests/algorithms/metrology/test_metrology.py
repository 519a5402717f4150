"""Metrology on spots traced to panels that are displaced."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.algorithms.metrology.simulated import (
    BEAM,
    PIXEL,
    Errors,
    cspad,
    displaced,
    errors_across_rays,
    errors_in_plane,
    internal_errors,
    shots,
)
from xfelproc.algorithms.metrology import CrystalSpots, Metrology
from xfelproc.errors import ConfigError
from xfelproc.geometry.hierarchy import apply_moves, groups_of
from xfelproc.models.experiment import Detector

RECORDED = cspad()
TURNED = Metrology(prediction="turn")
"""The spots are those of blocks that are turned."""


@pytest.fixture(scope="module")
def scene() -> tuple[Detector, list[CrystalSpots]]:
    rng = np.random.default_rng(11)
    truth = displaced(RECORDED, Errors(), rng, (0.05, -0.08, 0.3))
    return truth, shots(truth, 120, rng, noise=0.1)


def without_panel(crystal: CrystalSpots, panel: int) -> CrystalSpots:
    kept = crystal.panel != panel
    return replace(crystal, **{n: getattr(crystal, n)[kept] for n in ("hkl", "panel", "fast", "slow", "var_fast", "var_slow")})


def test_displaced_panels_are_found(scene: tuple[Detector, list[CrystalSpots]]) -> None:
    truth, crystals = scene
    state = TURNED.refine(RECORDED, BEAM, crystals)
    assert state.converged, state.why
    before, after = errors_in_plane(RECORDED, truth), errors_in_plane(state.detector, truth)
    assert np.sqrt(np.mean(before**2)) > 0.6
    assert np.sqrt(np.mean(after**2)) < 0.1
    assert np.sqrt(np.mean(errors_across_rays(state.detector, truth) ** 2)) < 0.02
    end = state.outcomes[-1]
    assert 0.7 < np.sqrt(np.mean((internal_errors(state.detector, truth) / end.sigma_internal) ** 2)) < 1.5
    assert 0.67 < np.sqrt(np.mean((end.half_difference / end.half_sigma) ** 2)) < 1.5


def test_how_reflections_diffract_is_found(scene: tuple[Detector, list[CrystalSpots]]) -> None:
    truth, crystals = scene
    states = [Metrology(prediction=name).refine(truth, BEAM, crystals[:40]) for name in ("auto", "turn", "point")]
    found, turned, extended = (state.steps[-1].rmsd for state in states)
    assert states[0].converged, states[0].why
    assert states[0].blend > 20.0
    assert found < 1.1 * turned
    assert found < 0.5 * extended


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
    state = TURNED.refine(RECORDED, BEAM, scene[1][:5])
    assert state.finished
    assert not state.converged
    assert "5 lattices" in state.why
    assert state.detector is RECORDED


def test_panels_without_spots_follow_the_others(scene: tuple[Detector, list[CrystalSpots]]) -> None:
    _, crystals = scene
    bare = [without_panel(c, 5) for c in crystals]
    state = TURNED.refine(RECORDED, BEAM, bare)
    assert state.converged, state.why
    assert any("q0a5 (0)" in note for note in state.notes)
    end = state.outcomes[-1]
    assert end.tied[5]
    assert end.tied.sum() == 1
    assert end.sigma[5, 0] > 5 * np.median(end.sigma[:, 0])


def test_a_panel_without_spots_stays_in_its_sensor() -> None:
    recorded, rng = cspad(n_quadrants=1), np.random.default_rng(4)
    sensors = groups_of(recorded, 2)
    truth = apply_moves(recorded, sensors, rng.normal(size=(len(sensors), 6)) * [0.1, 0.1, 0.03, 1e-3, 1e-3, 5e-3])
    bare = [without_panel(c, 5) for c in shots(truth, 40, rng, noise=0.1, spots=(40, 80))]
    state = TURNED.refine(recorded, BEAM, bare)
    end = state.outcomes[-1]
    assert end.tied.sum() == 1
    error = errors_across_rays(state.detector, truth)
    assert np.abs(errors_across_rays(recorded, truth)[5]).max() > 0.5
    assert np.abs(error[5]).max() < 0.15
    assert np.abs(error[5] / (end.sigma_ray[5] / PIXEL)).max() < 3.0


@pytest.mark.filterwarnings("error")
def test_without_a_prior_a_panel_that_one_half_does_not_tell_follows(scene: tuple[Detector, list[CrystalSpots]]) -> None:
    kept = [c if c.key & 1 else without_panel(c, 5) for c in scene[1][:60]]
    state = Metrology(prediction="turn", restraint="none").refine(RECORDED, BEAM, kept)
    assert state.converged, state.why
    assert any("q0a5" in note for note in state.notes)
    assert state.outcomes[-1].tied.nonzero()[0].tolist() == [5]


def test_levels_are_checked() -> None:
    with pytest.raises(ConfigError, match="levels 0 to 3"):
        Metrology(levels=(0, 4)).begin(RECORDED, BEAM)
    with pytest.raises(ConfigError, match="ascend"):
        Metrology(levels=(2, 1)).begin(RECORDED, BEAM)


def test_a_step_that_raises_the_loss_is_shortened_and_then_given_up(scene: tuple[Detector, list[CrystalSpots]]) -> None:
    metrology = Metrology(outliers="none", sigma_psi=0.1, prediction="turn")
    state = metrology.begin(RECORDED, BEAM)
    partial = metrology.accumulate(state, scene[1])
    worse = {**partial, "totals": partial["totals"] * [1, 10, *[1] * 12]}
    state = metrology.advance(state, partial)
    first = state.step
    state = metrology.advance(state, worse)
    assert state.step == pytest.approx(0.25 * first)
    while not state.finished:
        state = metrology.advance(state, worse)
    assert not state.converged
    assert "no step brings the loss down at level 0" in state.why
    assert state.detector is RECORDED


def test_a_move_out_of_proportion_ends_it(scene: tuple[Detector, list[CrystalSpots]]) -> None:
    state = Metrology(max_shift=0.01).refine(RECORDED, BEAM, scene[1])
    assert state.finished
    assert "max_shift" in state.why
    assert state.detector is RECORDED


def test_shared_movements_leave_groups_in_the_plane(scene: tuple[Detector, list[CrystalSpots]]) -> None:
    state = Metrology(levels=(0, 3), distance="shared", tilts="fixed").refine(RECORDED, BEAM, scene[1])
    assert state.converged, state.why
    whole, panels = state.outcomes
    assert np.all(whole.moves[:, 3:5] == pytest.approx(0.0, abs=1e-9))
    assert abs(whole.moves[0, 2]) > 0.01
    assert np.abs(panels.moves[:, 2:5]).max() < 1e-9


def test_the_optimum_of_a_lattice_does_not_hang_on_where_it_starts(scene: tuple[Detector, list[CrystalSpots]]) -> None:
    truth, crystals = scene
    rng = np.random.default_rng(8)
    metrology = Metrology(prediction="turn", sigma_psi=0.1)
    state = replace(metrology.begin(truth, BEAM), bounds=np.full(65, 4.7))
    partials = []
    spoilt = []
    for c in crystals[:30]:
        off = np.where(rng.random(len(c.panel)) < 0.2, 3.0, 0.0) * rng.normal(size=(2, len(c.panel)))
        spoilt.append(replace(c, fast=c.fast + off[0], slow=c.slow + off[1]))
    for turns in 0.1 * rng.normal(size=(2, 30, 3)):
        starts = [replace(c, A=Rotation.from_rotvec(t, degrees=True).as_matrix() @ c.A) for c, t in zip(spoilt, turns, strict=True)]
        partials.append(metrology.accumulate(state, starts))
    for name in ("totals", "gradient"):
        a, b = (partial[name] for partial in partials)
        assert a == pytest.approx(b, rel=1e-3, abs=1e-3 * np.abs(a).max()), name

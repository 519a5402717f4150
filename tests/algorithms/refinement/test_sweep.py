"""Sweeps refined from wrong models come back to the true ones, with uncertainties that hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.geometry.test_rotation import KAPPA, sweep_of
from xfelproc.algorithms.refinement.sweep import RefineSweep, SweepObservations, _moved_detector
from xfelproc.errors import DataError
from xfelproc.geometry.cells import misorientation, rotation_matrix
from xfelproc.geometry.reduction import cell_of
from xfelproc.geometry.rotation import Sweep
from xfelproc.models.experiment import Goniometer

SIGMA = np.array([0.1, 0.15, 0.05])  # px, px, frames


def observed(sweep: Sweep, seed: int = 0, outliers: int = 0) -> SweepObservations:
    random = np.random.default_rng(seed)
    found = sweep.predict(3.0)
    found = found.select(np.abs(found["zeta"]) > 0.1)
    noise = random.normal(size=(len(found), 3)) * SIGMA
    noise[:outliers] += random.uniform(3, 9, (outliers, 3))
    variance = np.tile(SIGMA**2, (len(found), 1))
    seen = np.column_stack([found["fast"], found["slow"], found["z"]]) + noise
    return SweepObservations(found["hkl"], found["panel"], seen[:, 0], seen[:, 1], seen[:, 2], variance)


def off(sweep: Sweep, turn: float = 0.1, strain: float = 0.002, shift: float = 0.2) -> Sweep:
    a = rotation_matrix(np.radians([turn, -turn, 0.5 * turn])) @ sweep.matrices[0] @ np.diag([1 + strain, 1.0, 1 - strain])
    detector = _moved_detector(sweep.detector, np.array([shift, -shift, shift]), np.radians([0.1, -0.2, 0.15]) * shift / 0.2)
    return replace(sweep, matrices=a[None], detector=detector)


def test_comes_back_with_true_uncertainties() -> None:
    true = sweep_of(KAPPA, (0.0, 0.5), 80)
    refined = RefineSweep().refine([observed(true, outliers=30)], [off(true)], "P 1")
    assert refined.converged
    assert not refined.used[0][:30].any()
    assert refined.used[0][30:].mean() > 0.999
    np.testing.assert_allclose(refined.rmsd, SIGMA, rtol=0.1)
    found = refined.sweeps[0]
    turn = misorientation(found.matrices[0], true.matrices[0])
    assert turn < 4 * np.linalg.norm(refined.turn_sigma)
    assert turn < 0.02
    cells = [cell_of(np.linalg.inv(s.matrices[0])) for s in (found, true)]
    np.testing.assert_allclose(cells[0], cells[1], rtol=1e-3)
    moved = np.abs(found.detector.d_matrices - true.detector.d_matrices).max()
    assert moved < 0.05 * np.abs(off(true).detector.d_matrices - true.detector.d_matrices).max() + 0.02


def test_sweeps_of_one_crystal() -> None:
    """Two settings of a goniometer, one detector: what one alone leaves open, both fix."""
    other = Goniometer(KAPPA.axes, (35.0, 40.0, 12.0), KAPPA.names, KAPPA.scan_axis)
    true = [sweep_of(KAPPA, (0.0, 0.5)), sweep_of(other, (0.0, 0.5))]
    seen = [observed(sweep, seed) for seed, sweep in enumerate(true)]
    start = off(true[0])
    wrong = [start, replace(true[1], matrices=start.matrices, detector=start.detector)]
    refined = RefineSweep().refine(seen, wrong, "P 1")
    assert refined.converged
    assert refined.sweeps[0].detector == refined.sweeps[1].detector
    alone = RefineSweep().refine(seen[:1], wrong[:1], "P 1")
    assert np.linalg.norm(refined.turn_sigma) < np.linalg.norm(alone.turn_sigma)
    assert misorientation(refined.sweeps[0].matrices[0], true[0].matrices[0]) < 0.01


def test_a_crystal_that_slips() -> None:
    still = sweep_of(KAPPA, (0.0, 0.5), 120)
    turns = [rotation_matrix(np.radians([0.2 * t, -0.1 * t * t, 0.15 * np.sin(3 * t)])) for t in np.linspace(0, 1, 25)]
    true = replace(still, matrices=np.array(turns) @ still.matrices[0])
    seen = observed(true)
    fixed = RefineSweep().refine([seen], [off(still)], "P 1")
    moving = RefineSweep(knots=5.0).refine([seen], [off(still)], "P 1")
    assert moving.rmsd[0] < 0.8 * fixed.rmsd[0]
    np.testing.assert_allclose(moving.rmsd, SIGMA, rtol=0.1)
    places = np.linspace(0, 1, len(moving.sweeps[0].matrices))
    for place, matrix in zip(places, moving.sweeps[0].matrices, strict=True):
        assert misorientation(matrix, true.matrices[round(24 * place)]) < 0.05


def test_symmetry_is_kept() -> None:
    true = sweep_of(KAPPA, (0.0, 0.5))
    refined = RefineSweep(detector="none").refine([observed(true)], [true], "P 2")
    cell = cell_of(np.linalg.inv(refined.sweeps[0].matrices[0]))
    assert cell[3] == pytest.approx(90.0, abs=1e-6)
    assert cell[5] == pytest.approx(90.0, abs=1e-6)


def test_too_few_spots_are_told() -> None:
    true = sweep_of(KAPPA, (0.0, 0.5))
    seen = observed(true)
    few = SweepObservations(*(getattr(seen, name)[:10] for name in ("hkl", "panel", "fast", "slow", "z", "variance")))
    with pytest.raises(DataError, match="too few to refine 15 parameters"):
        RefineSweep().refine([few], [true], "P 1")


def test_a_wrong_setting_is_found() -> None:
    other = Goniometer(KAPPA.axes, (35.0, 40.0, 12.0), KAPPA.names, KAPPA.scan_axis)
    true = [sweep_of(KAPPA, (0.0, 0.5)), sweep_of(other, (0.0, 0.5))]
    slipped = replace(true[1], matrices=rotation_matrix(np.radians([0.3, -0.2, 0.1])) @ true[1].matrices)
    seen = [observed(true[0]), observed(slipped, 1)]
    one = RefineSweep(detector="none").refine(seen, true, "P 1")
    two = RefineSweep(detector="none", settings=1.0).refine(seen, true, "P 1")
    np.testing.assert_allclose(two.rmsd, SIGMA, rtol=0.1)
    assert one.rmsd[0] > 1.5 * two.rmsd[0]
    assert misorientation(two.sweeps[1].matrices[0], slipped.matrices[0]) < 0.02

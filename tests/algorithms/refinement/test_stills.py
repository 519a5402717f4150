from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from xfelproc.algorithms.refinement import Mosaicity, Refine
from xfelproc.geometry.cells import b_matrix, misorientation, rotation_matrix
from xfelproc.geometry.detector import pixel_to_q, ray_to_pixel
from xfelproc.geometry.prediction import predict_still
from xfelproc.models.experiment import Beam, Crystal, Detector, Panel, as_matrix
from xfelproc.models.frames import IndexedLattice, RefinedLattice
from xfelproc.models.tables import SpotTable

DETECTOR = Detector(
    (Panel("p", (1, 0, 0), (0, -1, 0), (-75.0, 75.0, -95.0), (0.075, 0.075), (2000, 2000), thickness=0.45, mu=3.6),)
)
BEAM = Beam(1.3)
CELL = (79.1, 79.1, 38.0, 90.0, 90.0, 90.0)


def simulate(seed: int, n: int = 150, noise: float = 1.0, false: int = 0) -> tuple[Crystal, SpotTable]:
    """Return a crystal and spots at its predicted positions, scattered by 1/SNR px across and 1.5/SNR px along the radius."""
    rng = np.random.default_rng(seed)
    crystal = Crystal(as_matrix(rotation_matrix(rng.normal(size=3)) @ b_matrix(CELL)), "P 43 21 2", 1500.0, 0.02)
    table = predict_still(crystal, DETECTOR, BEAM, 2.0)
    weight = np.exp(-3 * (table["excitation"] * 1500) ** 2)
    rows = rng.choice(len(table), min(n, len(table)), replace=False, p=weight / weight.sum())
    table = table.select(rows)
    snr = rng.uniform(5, 40, len(table))
    x, y = table["fast"] - 1000.0, table["slow"] - 1000.0
    radius = np.hypot(x, y)
    along, across = noise * 1.5 / snr * rng.normal(size=len(x)), noise / snr * rng.normal(size=len(x))
    fast = table["fast"] + (along * x - across * y) / radius
    slow = table["slow"] + (along * y + across * x) / radius
    fast = np.concatenate([fast, rng.uniform(0, 2000, false)])
    slow = np.concatenate([slow, rng.uniform(0, 2000, false)])
    snr = np.concatenate([snr, rng.uniform(5, 40, false)])
    return crystal, SpotTable(None, panel=np.zeros(len(fast)), fast=fast, slow=slow, snr=snr)


def start_from(crystal: Crystal, seed: int, angle: float = 0.2, strain: float = 0.0) -> IndexedLattice:
    turn = np.random.default_rng(seed).normal(size=3)
    a = rotation_matrix(np.radians(angle) * turn / np.linalg.norm(turn)) @ crystal.a_matrix * (1 + strain)
    lattice = Crystal(as_matrix(a), crystal.space_group)
    return IndexedLattice(lattice, np.zeros(0, np.int64), np.zeros((0, 3), np.int32), -20.0)


def check_counts(result: RefinedLattice, spots: SpotTable) -> None:
    """The indexed table holds exactly the spots within 0.3 of an index, and the RMSD is over all of them."""
    q = pixel_to_q(result.detector, BEAM, spots["panel"], spots["fast"], spots["slow"])
    index = q @ np.linalg.inv(result.crystal.a_matrix).T
    inside = np.all(np.abs(index - np.rint(index)) <= 0.3, axis=1)
    assert np.array_equal(result.indexed["spot"], np.flatnonzero(inside))
    assert np.array_equal(result.indexed["hkl"], np.rint(index[inside]))
    rows = result.indexed["spot"]
    miss = (result.indexed["fast_calc"] - spots["fast"][rows]) ** 2 + (result.indexed["slow_calc"] - spots["slow"][rows]) ** 2
    assert result.rmsd == pytest.approx(np.sqrt(miss.mean()))


def test_from_a_perturbed_lattice() -> None:
    errors = []
    for seed in range(12):
        crystal, spots = simulate(seed)
        result = Refine().refine(start_from(crystal, seed, 0.2, 0.003), spots, DETECTOR, BEAM)
        assert result.accepted
        assert result.reason == ""
        check_counts(result, spots)
        assert len(result.indexed) >= 148
        assert result.crystal.cell == pytest.approx(CELL, rel=1e-3)
        assert result.crystal.cell[0] == pytest.approx(result.crystal.cell[1], abs=1e-9)
        errors.append(misorientation(result.crystal.a_matrix, crystal.a_matrix))
        assert result.log10_p == -20.0
    assert np.median(errors) < 0.003
    assert np.max(errors) < 0.01


def test_false_spots_are_not_used() -> None:
    crystal, spots = simulate(5, 100, false=60)
    result = Refine().refine(start_from(crystal, 5), spots, DETECTOR, BEAM)
    check_counts(result, spots)
    assert misorientation(result.crystal.a_matrix, crystal.a_matrix) < 0.01
    false = result.indexed["spot"] >= 100
    assert result.indexed["used"][~false].mean() > 0.92
    assert false.sum() > 0
    assert result.indexed["used"][false].mean() < 0.3


@pytest.mark.parametrize(("mode", "shift"), [("xy", (0.03, -0.02, 0.0)), ("xyz", (0.03, -0.02, 0.15))])
def test_detector_shift(mode: str, shift: tuple[float, float, float]) -> None:
    crystal, spots = simulate(7, 250, noise=0.2)
    wrong = DETECTOR.shifted((-shift[0], -shift[1], -shift[2]))
    refine = Refine(detector=mode, shift_restraint=0.5, cell_restraint=1e-4 if mode == "xyz" else 0.02)
    result = refine.refine(start_from(crystal, 7, 0.1), spots, wrong, BEAM)
    assert result.shift == pytest.approx(shift, abs=0.004 if mode == "xy" else 0.02)
    assert result.detector.panels[0].origin == pytest.approx(DETECTOR.panels[0].origin, abs=0.02)
    check_counts(result, spots)


def test_detector_tilt() -> None:
    crystal, spots = simulate(7, 250, noise=0.2)
    wrong = DETECTOR.moved((0.03, -0.02, 0.15), (0.1, -0.3))
    refine = Refine(detector="tilt", shift_restraint=0.5, cell_restraint=1e-4)
    result = refine.refine(start_from(crystal, 7, 0.1), spots, wrong, BEAM)
    assert result.tilt == pytest.approx((-0.1, 0.3), abs=0.02)
    for axis in ("origin", "fast_axis", "slow_axis"):
        ours, truth = getattr(result.detector.panels[0], axis), getattr(DETECTOR.panels[0], axis)
        assert ours == pytest.approx(truth, abs=0.03 if axis == "origin" else 4e-4)
    check_counts(result, spots)
    again = refine.refine(replace(start_from(crystal, 7, 0.1), shift=result.shift, tilt=result.tilt), spots, wrong, BEAM)
    assert again.tilt == pytest.approx(result.tilt, abs=1e-3)
    assert again.shift == pytest.approx(result.shift, abs=1e-2)


def test_pulls() -> None:
    """With known noise, the least-squares step is distributed as the normal matrix says: tested on the cell's edge."""
    edges = []
    for seed in range(40):
        crystal, spots = simulate(100 + seed, 120)
        edges.append(Refine(cell_restraint=1.0).refine(start_from(crystal, seed, 0.05), spots, DETECTOR, BEAM).crystal.cell[0])
    spread = np.std(edges)
    assert abs(np.mean(edges) - 79.1) < 4 * spread / np.sqrt(40)
    assert spread < 0.01


def test_blocks_that_turn_about_an_axis() -> None:
    """Each spot comes from the blocks that bring it on the sphere: with turns about one axis its position tells by how much."""
    rng = np.random.default_rng(4)
    crystal = Crystal(as_matrix(rotation_matrix(rng.normal(size=3)) @ b_matrix(CELL)), "P 43 21 2", 3000.0, 0.2)
    axis = np.array([0.48, -0.6, 0.64])
    table = predict_still(crystal, DETECTOR, BEAM, 2.2)
    q = table["hkl"] @ crystal.a_matrix.T
    s1 = q + BEAM.s0
    turn = -table["excitation"] * np.linalg.norm(s1, axis=1) / np.einsum("ij,ij->i", np.cross(axis, q), s1)
    rows = rng.choice(np.flatnonzero(np.abs(turn) < np.radians(0.25)), 150, replace=False)
    on_sphere = np.array([rotation_matrix(t * axis) @ v for t, v in zip(turn[rows], q[rows], strict=True)])
    _, position = ray_to_pixel(DETECTOR, on_sphere + BEAM.s0)
    position += 0.1 * rng.normal(size=position.shape)
    spots = SpotTable(None, panel=np.zeros(150), fast=position[:, 0], slow=position[:, 1], snr=np.full(150, 15.0))
    plain = Refine(turns=False).refine(start_from(crystal, 4, 0.05), spots, DETECTOR, BEAM)
    turned = Refine().refine(start_from(crystal, 4, 0.05), spots, DETECTOR, BEAM)
    assert plain.crystal.mosaic_covariance is None
    assert plain.rmsd > 1.0
    assert turned.rmsd < 0.25 * plain.rmsd
    xx, xy, xz, yy, yz, zz = turned.crystal.mosaic_covariance
    _, vectors = np.linalg.eigh([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    assert abs(vectors[:, 2] @ axis) > 0.98
    check_counts(turned, spots)
    again = predict_still(turned.crystal, DETECTOR, BEAM, 2.2, 2.0)
    where = {tuple(h): (x, y) for h, x, y in zip(again["hkl"].tolist(), again["fast"], again["slow"], strict=True)}
    for h, x, y in zip(turned.indexed["hkl"].tolist(), turned.indexed["fast_calc"], turned.indexed["slow_calc"], strict=True):
        assert where.get(tuple(h), (x, y)) == pytest.approx((x, y), abs=1e-6)


def test_rejection_has_a_reason() -> None:
    crystal, spots = simulate(3, 60)
    few = Refine(min_spots=70).refine(start_from(crystal, 3), spots, DETECTOR, BEAM)
    assert not few.accepted
    assert "refine.min_spots 70" in few.reason
    noisy = Refine(max_rmsd=0.01).refine(start_from(crystal, 3), spots, DETECTOR, BEAM)
    assert not noisy.accepted
    assert "refine.max_rmsd" in noisy.reason
    empty = Refine().refine(start_from(crystal, 3), SpotTable(0), DETECTOR, BEAM)
    assert not empty.accepted
    assert len(empty.indexed) == 0


def test_mosaicity_of_the_spots() -> None:
    rng = np.random.default_rng(0)
    d = 1 / np.sqrt(rng.uniform(1 / 20**2, 1 / 1.8**2, 5000))
    half = np.degrees(d / 1500 + np.radians(0.05))
    size, mosaic = Mosaicity().fit(rng.uniform(-1, 1, len(d)) * half, d, 1.3, 0.0)
    fitted = np.degrees(d / size) + mosaic
    assert np.median(fitted / half) == pytest.approx(0.79, abs=0.03)  # soft edges: the half-width at half maximum lies inside
    assert np.std(fitted / half) < 0.05
    few = Mosaicity().fit(np.array([0.01, -0.02, 0.015]), np.array([4.0, 3.0, 5.0]), 1.3, 0.0)
    assert 100 <= few[0] <= 20000
    assert 0.001 <= few[1] <= 2


def test_parameters() -> None:
    with pytest.raises(ValidationError):
        Refine(tolerance=0.6)
    with pytest.raises(ValidationError):
        Refine.model_validate({"detecter": "xy"})


def test_lattices_of_a_frame_share_out_the_spots() -> None:
    first, second = simulate(11), simulate(12)
    spots = SpotTable.concatenate([first[1], second[1]])
    refine = Refine()
    alone = [refine.refine(start_from(crystal, 5), spots, DETECTOR, BEAM) for crystal, _ in (first, second)]
    assert np.intersect1d(alone[0].indexed["spot"], alone[1].indexed["spot"]).size > 0
    shared = refine.separate(alone, spots, DETECTOR, BEAM)
    assert np.intersect1d(shared[0].indexed["spot"], shared[1].indexed["spot"]).size == 0
    assert shared[0].rmsd < 0.5 * alone[0].rmsd
    assert np.count_nonzero(shared[1].indexed["spot"] >= len(first[1])) > 0.95 * len(second[1])
    for lattice, (crystal, _) in zip(shared, (first, second), strict=True):
        assert misorientation(lattice.crystal.a_matrix, crystal.a_matrix) < 0.01


def test_a_lattice_found_twice_is_one() -> None:
    crystal, spots = simulate(13)
    refine = Refine()
    twice = [refine.refine(start_from(crystal, seed, 0.1), spots, DETECTOR, BEAM) for seed in (1, 2)]
    assert len(refine.separate(twice, spots, DETECTOR, BEAM)) == 1

"""Simulated observations are what they claim to be."""

import gemmi
import numpy as np
import pytest

from xfelproc.algorithms.merging.reduction import to_asu
from xfelproc.simulation.observations import ObservationSimulator, SimulatedObservations


def simulated(n: int = 40, first: int = 0, **settings: object) -> tuple[ObservationSimulator, SimulatedObservations]:
    simulator = ObservationSimulator.of(**({"d_min": 2.6} | settings))
    return simulator, simulator.simulate(first, first + n)


def test_indices_reduce_as_gemmi_reduces_them() -> None:
    simulator, found = simulated(10)
    reduced, isym = to_asu(found.hkl.astype(np.int32), gemmi.SpaceGroup("P 43 21 2"))
    np.testing.assert_array_equal(reduced, simulator.structure.hkl[found.number])
    np.testing.assert_array_equal(isym, found.isym)


def test_every_reflection_near_the_sphere_is_predicted() -> None:
    simulator, found = simulated(1, d_max=25.0)
    A, wavelength = found.crystals.A[0], found.crystals.wavelength[0]
    reach = simulator.structure.reach
    grid = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    grid = grid[simulator.structure.number[tuple((grid + reach).T)] >= 0]
    q = grid @ A.T
    q2 = np.sum(q**2, axis=1)
    error = np.linalg.norm(q - np.array([0, 0, 1 / wavelength]), axis=1) - 1 / wavelength
    s = simulator.settings
    near = (error**2 <= s.reach**2 * (s.width**2 + s.mosaicity**2 * q2)) & (q2 <= s.d_min**-2) & (q2 >= s.d_max**-2)
    assert {tuple(h) for h in found.hkl.tolist()} == {tuple(h) for h in grid[near].tolist()}
    assert len(found) == np.count_nonzero(near)
    order = {tuple(h): e for h, e in zip(grid.tolist(), error.tolist(), strict=True)}
    np.testing.assert_allclose(found.excitation, [order[tuple(h)] for h in found.hkl.tolist()], atol=1e-9)


def test_counts_scatter_as_stated() -> None:
    _, found = simulated(100)
    variance = found.expected + found.crystals.background[found.lattice]
    chi = (found.intensity - found.expected) / np.sqrt(variance)
    assert np.mean(chi) == pytest.approx(0.0, abs=0.02)
    assert np.mean(chi**2) == pytest.approx(1.0, abs=0.03)
    np.testing.assert_allclose(np.mean(found.sigma**2), np.mean(variance), rtol=0.02)


def test_the_expected_is_scale_times_b_times_partiality_times_the_truth() -> None:
    simulator, found = simulated(20, b_spread=5.0, anomalous=0.1, keep_area=False)
    s, crystals, structure = simulator.settings, found.crystals, simulator.structure
    row = found.lattice
    q2 = 1.0 / found.d.astype(np.float64) ** 2
    w2 = crystals.width[row] ** 2 + (s.mosaicity**2) * q2
    minus = np.where(structure.centric[found.number], 0, (found.isym + 1) % 2)
    full = structure.intensity[0, minus, found.number]
    p = np.exp(-0.5 * found.excitation.astype(np.float64) ** 2 / w2)
    expected = crystals.scale[row] * np.exp(-0.5 * crystals.b_factor[row] * q2) * full * p * found.polarization
    np.testing.assert_allclose(found.expected, expected, rtol=1e-4)
    np.testing.assert_allclose(found.partiality, p, rtol=1e-4)


def test_lattices_do_not_depend_on_the_stretch_that_they_are_made_in() -> None:
    simulator, whole = simulated(6, outlier_lattices=0.3)
    part = simulator.simulate(4, 6)
    rows = slice(whole.starts[4], whole.starts[6])
    np.testing.assert_array_equal(part.intensity, whole.intensity[rows])
    np.testing.assert_array_equal(part.hkl, whole.hkl[rows])
    np.testing.assert_array_equal(part.crystals.outlier, whole.crystals.outlier[4:])


def test_a_wrong_setting_states_other_indices_of_the_same_photons() -> None:
    settings = {"space_group": "P 63", "cell": (90.0, 90.0, 60.0, 90.0, 90.0, 120.0), "seed": 3}
    simulator, right = simulated(30, **settings)
    _, mixed = simulated(30, settings=("h,k,l", "k,h,-l"), **settings)
    swapped = mixed.crystals.setting == 1
    assert 5 < np.count_nonzero(swapped) < 25
    i = int(np.flatnonzero(swapped)[0])
    one, two = (slice(found.starts[i], found.starts[i + 1]) for found in (right, mixed))
    back = mixed.hkl[two][:, [1, 0, 2]] * [1, 1, -1]
    assert {tuple(h) for h in back.tolist()} == {tuple(h) for h in right.hkl[one].tolist()}
    same = {tuple(h): e for h, e in zip(right.hkl[one].tolist(), right.expected[one].tolist(), strict=True)}
    np.testing.assert_allclose(mixed.expected[two], [same[tuple(h)] for h in back.tolist()], rtol=1e-5)
    assert simulator.structure.number.min() == -1


def test_bijvoet_ratio_and_pump() -> None:
    simulator = ObservationSimulator.of(anomalous=0.05, pump_change=0.2, d_min=2.6)
    off, on = simulator.structure.intensity
    acentric = ~simulator.structure.centric
    amplitude = np.sqrt(off)
    ratio = np.abs(amplitude[0] - amplitude[1])[acentric].mean() / amplitude[:, acentric].mean()
    assert ratio == pytest.approx(0.05, rel=0.05)
    assert np.all(off[0] == off[1], where=~acentric)
    assert np.std(on / off) == pytest.approx(0.2, rel=0.05)


def test_planted_errors_widen_the_scatter() -> None:
    _, found = simulated(100, error_intensity=0.1, error_partiality=0.02, sigma_factor=0.5, photons=2e4)
    whole = found.expected / found.partiality
    counted = found.expected + found.crystals.background[found.lattice]
    variance = counted + (0.1 * found.expected) ** 2 + (0.02 * whole) ** 2
    assert np.mean((found.intensity - found.expected) ** 2 / variance) == pytest.approx(1.0, abs=0.05)
    assert np.median(found.sigma**2 / counted) == pytest.approx(0.25, rel=0.05)


def test_outliers_and_misset_and_table() -> None:
    _, found = simulated(30, outlier_lattices=0.5, outlier_observations=0.02, misset=0.02, cell_spread=0.001, cell_known=False)
    assert 5 < np.count_nonzero(found.crystals.outlier) < 25
    assert found.outlier.mean() == pytest.approx(0.02, abs=0.01)
    table, block = found.table(), found.block()
    assert len(table) == len(found) == len(block["group"])
    assert not np.allclose(found.crystals.A, found.crystals.true_A, atol=1e-6)
    np.testing.assert_allclose(
        block["variance_fixed"] + block["variance_gain"] * np.maximum(block["intensity"], 0),
        (found.sigma / found.polarization) ** 2,
        rtol=1e-3,
    )

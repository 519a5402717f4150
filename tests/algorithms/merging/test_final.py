"""Merged intensities from final sums: the same as by definition from the rows, and their standard deviations are true."""

import gemmi
import numpy as np
import pytest

from xfelproc.algorithms.merging import Merge, prepare
from xfelproc.algorithms.merging.final import ALL, MINUS, PLUS, chi_squared, merged_rows, normal_probability, spread_of_means
from xfelproc.algorithms.merging.in_memory import block_in_memory, scale_blocks
from xfelproc.algorithms.merging.lattice_block import LatticeFacts
from xfelproc.algorithms.merging.output import output_block
from xfelproc.algorithms.merging.reduction import pack
from xfelproc.algorithms.merging.reference import add_sums
from xfelproc.kernels.final_sums import Z_BINS
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.simulation.observations import ObservationSimulator

SETTINGS = Merge(max_cycles=5)


@pytest.fixture(scope="module")
def merged():
    simulator = ObservationSimulator.of(d_min=2.6, misset=0.003, error_intensity=0.05, anomalous=0.05)
    found = simulator.simulate(0, 250)
    group, cell, n = gemmi.SpaceGroup("P 43 21 2"), simulator.settings.cell, 250
    facts = LatticeFacts.unknown(n, cell)
    block, state = block_in_memory(prepare(found.table(), found.crystals.half, SETTINGS), facts, cell, group, SETTINGS)
    result = scale_blocks([block], state)
    rows, _, sums = output_block(block, result.models[0], result.state)
    return simulator, result.state, block, result.models[0], rows, sums, merged_rows(sums, result.state)


def test_means_are_those_of_the_rows(merged):
    _, _, _, _, table, _, found = merged
    kept = table.select(table["flags"] & int(ReflectionFlag.OUTLIER) == 0)
    place = {int(key): i for i, key in enumerate(pack(found["hkl"]))}
    row = np.array([place[int(key)] for key in pack(kept["hkl_asu"])])
    plus = (kept["isym"] % 2 == 1) | found["centric"][row]
    n = len(found["hkl"])
    for name, some in (("intensity", plus | True), ("intensity_plus", plus), ("intensity_minus", ~plus)):
        weight = np.bincount(row[some], 1.0 / kept["sigma"][some] ** 2, n)
        with np.errstate(invalid="ignore"):
            mean = np.bincount(row[some], kept["intensity"][some] / kept["sigma"][some] ** 2, n) / weight
        np.testing.assert_allclose(found[name], mean, rtol=1e-5)
    for half in (0, 1):
        some = kept["half"] == half
        weight = np.bincount(row[some], 1.0 / kept["sigma"][some] ** 2, n)
        with np.errstate(invalid="ignore"):
            mean = np.bincount(row[some], kept["intensity"][some] / kept["sigma"][some] ** 2, n) / weight
        np.testing.assert_allclose(found[f"half{half + 1}"], mean, rtol=1e-5)
        np.testing.assert_array_equal(found[f"n_half{half + 1}"], np.bincount(row[some], minlength=n))
    np.testing.assert_array_equal(found["multiplicity"], np.bincount(row, minlength=n))
    chi2 = np.bincount(row, ((kept["intensity"] - found["intensity"][row]) / kept["sigma"]) ** 2, n)
    np.testing.assert_allclose(found["chi2"], chi2, rtol=1e-3, atol=1e-3)


def test_standard_deviations_are_true(merged):
    simulator, _, _, _, _, _, found = merged
    place = {tuple(h): i for i, h in enumerate(simulator.structure.hkl.tolist())}
    true = simulator.structure.mean[[place[tuple(h)] for h in found["hkl"].tolist()]]
    weight = 1.0 / found["sigma"] ** 2
    scale = np.sum(weight * found["intensity"] * true) / np.sum(weight * true**2)
    z = (found["intensity"] - scale * true) / found["sigma"]
    assert np.mean(z**2) == pytest.approx(1.0, abs=0.15)


def test_sums_add_up(merged):
    _, state, block, models, _, sums, _ = merged
    parts = [np.arange(100), np.arange(100, 250)]
    apart = [output_block(block.select_lattices(rows), models.select(rows), state)[2] for rows in parts]
    joined = add_sums(*apart)
    for name, values in sums.items():
        np.testing.assert_allclose(joined[name], values, rtol=1e-9, err_msg=name)


def test_the_control_does_not_correlate(merged):
    _, _, _, _, _, _, found = merged
    d = np.linalg.norm(found["hkl"] / [79.1, 79.1, 38.0], axis=1)
    shells = np.array_split(np.argsort(d), 10)
    both = np.isfinite(found["control"]).all(axis=1)
    cc = [np.corrcoef(found["control"][rows[both[rows]]].T)[0, 1] for rows in shells]
    assert np.mean(cc) < 0.15


@pytest.mark.parametrize("difference", [0.0, 30.0])
def test_spread_is_that_of_the_observations(difference):
    rng = np.random.default_rng(4)
    n, each = 4000, 8
    for inflation in (0.5, 1.0, 4.0):
        weight = rng.uniform(0.5, 2.0, (n, each))
        value = 10.0 + rng.standard_normal((n, each)) * np.sqrt(inflation / weight)
        value[:, 4:] += difference  # of the Friedel mates
        moments, squares = np.zeros((n, 3)), np.zeros((n, 2, 3))
        moments[:, 0] = np.sum(weight * value**2, axis=1)
        quarters = np.array_split(np.arange(each), 4)
        for sign, rows in enumerate((slice(0, 4), slice(4, 8))):
            for i in range(3):
                squares[:, sign, i] = np.sum((weight**2 * value**i)[:, rows], axis=1)
        one = [np.stack([a[:, q].sum(axis=1) for q in quarters], axis=1) for a in (weight, weight * value)]
        sums = {"weight": one[0], "weighted": one[1], "moments": moments, "squares": squares, "count": np.full((n, 4), 2)}
        inverse_d2 = rng.uniform(0.01, 0.1, n)
        assert spread_of_means(sums, inverse_d2, (PLUS, MINUS)).mean() == pytest.approx(inflation, rel=0.1)
        together = spread_of_means(sums, inverse_d2, (ALL,)).mean()
        assert together == pytest.approx(inflation, rel=0.1) if difference == 0 else together > 2.0 * inflation
        if difference == 0:
            assert chi_squared(sums).mean() == pytest.approx(inflation * (each - 1), rel=0.05)


def test_normal_probability_of_normal_deviations_is_a_straight_line():
    z = np.random.default_rng(3).standard_normal(20000)
    counts = np.histogram(z, bins=Z_BINS, range=(-8.0, 8.0))[0]
    expected, found = normal_probability(counts)
    inside = np.abs(expected) < 2.0
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.06)
    nothing, _ = normal_probability(np.zeros(Z_BINS, dtype=np.int64))
    assert len(nothing) == 0

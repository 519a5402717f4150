"""Merged intensities from final sums: the same as by definition from the rows, and their standard deviations are true."""

from dataclasses import replace

import gemmi
import numpy as np
import pytest

from xfelproc.algorithms.merging import Merge, prepare
from xfelproc.algorithms.merging.final import ALL, MINUS, PLUS, chi_squared, merged_rows, normal_probability, spread_of_means
from xfelproc.algorithms.merging.in_memory import block_in_memory, scale_blocks
from xfelproc.algorithms.merging.lattice_block import LatticeFacts
from xfelproc.algorithms.merging.output import end_of_block, output_block
from xfelproc.algorithms.merging.reduction import pack
from xfelproc.algorithms.merging.reference import add_sums
from xfelproc.io.exchange.mtz_pieces import unmerged_rows
from xfelproc.kernels.final_sums import Z_BINS
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.simulation.observations import ObservationSimulator

SETTINGS = Merge(max_cycles=5)


def scaled(simulator, n):
    """Return the last state, block, models, rows, sums and merged rows of n simulated lattices."""
    found = simulator.simulate(0, n)
    group, cell, crystals = gemmi.SpaceGroup(simulator.settings.space_group), simulator.settings.cell, found.crystals
    facts = replace(LatticeFacts.unknown(n, cell), A=crystals.A, wavelength=crystals.wavelength)
    block, state = block_in_memory(prepare(found.table(), crystals.half, SETTINGS), facts, cell, group, SETTINGS)
    result = scale_blocks([block], state)
    rows, _, sums = output_block(block, result.models[0], result.state)
    return result.state, block, result.models[0], rows, sums, merged_rows(sums, result.state)


def on_the_scale_of_the_truth(simulator, found):
    """Return the true intensities (2, n) of both mates on the scale of the merged ones, and 1/d: a scale and a B are free."""
    place = {tuple(h): i for i, h in enumerate(simulator.structure.hkl.tolist())}
    rows = [place[tuple(h)] for h in found["hkl"].tolist()]
    mates, s2 = simulator.structure.intensity[0][:, rows], simulator.structure.d[rows] ** -2.0
    true, weight, observed = mates.mean(axis=0), found["sigma"] ** -2.0, found["intensity"]
    scale, b = np.sum(weight * observed * true) / np.sum(weight * true**2), 0.0
    for _ in range(6):
        value = scale * np.exp(b * s2) * true
        design = np.column_stack([value, value * s2])
        step = np.linalg.solve(design.T @ (design * weight[:, None]), design.T @ (weight * (observed - value)))
        scale, b = scale * np.exp(step[0]), b + step[1]
    return scale * np.exp(b * s2) * mates, np.sqrt(s2)


@pytest.fixture(scope="module")
def merged():
    simulator = ObservationSimulator.of(d_min=2.6, misset=0.003, error_intensity=0.05)
    return simulator, *scaled(simulator, 200)


def test_rows_of_the_file_are_those_of_the_table(merged):
    _, state, block, models, table, sums, _ = merged
    end = end_of_block(block, models, state)
    kept = table.select(table["flags"] & int(ReflectionFlag.OUTLIER) == 0)
    expected = unmerged_rows(kept.select(np.lexsort([kept["lattice"], pack(kept["hkl_asu"])])))
    np.testing.assert_allclose(end.rows, expected, rtol=1e-6)
    np.testing.assert_array_equal(
        np.diff(end.bounds), np.bincount(state.unique.rows(pack(kept["hkl_asu"])), minlength=len(state.unique))
    )
    assert all(np.array_equal(end.sums[name], sums[name]) for name in sums)


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
    simulator, *_, found = merged
    true, s = on_the_scale_of_the_truth(simulator, found)
    true = true.mean(axis=0)
    z2 = ((found["intensity"] - true) / found["sigma"]) ** 2
    assert 0.9 < np.mean(z2) < 1.1
    for key in (s, true, found["multiplicity"]):
        for rows in np.array_split(np.argsort(key), 6):
            assert 0.8 < np.mean(z2[rows]) < 1.25


def test_friedel_differences_have_the_right_sign_and_true_standard_deviations():
    simulator = ObservationSimulator.of(d_min=2.6, misset=0.003, anomalous=0.03)
    *_, found = scaled(simulator, 300)
    (plus, minus), _ = on_the_scale_of_the_truth(simulator, found)
    both = (found["n_plus"] > 0) & (found["n_minus"] > 0) & ~found["centric"]
    difference = (found["intensity_plus"] - found["intensity_minus"])[both]
    sigma = np.hypot(found["sigma_plus"], found["sigma_minus"])[both]
    true = (plus - minus)[both]
    assert 0.9 < np.mean(((difference - true) / sigma) ** 2) < 1.1
    clear = np.abs(difference) > 3.0 * sigma
    assert np.count_nonzero(clear) > 100
    assert np.mean(np.sign(difference[clear]) == np.sign(true[clear])) > 0.98
    assert np.corrcoef(difference, true)[0, 1] > 0.8


def test_sums_add_up(merged):
    _, state, block, models, _, sums, _ = merged
    parts = [np.arange(90), np.arange(90, 200)]
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

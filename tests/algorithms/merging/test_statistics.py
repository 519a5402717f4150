"""Statistics by shell against their definitions, one reflection after the other."""

import math

import gemmi
import numpy as np
import pytest

from xfelproc.algorithms.merging.comparison import intensities_of, scaled_reference, with_comparison
from xfelproc.algorithms.merging.quality import control_warnings
from xfelproc.algorithms.merging.reduction import to_asu
from xfelproc.algorithms.merging.resolution import resolution_by_cc_half, resolution_by_i_over_sigma
from xfelproc.algorithms.merging.statistics import GroupSums, correlation, shell_edges, shell_statistics
from xfelproc.models.tables import MergedTable, ShellTable

N = 400


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(8)
    true = rng.exponential(100.0, N)
    difference = 6.0 * rng.standard_normal(N)
    sigma = rng.uniform(2.0, 6.0, N)
    centric = rng.random(N) < 0.2
    difference[centric] = 0.0
    plus, minus = (true + sign * 0.5 * difference + 1.4 * sigma * rng.standard_normal(N) for sign in (1, -1))
    halves = [true + 1.4 * sigma * rng.standard_normal(N) for _ in range(2)]
    halves[1][:20] = np.nan
    merged = MergedTable(
        None,
        hkl=rng.integers(-20, 20, (N, 3)),
        d=1.0 / np.cbrt(rng.uniform(20.0**-3, 2.0**-3, N)),
        intensity=true + sigma * rng.standard_normal(N),
        sigma=sigma,
        multiplicity=rng.integers(1, 9, N),
        intensity_plus=plus,
        sigma_plus=1.4 * sigma,
        n_plus=np.ones(N),
        intensity_minus=minus,
        sigma_minus=1.4 * sigma,
        n_minus=rng.integers(0, 2, N),
        half1=halves[0],
        half2=halves[1],
        centric=centric,
        free=np.zeros(N),
    )
    nan = np.full((N, 2), np.nan)
    control = 100.0 + rng.standard_normal((N, 2))
    reference = np.where(rng.random(N) < 0.5, true, np.nan)
    sums = GroupSums(rng.uniform(1, 2, N), rng.uniform(10, 20, N), rng.integers(0, 2, N), nan, rng.uniform(0, 9, N), control)
    return merged, sums, reference


def pearson(x, y):
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return top / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def test_statistics_are_their_definitions(data):
    merged, sums, reference = data
    edges = shell_edges(2.0, 20.0, 4)
    shells, overall = shell_statistics(merged, sums, np.append(merged["d"], [2.1, 5.0]).astype(np.float64), edges)
    assert np.all(np.isnan(shells["cc_reference"]))
    shells, overall = (with_comparison(table, merged, reference) for table in (shells, overall))
    assert int(shells["n_unique"].sum()) == N == int(overall["n_unique"][0])
    for row, table in [(0, overall), *((i, shells) for i in range(4))]:
        d = merged["d"].astype(np.float64)
        rows = [i for i in range(N) if table["d_min"][row] <= d[i] < table["d_max"][row] or table is overall]
        pairs = [(merged["half1"][i], merged["half2"][i]) for i in rows if math.isfinite(merged["half2"][i])]
        first, second = zip(*pairs, strict=True)
        cc = pearson(first, second)
        assert table["cc_half"][row] == pytest.approx(cc)
        assert table["cc_star"][row] == pytest.approx(math.sqrt(2 * cc / (1 + cc)))
        split = sum(abs(a - b) for a, b in pairs) / sum(0.5 * (a + b) for a, b in pairs) / math.sqrt(2)
        assert table["r_split"][row] == pytest.approx(split)
        assert table["n_pairs"][row] == len(pairs)
        twice = [i for i in rows if merged["multiplicity"][i] > 1]
        total = sum(sums.total[i] for i in twice)
        n = {i: int(merged["multiplicity"][i]) for i in twice}
        assert table["r_merge_recorded"][row] == pytest.approx(sum(sums.residual[i] for i in twice) / total)
        assert table["r_meas_recorded"][row] == pytest.approx(
            sum(sums.residual[i] * math.sqrt(n[i] / (n[i] - 1)) for i in twice) / total
        )
        assert table["r_pim_recorded"][row] == pytest.approx(sum(sums.residual[i] / math.sqrt(n[i] - 1) for i in twice) / total)
        assert table["i_over_sigma"][row] == pytest.approx(
            sum(merged["intensity"][i] / merged["sigma"][i] for i in rows) / len(rows)
        )
        degrees = sum(merged["multiplicity"][i] - 1 for i in rows)
        assert table["chi2"][row] == pytest.approx(sum(sums.chi2[i] for i in rows) / degrees)
        both = [i for i in rows if merged["n_minus"][i] and not merged["centric"][i]]
        differences = [merged["intensity_plus"][i] - merged["intensity_minus"][i] for i in both]
        variances = [merged["sigma_plus"][i] ** 2 + merged["sigma_minus"][i] ** 2 for i in both]
        signal = sum(abs(x) / math.sqrt(v) for x, v in zip(differences, variances, strict=True)) / len(both)
        assert table["anomalous_signal"][row] == pytest.approx(signal)
        excess = sum(x * x - v for x, v in zip(differences, variances, strict=True)) / len(both)
        mean = sum(0.5 * (merged["intensity_plus"][i] + merged["intensity_minus"][i]) for i in both) / len(both)
        assert table["bijvoet_ratio"][row] == pytest.approx(math.sqrt(max(excess, 0.0)) / mean)
        assert table["n_bijvoet"][row] == len(both)
        known = [(merged["intensity"][i], reference[i]) for i in rows if math.isfinite(reference[i])]
        assert table["cc_reference"][row] == pytest.approx(pearson(*zip(*known, strict=True)))
        r = 2 * sum(abs(a - b) for a, b in known) / sum(a + b for a, b in known)
        assert table["r_reference"][row] == pytest.approx(r)
        control = [sums.control[i] for i in rows]
        if table is overall:
            mean = sum(n * cc for n, cc in zip(shells["n_control"], shells["cc_control"], strict=True)) / N
            assert table["cc_control"][row] == pytest.approx(mean)
            continue
        assert table["cc_control"][row] == pytest.approx(pearson(*zip(*control, strict=True)), abs=1e-9)
    assert overall["bijvoet_ratio"][0] == pytest.approx(0.06, rel=0.35)
    assert overall["n_possible"][0] == N + 2


def falling(limit_d: float, n: int = 20) -> ShellTable:
    """Return shells whose CC1/2 falls to 0.3 at ``limit_d``, and I/σ to 1."""
    edges = 1.0 / shell_edges(1.5, 30.0, n)
    s2 = 0.5 * (edges[1:] ** -2.0 + edges[:-1] ** -2.0)
    middle = limit_d**-2 - 0.05 * np.arctanh(0.4)
    cc = 0.5 * (1 - np.tanh((s2 - middle) / 0.05))
    signal = np.exp((limit_d**-2 - s2) * 12.0)
    size = np.full(n, 500)
    return ShellTable(None, d_max=edges[:-1], d_min=edges[1:], cc_half=cc, n_pairs=size, i_over_sigma=signal, n_unique=size)


def test_resolution_estimates():
    assert resolution_by_cc_half(falling(1.9)) == pytest.approx(1.9, abs=0.01)
    assert resolution_by_i_over_sigma(falling(1.9)) == pytest.approx(1.9, abs=0.01)
    assert resolution_by_cc_half(falling(1.2)) == pytest.approx(1.5), "it does not fall so far within the data"
    assert resolution_by_i_over_sigma(falling(1.2)) == pytest.approx(1.5)
    rng = np.random.default_rng(2)
    noisy = falling(1.9)
    noisy = noisy.replace(cc_half=noisy["cc_half"] + 0.04 * rng.standard_normal(20))
    assert resolution_by_cc_half(noisy) == pytest.approx(1.9, abs=0.06)
    noise = falling(1.9).replace(cc_half=0.02 * rng.standard_normal(20), i_over_sigma=np.full(20, 0.3))
    assert math.isnan(resolution_by_cc_half(noise))
    assert math.isnan(resolution_by_i_over_sigma(noise))
    assert math.isnan(resolution_by_cc_half(ShellTable(0)))


def test_a_reference_comes_onto_the_scale_of_the_merged(data):
    merged, *_ = data
    s2 = merged["d"].astype(np.float64) ** -2.0
    theirs = merged["intensity"] / 37.0 * np.exp(4.0 * s2)
    theirs[::3] = np.nan
    scaled = scaled_reference(merged, theirs)
    known = np.isfinite(theirs)
    np.testing.assert_allclose(scaled[known], merged["intensity"][known], rtol=0.05)
    assert np.array_equal(np.isnan(scaled), ~known)
    nothing = np.full(N, np.nan)
    assert np.all(np.isnan(scaled_reference(merged, nothing)))
    assert math.isnan(correlation(nothing[:2], nothing[:2]))


def test_given_intensities_are_found_by_any_equivalent(data):
    group = gemmi.SpaceGroup("P 43 21 2")
    hkl, _ = to_asu(np.array([[1, 2, 3], [4, 1, 2], [5, 5, 1]], dtype=np.int32), group)
    merged = MergedTable(3, hkl=hkl)
    given = np.array([[-2, 1, 3], [-1, -2, -3], [1, 4, -2], [7, 1, 1]], dtype=np.int32)
    found = intensities_of(merged, given, np.array([10.0, 20.0, 5.0, 1.0]), group)
    np.testing.assert_array_equal(found, [15.0, 5.0, np.nan])
    assert np.all(np.isnan(intensities_of(merged, given[:0], np.zeros(0), group)))


def test_a_control_that_correlates_is_told_of():
    shells = ShellTable(3, cc_control=[0.3, 0.2, np.nan], n_control=[200, 300, 0])
    assert "0.24" in control_warnings(shells)[0]
    assert control_warnings(shells.replace(cc_control=[0.05, -0.02, np.nan])) == []
    assert control_warnings(ShellTable(3, cc_control=[np.nan] * 3)) == []

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from tests.algorithms.merging.synthetic import CELL, halves, observe
from xfelproc.algorithms.merging import Merge, MergeResult, concatenate, half_set, merge, merge_observations, prepare
from xfelproc.errors import ConfigError
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.tables import ReflectionTable, UnmergedTable


def correlation_to(result: MergeResult, truth, at_least: int = 1) -> float:
    rows = result.merged["multiplicity"] >= at_least
    return float(np.corrcoef(result.merged["intensity"][rows], truth.lookup(result.merged["hkl"][rows]))[0, 1])


@pytest.fixture(scope="module")
def example():
    table, truth = observe()
    settings = Merge()
    return merge_observations(prepare(table, halves(60), settings), CELL, "P 43 21 2", settings), truth


def test_true_intensities_come_back(example) -> None:
    result, truth = example
    assert correlation_to(result, truth) > 0.97
    assert correlation_to(result, truth, 3) > 0.99
    assert result.overall["cc_half"][0] > 0.85


def test_scales_come_back(example) -> None:
    result, truth = example
    log = np.log(result.lattices["scale"] / truth.scale)
    assert np.std(log) < 0.05
    assert np.corrcoef(result.lattices["b_factor"], truth.b_factor)[0, 1] > 0.9


def test_the_common_width_comes_back(example) -> None:
    result, truth = example
    s = 0.3
    found = np.hypot(result.lattices["width"][0], s * result.lattices["width_slope"][0])
    assert found == pytest.approx(np.hypot(truth.width, s * truth.slope), rel=0.05)


def test_the_common_width_is_of_what_diffracts() -> None:
    table, truth = observe()
    dark = table["d"] < 3.2
    noise = np.random.default_rng(2).normal(-1.0, 9.0, len(table))
    table = table.replace(
        intensity=np.where(dark, noise, table["intensity"]).astype(np.float32),
        sigma=np.where(dark, 9.0, table["sigma"]).astype(np.float32),
    )
    settings = Merge()
    result = merge_observations(prepare(table, halves(60), settings), CELL, "P 43 21 2", settings)
    s = 0.25
    found = np.hypot(result.lattices["width"][0], s * result.lattices["width_slope"][0])
    assert found == pytest.approx(np.hypot(truth.width, s * truth.slope), rel=0.1)


def test_sigmas_are_right(example) -> None:
    result, truth = example
    merged = result.merged
    rows = merged["multiplicity"] > 1
    intensity, sigma, true = merged["intensity"][rows], merged["sigma"][rows], truth.lookup(merged["hkl"][rows])
    scale = np.sum(intensity * true / sigma**2) / np.sum(true**2 / sigma**2)
    pull = (intensity - scale * true) / sigma
    assert 0.6 < np.std(pull) < 1.4
    assert abs(np.mean(pull)) < 0.15


def test_unmerged_means_are_the_merged(example) -> None:
    result, _ = example
    table: UnmergedTable = result.unmerged
    kept = table["flags"] & int(ReflectionFlag.OUTLIER) == 0
    hkl, inverse = np.unique(table["hkl_asu"][kept], axis=0, return_inverse=True)
    weight = table["sigma"][kept] ** -2
    mean = np.bincount(inverse, weight * table["intensity"][kept]) / np.bincount(inverse, weight)
    assert np.array_equal(hkl, result.merged["hkl"])
    assert mean == pytest.approx(result.merged["intensity"], rel=1e-9, abs=1e-9)


def test_plus_and_minus_make_the_mean(example) -> None:
    merged = example[0].merged
    assert np.array_equal(merged["n_plus"] + merged["n_minus"], merged["multiplicity"])
    assert np.all(merged["n_minus"][merged["centric"]] == 0)
    assert np.array_equal(np.isnan(merged["intensity_minus"]), merged["n_minus"] == 0)
    both = (merged["n_plus"] > 0) & (merged["n_minus"] > 0)
    weights = merged["sigma_plus"][both] ** -2, merged["sigma_minus"][both] ** -2
    mean = (weights[0] * merged["intensity_plus"][both] + weights[1] * merged["intensity_minus"][both]) / sum(weights)
    assert mean == pytest.approx(merged["intensity"][both], rel=1e-6, abs=1e-6)


def test_shards_make_no_difference(example) -> None:
    table, _ = observe()
    settings = Merge()
    parts = []
    for first in range(0, 60, 7):
        rows = (table["lattice"] >= first) & (table["lattice"] < first + 7)
        shard = table.select(rows)
        shard = shard.replace(lattice=shard["lattice"] - first)
        parts.append(prepare(shard, halves(60)[first : first + 7], settings))
    result = merge(parts, CELL, "P 43 21 2", settings)
    for name in ("merged", "unmerged", "lattices", "shells", "overall"):
        one, other = getattr(result, name), getattr(example[0], name)
        assert all(one[c.name].tobytes() == other[c.name].tobytes() for c in one.SCHEMA), name


def test_outliers_and_wrong_lattices_leave() -> None:
    table, truth = observe(wrong_lattices=3, outliers=40)
    half = halves(60)
    settings = Merge(min_lattice_cc=0.3)
    result = merge_observations(prepare(table, half, settings), CELL, "P 43 21 2", settings)
    assert np.flatnonzero(~result.lattices["used"]).tolist() == [0, 1, 2]
    assert any("left out" in w for w in result.warnings)
    assert correlation_to(result, truth, 4) > 0.98
    careless = Merge(outlier_cut=0.0)
    worse = merge_observations(prepare(table, half, careless), CELL, "P 43 21 2", careless)
    assert worse.lattices["n_rejected"].sum() == 0
    assert correlation_to(worse, truth, 4) < correlation_to(result, truth, 4)


@pytest.mark.parametrize("partiality", ["gaussian", "model", "unity"])
def test_partiality_models_rank(partiality: str) -> None:
    table, truth = observe(seed=5)
    settings = Merge(partiality=partiality, b_factor=False)
    result = merge_observations(prepare(table, halves(60), settings), CELL, "P 43 21 2", settings)
    cc = correlation_to(result, truth, 3)
    assert cc > 0.98 if partiality != "unity" else cc < 0.95


def test_statistics_add_up(example) -> None:
    result, _ = example
    shells, overall = result.shells, result.overall
    for name in ("n_possible", "n_unique", "n_observations", "n_rejected", "n_pairs"):
        assert shells[name].sum() == overall[name][0], name
    assert shells["d_min"][:-1] == pytest.approx(shells["d_max"][1:])
    assert np.all(shells["n_unique"] <= shells["n_possible"])
    assert overall["multiplicity"][0] == pytest.approx(result.merged["multiplicity"].mean())


def test_symmetry_is_spoken_of() -> None:
    table, _ = observe(20, 100)
    settings = Merge()
    observations = prepare(table, halves(20), settings)
    result = merge_observations(observations, CELL, "P 4 2 2", settings, proposal=True, ambiguity=("k,h,-l",))
    assert result.proposal
    assert "proposal" in result.warnings[0]
    assert "k,h,-l" in result.warnings[1]
    assert "k,h,-l" in result.title
    assert len(result.title) <= 70
    said = merge_observations(observations, CELL, "P 1", Merge(space_group="P 43 21 2"), proposal=True)
    assert not said.proposal
    assert said.space_group == "P 43 21 2"
    assert len(merge_observations(observations, CELL, "P 1", settings, ambiguity=("k,h,-l",) * 9).title) <= 70


def test_absences_that_are_strong_warn() -> None:
    table, _ = observe(20, 100, "P 4 2 2", d_min=5.0)
    absent = table.replace(hkl=np.tile([[0, 0, 5]], (len(table), 1)), intensity=np.full(len(table), 1e5))
    both = ReflectionTable.concatenate([table, absent])
    settings = Merge()
    result = merge_observations(prepare(both, halves(20), settings), CELL, "P 43 21 2", settings)
    assert any("forbids" in w for w in result.warnings)
    assert not np.any(np.all(result.merged["hkl"] == [0, 0, 5], axis=1))


def test_nothing_to_merge() -> None:
    settings = Merge()
    result = merge([], CELL, "P 1", settings)
    assert len(result.merged) == 0
    assert result.overall["n_observations"][0] == 0
    empty = merge_observations(prepare(ReflectionTable(0), halves(3), settings), CELL, "P 43 21 2", settings)
    assert len(empty.lattices) == 3
    assert not empty.lattices["used"].any()


def test_one_lattice_alone() -> None:
    table, _ = observe(1, 50)
    settings = Merge()
    result = merge_observations(prepare(table, halves(1), settings), CELL, "P 43 21 2", settings)
    assert result.lattices["scale"][0] == pytest.approx(1.0)
    assert np.all(np.isfinite(result.merged["intensity"]))


def test_limits_and_flags() -> None:
    table, _ = observe(10, 200)
    flags = table["flags"].copy()
    flags[::2] |= int(ReflectionFlag.OVERLOADED)
    flags[1::4] = 0
    table = table.replace(flags=flags)
    observations = prepare(table, halves(10), Merge(d_min=3.0, d_max=10.0))
    assert np.all((observations.inverse_d2 <= 1 / 9.0) & (observations.inverse_d2 >= 0.01))
    assert len(observations) < 0.3 * len(table)
    assert len(prepare(table, halves(10), Merge(exclude=()))) == np.count_nonzero(flags & 1)


def test_observations_select_and_concatenate() -> None:
    table, _ = observe(10, 20)
    observations = prepare(table, halves(10), Merge())
    doubled = concatenate([observations, observations])
    assert doubled.n_lattices == 20
    assert np.array_equal(doubled.lattice, np.concatenate([observations.lattice, observations.lattice + 10]))
    same = doubled.select(np.ones(len(doubled), dtype=bool))
    assert all(np.array_equal(getattr(same, f.name), getattr(doubled, f.name)) for f in fields(same))


def test_half_sets_are_fair_and_fixed() -> None:
    drawn = [half_set("run_1.h5", i) for i in range(2000)]
    assert 900 < sum(drawn) < 1100
    assert drawn[:8] == [half_set("run_1.h5", i) for i in range(8)]
    assert drawn != [half_set("run_2.h5", i) for i in range(2000)]


def test_wrong_parameters() -> None:
    with pytest.raises(ValueError, match="d_max"):
        Merge(d_min=3.0, d_max=2.0)
    with pytest.raises(ValueError, match="free_fraction"):
        Merge(free_fraction=0.0)
    observations = prepare(ReflectionTable(0), halves(1), Merge())
    with pytest.raises(ConfigError, match="impossible"):
        merge_observations(observations, (10.0, 10.0, -1.0, 90.0, 90.0, 90.0), "P 1", Merge())
    with pytest.raises(ConfigError, match="impossible"):
        merge_observations(observations, (10.0, 10.0, 10.0, 170.0, 90.0, 20.0), "P 1", Merge())


def test_two_lattices_find_one_scale() -> None:
    """Each is the other's only reference: full steps would swap their scales in every cycle."""
    table, truth = observe(2, 300, d_min=6.0, seed=3)
    settings = Merge(b_factor=False)
    result = merge_observations(prepare(table, halves(2), settings), CELL, "P 43 21 2", settings)
    assert not any("converge" in w for w in result.warnings)
    found, true = result.lattices["scale"], truth.scale
    assert found[0] / found[1] == pytest.approx(true[0] / true[1], rel=0.2)

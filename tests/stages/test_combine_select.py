from __future__ import annotations

import numpy as np
import pytest

from xfelproc.io.nodes import Partial
from xfelproc.stages.combine_select import consensus_cell, select, significant_resolution, tukey_limit
from xfelproc.stages.combine_settings import Combine


def facts(n: int = 200) -> Partial:
    rng = np.random.default_rng(1)
    return {
        "cell": np.array([79.0, 79.0, 38.0, 90.0, 90.0, 90.0]) + rng.normal(0, 0.1, (n, 6)),
        "group": np.zeros(n, np.uint32),
        "rmsd": rng.normal(0.5, 0.05, n),
        "n_reflections": rng.integers(10, 100, n),
        "resolution": rng.uniform(1.5, 4.0, n),
    }


def test_cells_far_from_the_consensus_and_other_groups_are_left_out() -> None:
    table = facts()
    table["cell"][:5, 0] += 3.0
    table["cell"][5:8, 3] += 4.0
    table["group"][8:10] = 7
    found = select(table, Combine(max_length_difference=0.02, max_angle_difference=1.5))
    assert found.left_out == {"another space group": 2, "another cell": 8}
    assert found.kept.tolist() == list(range(10, 200))
    assert found.cell == pytest.approx((79, 79, 38, 90, 90, 90), abs=0.05)
    assert select(table, Combine(max_angle_difference=1.5)).left_out == {"another space group": 2, "another cell": 3}


def test_the_consensus_is_of_the_most_frequent_group() -> None:
    cells = np.array([[10.0] * 6, [10.2] * 6, [50.0] * 6])
    cell, group = consensus_cell(cells, np.array([3, 3, 1], np.uint32))
    assert (cell.tolist(), group) == (pytest.approx([10.1] * 6), 3)


def test_tukey() -> None:
    assert tukey_limit(np.arange(1.0, 10.0), 1.5) == pytest.approx(7.0 + 1.5 * 4.0)
    table = facts()
    table["rmsd"][[3, 50]] = 2.0
    kept = select(table, Combine(rmsd_iqr=1.5)).kept
    assert not {3, 50} & set(kept.tolist())
    assert len(kept) >= 190


def test_numbers_of_reflections() -> None:
    table = facts()
    found = select(table, Combine(min_reflections=20, max_reflections=80))
    number = table["n_reflections"][found.kept]
    assert (number.min(), number.max()) == (20, 80)
    assert sum(found.left_out.values()) == 200 - len(found.kept)
    assert len(select(table, Combine(min_reflections=1000, rmsd_iqr=1.5, max_length_difference=0.01)).kept) == 0


def test_subsets() -> None:
    table = facts()
    draw = [select(table, Combine(n_subset=30, seed=seed)).kept.tolist() for seed in (0, 0, 1)]
    assert draw[0] == draw[1] != draw[2]
    assert all(len(d) == 30 and d == sorted(set(d)) for d in draw)
    most = select(table, Combine(n_subset=30, subset="reflections"))
    assert table["n_reflections"][most.kept].min() >= np.sort(table["n_reflections"])[-30]
    assert most.left_out == {"not in the subset": 170}
    best = select(table, Combine(n_subset=30, subset="significance")).kept
    assert set(best.tolist()) == set(np.argsort(table["resolution"])[:30].tolist())


def test_significant_resolution() -> None:
    rng = np.random.default_rng(0)
    volume = rng.uniform(0.001, 0.1, 4000)
    d = volume ** (-1 / 3)
    ratio = np.where(volume < 0.05, 3.0, 0.2)
    assert significant_resolution(d, ratio, 1.0) == pytest.approx(0.05 ** (-1 / 3), rel=0.03)
    assert significant_resolution(d, ratio, 0.1) == pytest.approx(d.min(), rel=1e-6)
    assert significant_resolution(d, ratio, 10.0) == np.inf
    assert significant_resolution(np.zeros(0), np.zeros(0), 1.0) == np.inf
    assert significant_resolution(np.array([3.0]), np.array([2.0]), 1.0) == pytest.approx(3.0)

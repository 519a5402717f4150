"""Kernels of indexing ambiguity against plain formulas."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from xfelproc.kernels.ambiguity import WEAKEST, canonical_keys, judge, lattice_likelihoods, settle, shares_of, sums_of

SPREAD, PRIOR, UNRELATED = 0.3, 1.0, 0.02


@pytest.fixture
def example() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(1)
    starts = np.array([0, 5, 5, 12, 20])
    n, numbers, k = 20, 8, 3
    table = rng.integers(6, size=(numbers, k)).astype(np.int32)
    unique = rng.integers(numbers, size=n).astype(np.int32)
    value, variance = rng.normal(size=n).astype(np.float32), rng.uniform(0.1, 1.0, n).astype(np.float32)
    share = rng.dirichlet(np.ones(k), size=4)
    return starts, unique, value, variance, table, share


def plain_sums(lattices, starts, unique, value, variance, table, share) -> np.ndarray:
    sums = np.zeros((6, 2))
    for i in lattices:
        for j, c in product(range(starts[i], starts[i + 1]), range(3)):
            w = share[i, c] / (variance[j] + SPREAD)
            sums[table[unique[j], c]] += [w, w * value[j]]
    return sums


def plain_likelihood(first, last, unique, value, variance, table, sums) -> list[float]:
    rest = sums[:, 0] + PRIOR
    mean = sums[:, 1] / rest
    found = []
    for c in range(3):
        g = table[unique[first:last], c]
        total = variance[first:last] + SPREAD * np.maximum(1 + mean[g], WEAKEST) ** 2 + 1 / rest[g]
        found.append(stats.t.logpdf(value[first:last] - mean[g], 5, scale=np.sqrt(0.6 * total)).sum())
    total = variance[first:last] + 2 * SPREAD + 1 / PRIOR
    return [*found, stats.t.logpdf(value[first:last], 5, scale=np.sqrt(0.6 * total)).sum()]


def test_sums(example) -> None:
    starts, unique, value, variance, table, share = example
    assert sums_of(starts, unique, value, variance, table, share, SPREAD, 6) == pytest.approx(plain_sums(range(4), *example))


def test_likelihoods(example) -> None:
    _, unique, value, variance, table, _ = example
    sums, out = plain_sums([0, 1, 3], *example), np.zeros(4)
    lattice_likelihoods(5, 12, unique, value, variance, table, SPREAD, PRIOR, sums, out)
    expected = plain_likelihood(5, 12, unique, value, variance, table, sums)
    assert out - out[3] == pytest.approx(np.array(expected) - expected[3], rel=1e-5)


def test_likelihood_of_many_observations_is_finite() -> None:
    n = 20_000
    out = np.zeros(2)
    one, table = np.zeros(n, dtype=np.int32), np.zeros((1, 1), dtype=np.int32)
    value, variance = np.full(n, 50.0, dtype=np.float32), np.full(n, 1e-4, dtype=np.float32)
    lattice_likelihoods(0, n, one, value, variance, table, 0.02, PRIOR, np.zeros((1, 2)), out)
    assert np.all(np.isfinite(out))


def test_shares() -> None:
    out = np.zeros(2)
    evidence = shares_of(np.array([-700.0, -701.0, -703.0]), UNRELATED, out)
    chance = np.array([0.49, 0.49 * np.exp(-1.0), 0.02 * np.exp(-3.0)])
    assert out == pytest.approx(chance[:2] / chance.sum())
    assert evidence == pytest.approx(-700.0 + np.log(chance.sum()))


def test_a_round_leaves_each_lattice_out_of_its_mean(example) -> None:
    starts, unique, value, variance, table, share = example
    sums, likelihood = sums_of(starts, unique, value, variance, table, share, SPREAD, 6), np.zeros((4, 4))
    old = share.copy()
    settle(np.array([2, 0]), starts, unique, value, variance, table, SPREAD, PRIOR, UNRELATED, share, sums, likelihood)
    columns = (starts, unique, value, variance, table)
    expected = plain_likelihood(5, 12, unique, value, variance, table, plain_sums([0, 1, 3], *columns, old))
    assert likelihood[2] - likelihood[2, 3] == pytest.approx(np.array(expected) - expected[3], rel=1e-5)
    after = old.copy()
    after[2] = share[2]
    expected = plain_likelihood(0, 5, unique, value, variance, table, plain_sums([1, 2, 3], *columns, after))
    assert likelihood[0] - likelihood[0, 3] == pytest.approx(np.array(expected) - expected[3], rel=1e-5)
    assert sums == pytest.approx(plain_sums(range(4), *columns, share))


def test_judgement(example) -> None:
    starts, unique, value, variance, table, share = example
    sums = sums_of(starts, unique, value, variance, table, share, SPREAD, 6)
    likelihood, moments = np.zeros((4, 4)), np.zeros((4, 3, 6))
    judge(starts, unique, value, variance, table, SPREAD, SPREAD, PRIOR, share, sums.copy(), likelihood, moments)
    others = plain_sums([0, 1, 2], *example)
    expected = plain_likelihood(12, 20, unique, value, variance, table, others)
    assert likelihood[3] - likelihood[3, 3] == pytest.approx(np.array(expected) - expected[3], rel=1e-5)
    g = table[unique[12:20], 1]
    seen = others[g, 0] > 1e-9
    x, y = value[12:20][seen], (others[g, 1] / (others[g, 0] + PRIOR))[seen]
    w = 1.0 / (variance[12:20][seen] + SPREAD + 1.0 / (others[g, 0][seen] + PRIOR))
    assert moments[3, 1] == pytest.approx([np.sum(w * v) for v in (np.ones_like(x), x, y, x * x, x * y, y * y)])


def test_keys() -> None:
    rng = np.random.default_rng(2)
    hkl = rng.integers(-30, 31, size=(200, 3)).astype(np.int32)
    fourfold = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    rotations = np.array([np.linalg.matrix_power(fourfold, p) for p in range(4)])
    keys = canonical_keys(hkl, rotations)
    for rotation, sign in product(rotations, (1, -1)):
        assert np.array_equal(canonical_keys((sign * hkl @ rotation).astype(np.int32), rotations), keys)
    orbits = {frozenset(tuple(sign * h @ r) for r in rotations for sign in (1, -1)) for h in hkl}
    assert len(np.unique(keys)) == len(orbits)

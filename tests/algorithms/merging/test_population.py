"""Spreads of the lattices' parameters, found from what each lattice says of its own."""

from dataclasses import replace

import numpy as np
import pytest

from xfelproc.algorithms.merging.lattice_models import initial_models
from xfelproc.algorithms.merging.population import Population
from xfelproc.algorithms.merging.settings import Merge

N = 400


def lattices(true_spread, error, mean=0.0, seed=3):
    rng = np.random.default_rng(seed)
    estimate = mean + true_spread * rng.normal(size=(N, 8)) + error * rng.normal(size=(N, 8))
    information = np.broadcast_to(error**-2.0, (N, 8)).copy()
    return replace(initial_models(np.ones(N), np.ones((N, 2)), 2), estimate=estimate, information=information)


def fitted(settings, *parts):
    population = Population.expected(settings, np.array([4e-4, 5e-4]), 2)
    return population.fitted(sum(population.sums(part) for part in parts), settings)


TRUE = np.array([0.0, 2.0, 1e-4, 1e-4, 0.2, 0.05, 1e-3, 0.0])
ERROR = np.array([1.0, 1.0, 3e-5, 3e-5, 0.1, 0.1, 5e-4, 5e-4])
MEAN = np.array([0.0, 0.0, 0.0, 0.0, *np.log([3.4e-4, 5.5e-4]), 0.0, 0.0])


def test_spreads_and_means_come_back():
    found = fitted(Merge(), lattices(TRUE, ERROR, MEAN))
    np.testing.assert_allclose(found.spread[1:7], TRUE[1:7], rtol=0.4)
    np.testing.assert_allclose(found.mean[4:6], MEAN[4:6], atol=0.03)
    assert not found.mean[[1, 2, 3, 6, 7]].any()
    assert found.alike.tolist() == [False, True]


def test_parts_of_the_lattices_add_up_and_those_left_out_say_nothing():
    whole = lattices(TRUE, ERROR, MEAN)
    rows = np.arange(N)
    wrong = replace(lattices(100.0 * TRUE + 1.0, ERROR, seed=4), used=np.zeros(N, dtype=bool))
    parts = fitted(Merge(), whole.select(rows[:150]), whole.select(rows[150:]), wrong)
    one = fitted(Merge(), whole)
    np.testing.assert_allclose(parts.spread, one.spread, rtol=1e-6)
    np.testing.assert_allclose(parts.mean, one.mean, rtol=1e-9)


def test_cells_that_are_alike_are_not_refined():
    found = fitted(Merge(), lattices(0.0 * TRUE, ERROR, MEAN))
    assert found.alike.all()
    assert not Population.expected(Merge(), np.ones(2), 2).alike.any()


def test_what_is_set_stays_and_without_a_word_all_does():
    settings = Merge(b_restraint=3.0, rotation_restraint=0.01, width_restraint=0.5, cell_restraint=0.004)
    found = fitted(settings, lattices(TRUE, ERROR, MEAN))
    np.testing.assert_allclose(found.spread[1:], [3.0, *2 * [np.radians(0.01)], 0.5, 0.5, 0.004, 0.004])
    nothing = fitted(Merge(), initial_models(np.ones(3), np.ones((3, 2)), 2))
    expected = Population.expected(Merge(), np.array([4e-4, 5e-4]), 2)
    np.testing.assert_array_equal(nothing.spread, expected.spread)
    assert nothing.mean[4] == pytest.approx(np.log(4e-4))


def test_arrays_and_back():
    found = fitted(Merge(), lattices(TRUE, ERROR, MEAN))
    again = Population.from_arrays(found.arrays())
    np.testing.assert_array_equal(again.spread, found.spread)
    assert again.known is True

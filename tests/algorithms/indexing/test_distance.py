from __future__ import annotations

import numpy as np
import pytest

from tests.algorithms.indexing.generator import (
    DISTANCE,
    basis_of,
    beam,
    detector,
    lattice_spots,
    random_pixels,
    random_rotation,
    table,
)
from xfelproc.algorithms.indexing import Index
from xfelproc.algorithms.indexing.distance import DistanceSearch, common_distance, fewest_agreeing, largest_cluster
from xfelproc.models.frames import CellTarget

CELL = (79.1, 79.1, 38.0, 90.0, 90.0, 90.0)
TARGET = CellTarget(CELL, "P 43 21 2")
SEARCH = DistanceSearch(Index().quick(), 0.12)


@pytest.mark.parametrize("error", [-0.09, -0.03, 0.0, 0.05, 0.1])
def test_distance_the_spots_fit(error):
    """Whether the lattice shows itself at the declared distance, scaled (3 %), or pulled about (5 %), or not at all (9 %)."""
    rng = np.random.default_rng(1)
    spots = table(lattice_spots(basis_of(CELL) @ random_rotation(rng).T, "P", rng, 150)[0], rng)
    declared = detector().shifted((0.0, 0.0, error * DISTANCE))
    shift = SEARCH.index(spots, declared, beam(), TARGET).lattices[0].shift[2]
    assert shift == pytest.approx(-error * DISTANCE, abs=0.01 * DISTANCE)
    assert (shift == 0) == (error == 0)


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_a_wrong_cell_does_not_move_the_detector(factor):
    """A cell given 3 % too small or large: the spots fit best where the detector is."""
    rng = np.random.default_rng(2)
    spots = table(lattice_spots(basis_of(CELL) @ random_rotation(rng).T, "P", rng, 150)[0], rng)
    given = CellTarget((*(factor * v for v in CELL[:3]), 90.0, 90.0, 90.0), "P 43 21 2")
    assert SEARCH.index(spots, detector(), beam(), given).lattices[0].shift[2] == 0


def test_random_spots_show_nothing():
    rng = np.random.default_rng(3)
    found = [SEARCH.index(table(random_pixels(rng, 80), rng), detector(), beam(), TARGET) for _ in range(10)]
    assert not any(result.lattices for result in found)
    assert all(result.reason for result in found)


def test_common_distance():
    agreeing = np.array([318.2, 318.9, 319.4])
    found = common_distance(np.append(agreeing, 270.0), 4, 0.12, -3.0)
    assert found is not None
    assert found.distance == pytest.approx(318.9)
    assert found.count == 3
    assert found.spread == pytest.approx(np.log(319.4 / 318.2) / 2)
    assert common_distance(agreeing, 40, 0.12, -3.0) is None  # 3 of 40 may be chance
    assert common_distance(agreeing[:2], 2, 0.12, -3.0) is None  # 2 of 2 may be, too
    assert common_distance(np.append(agreeing, [270.0, 281.0, 293.0, 305.0]), 8, 0.12, -3.0) is None  # fewer than half
    assert common_distance(np.array([270.0, 290.0, 310.0]), 3, 0.12, -3.0) is None
    assert common_distance(np.zeros(0), 4, 0.12, -3.0) is None


def test_fewest_agreeing_keeps_chance_away():
    """Frames that each show a lattice at a random distance as often as is assumed agree less often than promised."""
    rng, n_frames, log10_chance = np.random.default_rng(4), 20, -1.5
    fewest = fewest_agreeing(n_frames, 0.12, log10_chance)
    assert fewest > fewest_agreeing(n_frames, 0.12, -3.0) > fewest_agreeing(4, 0.12, -3.0) == 3
    believed = 0
    for _ in range(4000):
        step = np.argwhere(rng.random((n_frames, 25)) < 10**log10_chance)
        _, first = np.unique(step[:, 0], return_index=True)
        believed += common_distance(1.0 + 0.01 * (step[first, 1] - 12), n_frames, 0.12, log10_chance) is not None
    assert believed <= 2
    assert fewest_agreeing(2, 0.12, -3.0) == 3  # more than there are


def test_fewest_agreeing_of_a_long_run():
    assert [fewest_agreeing(n, 0.12, -3.0) for n in (50, 1000, 10_000)] == [5, 16, 90]
    assert 3000 < fewest_agreeing(1_000_000, 0.12, -3.0) < 9000


def test_largest_cluster():
    values = np.array([[0.0, 0.0], [0.01, 0.0], [0.009, 0.02], [0.5, 0.5], [0.0, -0.005]])
    assert largest_cluster(values, 0.012).tolist() == [True, True, False, False, True]

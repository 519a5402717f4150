from __future__ import annotations

import numpy as np
import pytest

from xfelproc.algorithms.symmetry.consensus import find_consensus
from xfelproc.geometry.cells import real_space_basis
from xfelproc.geometry.reduction import cell_of

CASES = [
    ((79.1, 79.1, 38.0, 90, 90, 90), "P", "P 4 2 2", "tP"),
    ((61.4, 122.6, 168.0, 90, 90, 90), "C", "C 2 2 2", "oC"),
    ((92.9, 92.9, 130.4, 90, 90, 120), "P", "P 6 2 2", "hP"),
    ((57.0, 57.0, 57.0, 90, 90, 90), "I", "I 4 3 2", "cI"),
    ((60.0, 72.0, 81.0, 90, 90, 90), "P", "P 2 2 2", "oP"),
    ((50.0, 60.0, 71.0, 90, 104.0, 90), "P", "P 1 2 1", "mP"),
    ((104.0, 104.0, 231.0, 90, 90, 120), "R", "R 3 2:H", "hR"),
    ((31.0, 42.0, 53.0, 71.0, 82.0, 96.0), "P", "P 1", "aP"),
]


def measured(cell: tuple[float, ...], n: int, rng: np.random.Generator, error: float = 0.002) -> np.ndarray:
    """Cells of still shots: lengths and angles with independent errors, so that the symmetry is broken."""
    values = np.array(cell) * (1 + error * rng.normal(size=(n, 6)))
    values[:, 3:] = np.array(cell[3:]) + 100 * error * rng.normal(size=(n, 3))
    return values


@pytest.mark.parametrize(("cell", "centring", "group", "bravais"), CASES)
def test_lattices_are_found(cell: tuple[float, ...], centring: str, group: str, bravais: str) -> None:
    rng = np.random.default_rng(3)
    found = find_consensus(measured(cell, 60, rng), [centring] * 60)
    assert found is not None
    assert (found.best.bravais, found.best.space_group) == (bravais, group)
    assert found.best.count >= 58
    if bravais == "aP":  # its reduced setting is another one
        assert np.prod(found.best.cell[:3]) == pytest.approx(np.prod(cell[:3]), rel=0.2)
        return
    np.testing.assert_allclose(found.best.cell[:3], cell[:3], rtol=2e-3)
    np.testing.assert_allclose(found.best.cell[3:], cell[3:], atol=0.2)


def test_any_setting_of_the_lattice_counts() -> None:
    """The same lattices given by other bases (as triclinic frames are) form one cluster."""
    rng = np.random.default_rng(5)
    changes = [np.eye(3), [[0, 1, 0], [1, 0, 0], [0, 0, -1]], [[1, 1, 0], [0, 1, 0], [0, 0, 1]], [[0, 0, 1], [1, 0, 0], [0, 1, 1]]]
    cells = [cell_of(np.array(changes[i % 4]) @ real_space_basis(c)) for i, c in enumerate(measured(CASES[0][0], 40, rng))]
    found = find_consensus(cells)
    assert found is not None
    assert found.best.count == 40
    assert found.best.space_group == "P 4 2 2"


def test_strangers_and_a_second_form() -> None:
    rng = np.random.default_rng(7)
    first, second = measured(CASES[0][0], 50, rng), measured((79.1, 79.1, 41.0, 90, 90, 90), 20, rng)
    strangers = np.column_stack([rng.uniform(30, 200, (30, 3)), rng.uniform(80, 100, (30, 3))])
    cells = np.concatenate([strangers, second, first])
    found = find_consensus(cells)
    assert found is not None
    assert found.n_lattices == 100
    assert [c.count for c in found.clusters[:3]][:2] == [50, 20]
    assert np.all(found.best.members >= 50)
    np.testing.assert_allclose(found.clusters[1].cell[2], 41.0, rtol=2e-3)
    assert found.best.spread[0] == pytest.approx(0.16, rel=0.6)


def test_known_symmetry_is_imposed() -> None:
    rng = np.random.default_rng(9)
    cells = measured((58.0, 58.6, 150.0, 90, 90, 90), 30, rng)
    alone, told = find_consensus(cells), find_consensus(cells, space_group="P 41 21 2")
    assert alone is not None
    assert told is not None
    assert told.best.space_group == "P 41 21 2"
    assert told.best.cell[0] == pytest.approx(told.best.cell[1])


def test_one_lattice_and_none() -> None:
    assert find_consensus(np.zeros((0, 6))) is None
    found = find_consensus([CASES[0][0]])
    assert found is not None
    assert found.best.count == 1

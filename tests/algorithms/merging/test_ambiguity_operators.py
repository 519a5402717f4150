"""Settings of lattices: counted by hand, and as groups."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest

from tests.algorithms.merging.ambiguity_data import CASES
from xfelproc.algorithms.merging.ambiguity_operators import DEN, find_settings, reindexed, strain
from xfelproc.geometry.cells import b_matrix, lattice_rotations

SETTINGS = {"P 63": 2, "P 3": 4, "P 4": 2, "C 1 2 1": 2, "P 1": 1, "P 1 21 1": 2, "P 21 21 21": 2}
SPECIAL = [
    ("P 43 21 2", (79.0, 79.0, 38.0, 90.0, 90.0, 90.0), 1),
    ("P 61 2 2", (93.0, 93.0, 130.0, 90.0, 90.0, 120.0), 1),
    ("P 4", (60.0, 60.0, 60.0, 90.0, 90.0, 90.0), 6),
    ("P 21 21 21", (60.0, 60.0, 60.0, 90.0, 90.0, 90.0), 6),
    ("P 1", (60.0, 60.0, 60.0, 90.0, 90.0, 90.0), 24),
    ("R 3:H", (60.0, 60.0, 100.0, 90.0, 90.0, 120.0), 2),
    ("R 3:H", (60.0, 60.0, 60.0 * 6**0.5, 90.0, 90.0, 120.0), 8),
    ("C 1 2 1", (60.0 * 3**0.5, 60.0, 80.0, 90.0, 90.0, 90.0), 6),
    ("I 2 3", (78.0, 78.0, 78.0, 90.0, 90.0, 90.0), 2),
    ("P 21 21 21", (50.0, 53.0, 80.0, 90.0, 90.0, 90.0), 1),
    ("P 43", (79.0, 79.0, 38.0, 90.0, 90.0, 90.0), 2),
    ("P 61", (93.0, 93.0, 130.0, 90.0, 90.0, 120.0), 2),
    ("P 31 2 1", (93.0, 93.0, 130.0, 90.0, 90.0, 120.0), 2),
    ("P 1 21 1", (50.0, 60.0, 50.1, 90.0, 104.0, 90.0), 2),
    ("P 1 21 1", (50.0, 60.0, 80.0, 90.0, 90.4, 90.0), 2),
    ("C 2 2 21", (61.0, 122.6, 168.0, 90.0, 90.0, 90.0), 1),
    ("P 21 21 21", (79.1, 79.2, 38.0, 90.0, 90.0, 90.0), 2),
    ("P 21 21 21", (79.1, 60.0, 38.0, 90.0, 90.0, 90.0), 1),
]
ALL = [(group, cell, SETTINGS[group]) for group, cell in CASES.items()] + SPECIAL


@pytest.mark.parametrize(("group", "cell", "count"), ALL)
def test_settings_are_cosets(group, cell, count) -> None:
    settings = find_settings(cell, group)
    assert len(settings) == count
    assert len(settings.lattice) == count * len(settings.crystal)
    assert settings.names[0] == "h,k,l"
    assert sorted(settings.find(r) for r in settings.lattice) == sorted(list(range(count)) * len(settings.crystal))
    names = settings.relabelings()
    assert all(sorted(row) == list(range(count)) for row in names)
    assert names[0].tolist() == list(range(count))
    alternatives = settings.differences()
    seen = np.sort(np.concatenate([np.arange(count)[:, None], *alternatives], axis=1), axis=1)
    assert np.array_equal(seen, np.tile(np.arange(count), (count, 1)))


def test_an_accident_ends_with_the_tolerance() -> None:
    cell = (50.0, 51.0, 80.0, 90.0, 90.0, 90.0)
    assert len(find_settings(cell, "P 21 21 21", 1.0)) == 1
    settings = find_settings(cell, "P 21 21 21", 2.0)
    assert len(settings) == 2
    assert strain(cell, settings.matrices[0]) == pytest.approx(0.0, abs=1e-12)
    assert strain(cell, settings.matrices[1]) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(("group", "cell", "count"), ALL)
def test_operators_are_rotations_of_the_lattice_outside_the_point_group(group, cell, count) -> None:
    settings = find_settings(cell, group)
    b, own = b_matrix(cell), {r.tobytes() for r in settings.crystal}
    if group[0] == "P":
        assert len(settings.lattice) == len(lattice_rotations(cell, 2.0)), "counted in another way"
    for name, matrix in zip(settings.names[1:], settings.matrices[1:], strict=True):
        hkl = np.array([12, 6, 18])
        new = reindexed(hkl[None], matrix)[0]
        indices = {"h": int(hkl[0]), "k": int(hkl[1]), "l": int(hkl[2])}
        assert new.tolist() == [eval(part, {}, indices) for part in name.split(",")]
        assert np.linalg.det(matrix / DEN) == pytest.approx(1.0)
        assert np.linalg.norm(b @ new) == pytest.approx(np.linalg.norm(b @ hkl), rel=0.02)
        assert matrix.tobytes() not in own
        exact = group[0] != "P" or cell[3:] == (90.0, 90.0, 120.0) or cell[0] == cell[1]
        assert strain(cell, matrix) < (1e-9 if exact else 0.02)


@pytest.mark.parametrize(("group", "cell", "count"), ALL)
def test_table_says_what_an_index_is_in_each_setting(group, cell, count) -> None:
    settings = find_settings(cell, group)
    space_group = gemmi.SpaceGroup(group)
    grid = np.array(np.meshgrid(*[np.arange(-4, 5)] * 3)).reshape(3, -1).T.astype(np.int32)
    hkl = grid[~_absent(grid, space_group)]
    number, table, keys = settings.unique(hkl)
    asu = gemmi.ReciprocalAsu(space_group)
    operations = space_group.operations()
    for c, matrix in enumerate(settings.matrices):
        moved = reindexed(hkl, matrix)
        reduced = [tuple(asu.to_asu(h.tolist(), operations)[0]) for h in moved]
        _, one = np.unique(np.array(reduced), axis=0, return_inverse=True)
        pairs = np.unique(np.stack([one, table[number, c]], axis=1), axis=0)
        assert len(pairs) == len(np.unique(one)) == len(np.unique(table[number, c]))
    assert np.all(np.diff(keys) > 0)


def _absent(hkl: np.ndarray, group: gemmi.SpaceGroup) -> np.ndarray:
    centring = gemmi.find_spacegroup_by_name(group.centring_type() + (" 1" if group.centring_type() != "R" else " 3:H"))
    return np.asarray(centring.operations().systematic_absences(hkl), dtype=bool)


def test_an_index_that_the_lattice_has_not() -> None:
    settings = find_settings((60.0 * 3**0.5, 60.0, 80.0, 90.0, 90.0, 90.0), "C 1 2 1")
    halves = next(m for m in settings.matrices if np.any(m % DEN))
    with pytest.raises(ValueError, match=r"index \(1, 0, 0\) is not one of the lattice"):
        reindexed(np.array([[1, 0, 0]]), halves)


def test_more_symmetry_leaves_fewer_settings() -> None:
    settings = find_settings(CASES["P 3"], "P 3")
    fewer = settings.merged([1])
    assert len(fewer) == 2
    assert len(fewer.crystal) == 6
    assert len(settings.merged([1, 2])) == 1

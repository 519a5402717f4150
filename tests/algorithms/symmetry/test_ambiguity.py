from __future__ import annotations

import numpy as np
import pytest

from xfelproc.algorithms.symmetry.ambiguity import indexing_ambiguity
from xfelproc.geometry.cells import b_matrix, lattice_rotations
from xfelproc.geometry.lattice_symmetry import point_group_rotations

CASES = [
    ((79, 79, 38, 90, 90, 90), "P 43", 1, True),
    ((79, 79, 38, 90, 90, 90), "P 43 21 2", 0, True),
    ((93, 93, 130, 90, 90, 120), "P 61", 1, True),
    ((93, 93, 130, 90, 90, 120), "P 3", 3, True),
    ((93, 93, 130, 90, 90, 120), "P 31 2 1", 1, True),
    ((90, 90, 140, 90, 90, 120), "R 3:H", 1, True),
    ((78, 78, 78, 90, 90, 90), "I 2 3", 1, True),
    ((50, 50.2, 80, 90, 90, 90), "P 21 21 21", 1, False),
    ((50, 60, 50.1, 90, 104, 90), "P 1 21 1", 1, False),
    ((50, 60, 80, 90, 90.4, 90), "P 1 21 1", 1, False),
    ((61, 122.6, 168, 90, 90, 90), "C 2 2 21", 0, False),
]


@pytest.mark.parametrize(("cell", "group", "count", "merohedral"), CASES)
def test_operators(cell, group, count, merohedral):
    found = indexing_ambiguity(cell, group)
    assert len(found) == count
    assert all(operator.merohedral == merohedral for operator in found)


@pytest.mark.parametrize(("cell", "group", "count", "merohedral"), [case for case in CASES if case[2]])
def test_operators_are_rotations_of_the_lattice_outside_the_point_group(cell, group, count, merohedral):
    b = b_matrix(cell)
    own = {tuple(np.rint(np.linalg.inv(r).T).astype(int).ravel()) for r in point_group_rotations(group)}
    for operator in indexing_ambiguity(cell, group):
        hkl = np.array([2, 1, 5])
        new = operator.matrix @ hkl
        names = {"h": int(hkl[0]), "k": int(hkl[1]), "l": int(hkl[2])}
        assert new.tolist() == [eval(part, {}, names) for part in operator.text.split(",")]
        assert round(np.linalg.det(operator.matrix)) == 1
        assert np.linalg.norm(b @ new) == pytest.approx(np.linalg.norm(b @ hkl), rel=0.02)
        assert tuple(operator.matrix.ravel()) not in own
        assert operator.strain < (1e-9 if merohedral else 0.02)


def test_cosets_fill_the_rotation_group_of_the_lattice():
    """Order of the lattice's rotations = order of the point group x (1 + number of operators), counted in another way."""
    for cell, group, count, _ in CASES:
        if group[0] in "PR":
            assert len(lattice_rotations(cell, 3.0)) == len(point_group_rotations(group)) * (1 + count) or group[0] == "R"

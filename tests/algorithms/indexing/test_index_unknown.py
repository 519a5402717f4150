from __future__ import annotations

import numpy as np
import pytest

from tests.algorithms.indexing.generator import basis_of, beam, detector, lattice_spots, random_pixels, random_rotation, table
from xfelproc.algorithms.indexing import Fft1d, Index
from xfelproc.algorithms.indexing.fft1d import shortest_basis, undo_multiple
from xfelproc.geometry.lattice_characters import bravais_of
from xfelproc.geometry.reduction import reduced_cell
from xfelproc.models.frames import CellTarget

LATTICES = [
    ("tP", "P", (79.1, 79.1, 38.0, 90, 90, 90)),
    ("hP", "P", (92.9, 92.9, 130.4, 90, 90, 120)),
    ("oC", "C", (61.4, 122.6, 168.0, 90, 90, 90)),
    ("cI", "I", (78.0, 78.0, 78.0, 90, 90, 90)),
    ("cF", "F", (120.0, 120.0, 120.0, 90, 90, 90)),
    ("hR", "R", (90.0, 90.0, 140.0, 90, 90, 120)),
    ("mC", "C", (80.0, 50.0, 60.0, 90, 110, 90)),
    ("aP", "P", (41.0, 52.0, 63.0, 95, 102, 98)),
]


@pytest.mark.parametrize(("bravais", "centring", "cell"), LATTICES)
def test_lattice_is_found_and_its_symmetry_proposed(bravais, centring, cell):
    rng = np.random.default_rng(2)
    for n_spots in (45, 150):
        basis = basis_of(cell) @ random_rotation(rng).T
        result = Index().index(table(lattice_spots(basis, centring, rng, n_spots)[0], rng), detector(), beam(), CellTarget())
        assert len(result.lattices) == 1, result.reason
        found = result.lattices[0]
        assert bravais_of(found.crystal.space_group) == bravais
        ours = reduced_cell(found.crystal.cell, bravais[1])
        assert np.allclose(ours[:3], reduced_cell(cell, centring)[:3], rtol=0.01)
        assert np.allclose(ours[3:], reduced_cell(cell, centring)[3:], atol=1.0)
        assert len(found.spots) > 0.75 * n_spots


def test_space_group_without_cell():
    rng = np.random.default_rng(3)
    cell = LATTICES[0][2]
    spots = table(lattice_spots(basis_of(cell) @ random_rotation(rng).T, "P", rng, 100)[0], rng)
    result = Index().index(spots, detector(), beam(), CellTarget(None, "P 43 21 2"))
    assert result.lattices[0].crystal.space_group == "P 43 21 2"
    assert np.allclose(result.lattices[0].crystal.cell[:3], cell[:3], rtol=0.01)
    refused = Index().index(spots, detector(), beam(), CellTarget(None, "P 61 2 2"))
    assert not refused.lattices
    assert "P 61 2 2" in refused.reason


def test_known_cell_by_transforms():
    rng = np.random.default_rng(4)
    cell = LATTICES[2][2]
    spots = table(lattice_spots(basis_of(cell) @ random_rotation(rng).T, "C", rng, 150)[0], rng)
    result = Index(method="fft1d").index(spots, detector(), beam(), CellTarget(cell, "C 2 2 21"))
    assert result.lattices[0].crystal.space_group == "C 2 2 21"
    assert np.allclose(result.lattices[0].crystal.cell[:3], cell[:3], rtol=0.01)


def test_random_spots_are_not_indexed():
    rng = np.random.default_rng(5)
    for n in (15, 60, 200):
        for _ in range(5):
            assert not Index().index(table(random_pixels(rng, n), rng), detector(), beam(), CellTarget()).lattices


def test_multiples_are_undone():
    rng = np.random.default_rng(6)
    basis = basis_of(LATTICES[7][2]) @ random_rotation(rng).T
    q = rng.integers(-6, 7, (80, 3)) @ np.linalg.inv(basis).T
    for k, p in ((0, 2), (1, 3), (2, 2)):
        larger = basis.copy()
        larger[k] *= p
        finer = undo_multiple(larger, q, 1e-3)
        assert finer is not None
        assert abs(np.linalg.det(finer)) == pytest.approx(abs(np.linalg.det(basis)))
    assert undo_multiple(basis, q, 1e-3) is None


def test_shortest_vectors_that_span_space():
    vectors = np.array([[10.0, 0, 0], [20.0, 0.1, 0], [0, 30.0, 0], [10, 30.0, 0.5], [0, 0, -50.0]])
    basis = shortest_basis(vectors)
    assert basis is not None
    assert np.allclose(np.sort(np.linalg.norm(basis, axis=1)), [10, 30, 50])
    assert np.linalg.det(basis) > 0
    assert shortest_basis(vectors[:4]) is None


def test_no_transform_where_nothing_can_be_seen():
    q = 1e-3 * np.ones((20, 3))
    assert list(Fft1d().search(q, np.ones(20), 0.002)) == []

from __future__ import annotations

import numpy as np
import pytest

from tests.algorithms.indexing.generator import (
    DISTANCE,
    PIXEL,
    WAVELENGTH,
    basis_of,
    beam,
    detector,
    lattice_spots,
    random_pixels,
    random_rotation,
    table,
)
from xfelproc.algorithms.indexing import Index
from xfelproc.errors import ConfigError
from xfelproc.geometry.cells import lattice_rotations, misorientation, rotation_matrix
from xfelproc.geometry.detector import pixel_to_q
from xfelproc.models.frames import CellTarget

LATTICES = [
    ("P 43 21 2", "P", (79.1, 79.1, 38.0, 90, 90, 90)),
    ("P 61 2 2", "P", (92.9, 92.9, 130.4, 90, 90, 120)),
    ("C 2 2 21", "C", (61.4, 122.6, 168.0, 90, 90, 90)),
    ("I 2 3", "I", (78.0, 78.0, 78.0, 90, 90, 90)),
    ("F 4 3 2", "F", (120.0, 120.0, 120.0, 90, 90, 90)),
    ("R 3 2:H", "R", (90.0, 90.0, 140.0, 90, 90, 120)),
    ("C 1 2 1", "C", (80.0, 50.0, 60.0, 90, 110, 90)),
    ("P 1", "P", (41.0, 52.0, 63.0, 75, 82, 68)),
    ("P 1", "P", (41.0, 52.0, 63.0, 95, 102, 98)),
]


@pytest.mark.parametrize(("group", "centring", "cell"), LATTICES)
@pytest.mark.parametrize("n_spots", [15, 120])
def test_known_cell(group, centring, cell, n_spots):
    rng = np.random.default_rng(n_spots)
    for _ in range(3):
        basis = basis_of(cell) @ random_rotation(rng).T
        pixels, _ = lattice_spots(basis, centring, rng, n_spots)
        spots = table(pixels, rng)
        result = Index().index(spots, detector(), beam(), CellTarget(cell, group))
        assert len(result.lattices) == 1, result.reason
        lattice = result.lattices[0]
        assert misorientation(lattice.crystal.a_matrix, np.linalg.inv(basis), lattice_rotations(cell, 1.0)) < 0.3
        assert np.allclose(lattice.crystal.cell[3:], cell[3:], atol=1.0)
        assert np.allclose(lattice.crystal.cell[:3], cell[:3], rtol=0.01)
        assert len(lattice.spots) >= 0.8 * n_spots
        assert np.all(np.diff(lattice.spots) > 0)
        q = pixel_to_q(detector(), beam(), 0, spots["fast"], spots["slow"])[lattice.spots]
        assert np.max(np.abs(q @ lattice.crystal.real_space.T - lattice.hkl)) < 0.5


def test_several_lattices_without_duplicates():
    rng = np.random.default_rng(3)
    cell = LATTICES[0][2]
    bases = [basis_of(cell) @ random_rotation(rng).T for _ in range(3)]
    pixels = np.concatenate([lattice_spots(basis, "P", rng, 70)[0] for basis in bases])
    result = Index(max_lattices=5).index(table(pixels, rng), detector(), beam(), CellTarget(cell, "P 43 21 2"))
    assert len(result.lattices) == 3
    rotations = lattice_rotations(cell, 1.0)
    for basis in bases:
        assert min(misorientation(found.crystal.a_matrix, np.linalg.inv(basis), rotations) for found in result.lattices) < 0.3
    rows = np.concatenate([found.spots for found in result.lattices])
    assert len(np.unique(rows)) == len(rows)


@pytest.mark.parametrize(("min_misorientation", "n_lattices"), [(0.7, 2), (6.0, 1)])
def test_lattices_near_each_other_are_one(min_misorientation, n_lattices):
    rng = np.random.default_rng(5)
    cell = LATTICES[0][2]
    basis = basis_of(cell) @ random_rotation(rng).T
    near = basis @ rotation_matrix(np.radians([0.0, 4.0, 0.0]))
    pixels = np.concatenate([lattice_spots(b, "P", rng, 100)[0] for b in (basis, near)])
    index = Index(min_misorientation=min_misorientation)
    result = index.index(table(pixels, rng), detector(), beam(), CellTarget(cell, "P 43 21 2"))
    assert len(result.lattices) == n_lattices


def test_random_spots_are_not_indexed():
    rng = np.random.default_rng(4)
    for n in (15, 40, 100, 200):
        for _ in range(10):
            result = Index().index(table(random_pixels(rng, n), rng), detector(), beam(), CellTarget(LATTICES[0][2], "P 43 21 2"))
            assert not result.lattices
            assert "spots" in result.reason


def test_too_few_spots_is_a_reason():
    rng = np.random.default_rng(5)
    result = Index().index(table(random_pixels(rng, 5), rng), detector(), beam(), CellTarget(LATTICES[0][2], None))
    assert result.reason == "too few spots: 5, indexing needs 8"


@pytest.mark.parametrize(
    ("cell", "group", "word"),
    [
        ((79, 79, -38, 90, 90, 90), None, "impossible"),
        ((79, 79, 38, 20, 20, 90), None, "impossible"),
        ((79, 38, 79, 90, 90, 90), "P 43 21 2", "does not fit"),
        ((79, 79, 38, 90, 90, 90), "P 9", "not known"),
    ],
)
def test_wrong_targets_are_refused(cell, group, word):
    with pytest.raises(ConfigError, match=word):
        Index(cell=cell, space_group=group).target()


def test_displaced_beam_centre_is_found():
    """The beam is declared a quarter of the mean spacing of spots off: the shift is found, the orientation exact."""
    rng = np.random.default_rng(6)
    cell = LATTICES[0][2]
    for k in range(4):
        basis = basis_of(cell) @ random_rotation(rng).T
        spots = table(lattice_spots(basis, "P", rng, 100)[0], rng)
        spacing = 0.25 / np.mean(cell[:3]) * WAVELENGTH * DISTANCE
        move = (spacing * np.cos(k), spacing * np.sin(k))
        result = Index().index(spots, detector((move[0] / PIXEL, move[1] / PIXEL)), beam(), CellTarget(cell, "P 43 21 2"))
        assert len(result.lattices) == 1, result.reason
        found = result.lattices[0]
        assert misorientation(found.crystal.a_matrix, np.linalg.inv(basis), lattice_rotations(cell, 1.0)) < 0.1
        assert np.allclose(found.shift, (move[0], -move[1], 0), atol=0.03)


def test_cell_off_by_two_percent():
    rng = np.random.default_rng(9)
    cell = LATTICES[1][2]
    wrong = (*(1.02 * v for v in cell[:3]), *cell[3:])
    for _ in range(4):
        basis = basis_of(cell) @ random_rotation(rng).T
        result = Index().index(table(lattice_spots(basis, "P", rng, 80)[0], rng), detector(), beam(), CellTarget(wrong, "P 61 2 2"))
        assert len(result.lattices) == 1, result.reason
        assert np.allclose(result.lattices[0].crystal.cell[:3], cell[:3], rtol=0.006)


def test_another_cell_is_told():
    """The lattice of a crystal of another cell is refused, with a reason."""
    rng = np.random.default_rng(10)
    basis = basis_of((79.1, 79.1, 38.0, 90, 90, 90)) @ random_rotation(rng).T
    spots = table(lattice_spots(basis, "P", rng, 100)[0], rng)
    result = Index(method="fft1d").index(spots, detector(), beam(), CellTarget((74.0, 74.0, 38.0, 90, 90, 90), "P 43 21 2"))
    assert not result.lattices
    assert "differs from the target 74.0 74.0 38.0" in result.reason


def test_wrong_distance_is_searched_for_when_asked():
    """The detector is declared 8 % too near: nothing is found there, but the distance is when it may be searched."""
    rng = np.random.default_rng(12)
    cell = LATTICES[0][2]
    basis = basis_of(cell) @ random_rotation(rng).T
    spots = table(lattice_spots(basis, "P", rng, 120)[0], rng)
    near = detector().shifted((0.0, 0.0, 0.08 * DISTANCE))
    target = CellTarget(cell, "P 43 21 2")
    assert not Index().index(spots, near, beam(), target).lattices
    found = Index(max_distance_error=0.12).index(spots, near, beam(), target).lattices[0]
    assert found.shift[2] == pytest.approx(-0.08 * DISTANCE, abs=0.012 * DISTANCE)
    assert misorientation(found.crystal.a_matrix, np.linalg.inv(basis), lattice_rotations(cell, 1.0)) < 0.5

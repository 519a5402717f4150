from __future__ import annotations

import gemmi
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfelproc.geometry.cells import (
    b_matrix,
    cell_volume,
    lattice_rotations,
    misorientation,
    real_space_basis,
    resolution,
    rotation_matrix,
)
from xfelproc.models.experiment import Crystal, as_matrix

lengths = st.floats(5, 300)
angles = st.floats(75, 105)
cells = st.tuples(lengths, lengths, lengths, angles, angles, angles)
vectors = st.tuples(*[st.floats(-2, 2)] * 3)


@given(cells)
def test_cell_agrees_with_gemmi(cell: tuple[float, ...]) -> None:
    reference = gemmi.UnitCell(*cell)
    assert cell_volume(cell) == pytest.approx(reference.volume, rel=1e-9)
    assert resolution(b_matrix(cell), [[1, -2, 3]])[0] == pytest.approx(reference.calculate_d([1, -2, 3]), rel=1e-9)
    assert real_space_basis(cell).T == pytest.approx(np.array(reference.orth.mat.tolist()), abs=1e-8)


@given(cells, vectors)
def test_crystal_keeps_its_cell_when_turned(cell: tuple[float, ...], turn: tuple[float, float, float]) -> None:
    crystal = Crystal(as_matrix(rotation_matrix(turn) @ b_matrix(cell)))
    assert crystal.cell == pytest.approx(cell, rel=1e-8)


@pytest.mark.parametrize(
    ("cell", "order"),
    [
        ((79.1, 79.1, 38.0, 90, 90, 90), 8),
        ((60, 60, 60, 90, 90, 90), 24),
        ((93, 93, 130, 90, 90, 120), 12),
        ((50, 60, 70, 90, 90, 90), 4),
        ((50, 60, 70, 90, 100, 90), 2),
        ((50, 60, 70, 80, 100, 95), 1),
    ],
)
def test_lattice_rotations_have_the_order_of_the_holohedry(cell: tuple[float, ...], order: int) -> None:
    assert len(lattice_rotations(cell)) == order


@given(vectors, st.floats(0.0001, 3.0))
def test_misorientation_is_modulo_the_lattice(turn: tuple[float, float, float], angle: float) -> None:
    cell = (79.1, 79.1, 38.0, 90, 90, 90)
    reference = rotation_matrix(turn) @ b_matrix(cell)
    moved = rotation_matrix(np.radians(angle) * np.array([0.6, 0.0, 0.8])) @ reference
    symmetric = np.linalg.inv(lattice_rotations(cell)[5] @ np.linalg.inv(moved))
    assert misorientation(symmetric, reference, lattice_rotations(cell)) == pytest.approx(angle, abs=1e-6)

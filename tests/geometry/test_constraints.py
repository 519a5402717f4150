from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xfelproc.errors import ConfigError
from xfelproc.geometry.cells import b_matrix, misorientation, rotation_matrix
from xfelproc.geometry.constraints import (
    average_metric,
    centring_vectors,
    constrain,
    metric_basis,
    point_operations,
    space_group_of,
)
from xfelproc.models.experiment import Crystal, as_matrix

CELLS = {
    "P 1": (40, 51, 62, 83, 97, 102),
    "C 1 2 1": (40, 51, 62, 90, 97, 90),
    "P 21 21 21": (40, 51, 62, 90, 90, 90),
    "P 43 21 2": (79, 79, 38, 90, 90, 90),
    "P 61 2 2": (93, 93, 130, 90, 90, 120),
    "R 3:H": (93, 93, 130, 90, 90, 120),
    "R 3:R": (70, 70, 70, 75, 75, 75),
    "F 2 3": (80, 80, 80, 90, 90, 90),
}
FREE = {"P 1": 6, "C 1 2 1": 4, "P 21 21 21": 3, "P 43 21 2": 2, "P 61 2 2": 2, "R 3:H": 2, "R 3:R": 2, "F 2 3": 1}


@pytest.mark.parametrize("symbol", CELLS)
def test_free_parameters(symbol: str) -> None:
    basis = metric_basis(symbol)
    assert len(basis) == FREE[symbol]
    assert np.allclose(np.einsum("ijk,ljk->il", basis, basis), np.eye(len(basis)))
    a = b_matrix(CELLS[symbol])
    metric = a.T @ a
    assert np.allclose(average_metric(metric, symbol), metric, atol=1e-12)
    for operation in point_operations(symbol):
        assert np.allclose(operation @ metric @ operation.T, metric, atol=1e-12)


@pytest.mark.parametrize("symbol", CELLS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_constrain_keeps_the_orientation(symbol: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rotation_matrix(rng.normal(size=3)) @ b_matrix(CELLS[symbol])
    strained = (np.eye(3) + 0.005 * rng.normal(size=(3, 3))) @ a
    found = constrain(strained, symbol)
    assert np.allclose(average_metric(found.T @ found, symbol), found.T @ found)
    assert misorientation(found, strained) < 1.0
    assert np.allclose(constrain(a, symbol), a, atol=1e-12)
    cell = Crystal(as_matrix(found)).cell
    assert cell == pytest.approx(CELLS[symbol], rel=0.05)


def test_strain_along_the_basis_keeps_the_symmetry_exactly() -> None:
    symbol = "P 61 2 2"
    a = rotation_matrix([0.3, -1.0, 0.4]) @ b_matrix(CELLS[symbol])
    for direction in metric_basis(symbol):
        strained = a + 0.5 * np.linalg.inv(a).T @ (1e-5 * direction)
        metric = strained.T @ strained
        assert np.abs(metric - a.T @ a).max() > 1e-6
        assert np.allclose(average_metric(metric, symbol), metric, atol=1e-16)


def test_centring() -> None:
    assert len(centring_vectors("P 43 21 2")) == 0
    rule = centring_vectors("F 2 3")
    assert [bool(np.all(np.array(h) @ rule.T % 24 == 0)) for h in ((1, 1, 1), (2, 0, 0), (1, 0, 0), (1, 1, 0))] == [
        True,
        True,
        False,
        False,
    ]


def test_unknown_space_group() -> None:
    with pytest.raises(ConfigError, match="P 99"):
        space_group_of("P 99")

"""The scatter of cells and the distance of a cell from it."""

from __future__ import annotations

import numpy as np
import pytest

from xfelproc.algorithms.merging.cell_spread import CellSpread, robust_covariance

TETRAGONAL = np.array([79.1, 79.1, 38.0, 90.0, 90.0, 90.0])
MONOCLINIC = np.array([60.0, 70.0, 80.0, 90.0, 100.0, 90.0])


def scattered(cell: np.ndarray, n: int, spread: float, free: list[list[int]], seed: int = 1) -> np.ndarray:
    """Cells whose parameters (those of a list together) have a relative normal spread."""
    rng, cells = np.random.default_rng(seed), np.tile(cell, (n, 1))
    for columns in free:
        cells[:, columns] *= 1.0 + spread * rng.standard_normal((n, 1))
    return cells


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.4])
def test_covariance_is_that_of_most_rows(wrong: float) -> None:
    rng = np.random.default_rng(3)
    covariance = np.array([[4.0, 1.8, 0.0], [1.8, 1.0, 0.0], [0.0, 0.0, 0.01]])
    values = rng.multivariate_normal([5.0, -3.0, 0.0], covariance, 4000)
    values[: int(wrong * 4000)] = rng.normal([30.0, 4.0, -3.0], 1.0, (int(wrong * 4000), 3))
    centre, found = robust_covariance(values)
    assert centre == pytest.approx([5.0, -3.0, 0.0], abs=0.15)
    relative = np.linalg.solve(np.linalg.cholesky(covariance), np.linalg.cholesky(found))
    assert relative == pytest.approx(np.eye(3), abs=0.12 + 0.2 * wrong)


def test_few_rows_have_no_correlations() -> None:
    centre, covariance = robust_covariance(np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 400.0]]))
    assert centre.tolist() == [2.0, 2.0]
    assert covariance == pytest.approx(1.4826**2 * np.eye(2))


@pytest.mark.parametrize(
    ("cell", "symbol", "free"),
    [
        (TETRAGONAL, "P 43 21 2", [[0, 1], [2]]),
        (MONOCLINIC, "P 1 21 1", [[0], [1], [2], [4]]),
        (TETRAGONAL, "P 1", [[0], [1], [2], [3], [4], [5]]),
    ],
)
def test_distances_are_of_as_many_parameters_as_are_free(cell: np.ndarray, symbol: str, free: list[list[int]]) -> None:
    spread = CellSpread.of(scattered(cell, 6000, 1e-3, free), symbol)
    squared = spread.distances(scattered(cell, 3000, 1e-3, free, seed=2)) ** 2
    assert squared.mean() == pytest.approx(len(free), rel=0.1)


def test_a_cell_against_the_correlation_is_far() -> None:
    # lengths that change together, as an error of the distance makes them
    cells = scattered(TETRAGONAL, 3000, 2e-3, [[0, 1, 2]])
    cells[:, :3] *= 1.0 + 2e-4 * np.random.default_rng(5).standard_normal((3000, 1)) * [1, 1, -1]
    spread = CellSpread.of(cells, "P 43 21 2")
    along, against = TETRAGONAL.copy(), TETRAGONAL.copy()
    along[:3] *= 1.003
    against[:3] *= [1.003, 1.003, 0.997]
    near, far = spread.distances(np.stack([along, against]))
    assert near < 2.5
    assert far > 8.0


def test_equal_cells_have_no_distance() -> None:
    cells = np.tile(TETRAGONAL, (100, 1))
    assert CellSpread.of(cells, "P 43 21 2").distances(cells) == pytest.approx(np.zeros(100), abs=1e-6)

from __future__ import annotations

import numpy as np
import pytest

from xfelproc.kernels.small_matrices import solve_spd


def test_solver() -> None:
    rng = np.random.default_rng(1)
    j = rng.normal(size=(30, 7)) * 10.0 ** np.arange(-6, 8, 2)
    matrix, vector = j.T @ j, j.T @ rng.normal(size=30)
    solution = vector.copy()
    assert solve_spd(matrix.copy(), solution)
    scale = 1 / np.sqrt(np.diag(matrix))
    expected = scale * np.linalg.solve(matrix * np.outer(scale, scale), vector * scale)
    assert solution == pytest.approx(expected, rel=1e-6)
    assert not solve_spd(np.zeros((2, 2)), np.ones(2))

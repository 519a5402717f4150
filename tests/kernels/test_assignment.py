from __future__ import annotations

import numpy as np

from xfelproc.geometry.cells import b_matrix
from xfelproc.kernels.assignment import assign_indices, keep_nearest


def test_assignment_and_duplicates() -> None:
    a = b_matrix((50, 60, 70, 90, 90, 90))
    exact = np.array([[1, 2, 3], [1, 2, 3], [4, 0, -2], [0, 0, 0]])
    q = (exact + np.array([[0.1, 0, 0], [0, -0.2, 0], [0, 0, 0.35], [0.1, 0.1, 0.1]])) @ a.T
    hkl = np.zeros((4, 3), dtype=np.int32)
    inside = np.zeros(4, dtype=bool)
    assert assign_indices(a, q, 0.3, hkl, inside) == 2
    assert inside.tolist() == [True, True, False, False]
    assert np.array_equal(hkl[:3], exact[:3])
    keep = np.zeros(4, dtype=bool)
    keep_nearest(hkl, np.array([2.0, 1.0, 0.0, 0.0]), inside, keep)
    assert keep.tolist() == [False, True, False, False]

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from xfelproc.kernels.components import label_components, sort_by_component


@pytest.mark.parametrize("eight", [True, False])
@pytest.mark.parametrize("density", [0.05, 0.35, 0.5, 0.9])
def test_labels_agree_with_scipy(eight: bool, density: float) -> None:
    stack = np.random.default_rng(int(100 * density)).random((3, 40, 57)) < density
    structure = np.ones((3, 3)) if eight else ndimage.generate_binary_structure(2, 1)
    reference = np.zeros(stack.shape, dtype=int)
    for p in range(3):
        labels, n = ndimage.label(stack[p], structure)
        reference[p] = np.where(labels > 0, labels + reference.max(), 0)
    index = np.flatnonzero(stack).astype(np.int32)
    label = np.empty(len(index), dtype=np.int32)
    n = label_components(index, 57, 40, eight, label)
    assert n == reference.max()
    assert np.array_equal(label + 1, reference.ravel()[index])
    order, start = np.empty(len(index), dtype=np.int32), np.empty(n + 1, dtype=np.int32)
    sort_by_component(label, n, order, start)
    assert np.array_equal(order, np.argsort(label, kind="stable"))
    assert np.array_equal(np.diff(start), np.bincount(label, minlength=n))


def test_nothing() -> None:
    empty = np.empty(0, dtype=np.int32)
    assert label_components(empty, 5, 5, True, empty.copy()) == 0

from __future__ import annotations

import numpy as np
import pytest

from xfelproc.kernels.accumulate import accumulate_binned


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("binning", [1, 2, 3])
def test_against_plain_numpy(dtype: type, binning: int) -> None:
    rng = np.random.default_rng(1)
    shape, size = (2, 10, 11), (2, -(-10 // binning), -(-11 // binning))
    total, maximum = np.zeros(size, np.float32), np.zeros(size, np.float32)
    expected_total, expected_maximum = np.zeros(size), np.zeros(size)
    trusted = np.array([[1.0, 90.0], [0.0, 95.0]])
    for _ in range(3):
        pixels = rng.integers(0, 100, shape).astype(dtype)
        mask = (rng.random(shape) < 0.1).astype(np.uint8)
        accumulate_binned(pixels, mask, trusted, binning, total, maximum)
        good = (mask == 0) & (pixels >= trusted[:, :1, None]) & (pixels <= trusted[:, 1:, None])
        for p, s, f in zip(*np.nonzero(good), strict=True):
            where = (p, s // binning, f // binning)
            expected_total[where] += pixels[p, s, f]
            expected_maximum[where] = max(expected_maximum[where], pixels[p, s, f])
    np.testing.assert_array_equal(total, expected_total)
    np.testing.assert_array_equal(maximum, expected_maximum)


def test_nan_is_left_out() -> None:
    pixels = np.array([[[np.nan, 2.0]]], dtype=np.float32)
    total, maximum = np.zeros((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.float32)
    accumulate_binned(pixels, np.zeros((1, 1, 2), np.uint8), np.array([[-np.inf, np.inf]]), 2, total, maximum)
    assert total[0, 0, 0] == maximum[0, 0, 0] == 2.0

from __future__ import annotations

import numpy as np
import pytest

from xfelproc.kernels.calibration import list_coded


@pytest.mark.parametrize(("dtype", "shift"), [(np.uint16, 14), (np.uint8, 0)])
@pytest.mark.parametrize("box", [(0, 9, 0, 300), (2, 5, 7, 290), (3, 4, 130, 131)])
def test_pixels_with_a_code_are_listed_row_by_row(dtype: type, shift: int, box: tuple[int, int, int, int]) -> None:
    rng = np.random.default_rng(1)
    codes = np.zeros((2, 9, 300), dtype=dtype)
    codes[rng.random(codes.shape) < 0.01] = 1 << shift
    if shift:
        codes |= rng.integers(0, 1 << shift, codes.shape, dtype=dtype)
    y0, y1, x0, x1 = box
    out = np.empty(((y1 - y0) * (x1 - x0), 2), dtype=np.int32)
    n = list_coded(codes, shift, False, 1, *box, out)
    expected = np.argwhere(codes[1, y0:y1, x0:x1] >> shift) + np.array([y0, x0])
    assert out[:n].tolist() == expected.tolist()
    assert list_coded(codes, shift, True, 1, *box, out) == len(out)

from __future__ import annotations

import numpy as np
import pytest

from xfelproc.kernels.calibration import Part, RawFrame, calibrate_frame, write_photons
from xfelproc.kernels.calibration_groups import part_of, write_adu

WIDTH, HEIGHT = 300, 9
SIZE = WIDTH * HEIGHT
TOP = np.float32(1e6)


def raw_frame(every: bool = False) -> tuple[RawFrame, np.ndarray, np.ndarray]:
    """Two panels with a pixel in thirty of code 1, some saturated or without a value; photons and, of code 0, ADU."""
    rng = np.random.default_rng(1)
    values, codes = rng.integers(100, 9000, (2, SIZE)), (rng.random((2, SIZE)) < 0.03).astype(np.int64)
    values[:, 700:1500:50], codes[:, 700:1500:50] = 10_500, 0  # saturated in the first stage
    values[:, 725:1500:50], codes[:, 725:1500:50] = 20, 0  # below the lowest
    maps = rng.uniform(1.0, 50.0, (2, 2, 2, SIZE)).astype(np.float32)
    raw = RawFrame(
        pixels=(values | codes << 14).astype(np.uint16),
        codes=np.empty((1, 0), dtype=np.uint8),
        width=WIDTH,
        coded=True,
        shift=14,
        bits=True,
        limits=np.array([[50, 10_000, 65534]] * 2, dtype=np.uint16),
        plain=np.array([[1, 0] if every else [50, 10_000]] * 2, dtype=np.uint16),
        stages=np.array([[-1 if every else 0, 1]] * 2, dtype=np.int8),
        saturated=np.full((2, 2, 2), np.inf) * [-1, 1],
        largest=np.full(2, 65534.0),
        pedestal=maps[0],
        inverse_gain=maps[1],
        factor=np.float32(0.5),
        ceiling=np.full(2, TOP),
    )
    adu = values.astype(np.float32) - np.where(codes == 0, maps[0, 0], maps[0, 1])
    photons = adu * (np.where(codes == 0, maps[1, 0], maps[1, 1]) * np.float32(0.5))
    first = codes == 0
    photons[first & (values > 10_000)], adu[first & (values > 10_000)] = TOP, np.inf
    photons[first & (values < 50)], adu[first & (values < 50)] = np.nan, np.nan
    if every:
        photons[first] = np.nan
    adu[~first] = np.nan
    return raw, photons, adu


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("begin", [0, 5])
def test_lines_and_single_pixels_alike(every: bool, begin: int) -> None:
    raw, photons, _ = raw_frame(every)
    out = np.full(2 * SIZE + 16, -1.0, dtype=np.float32)
    calibrate_frame(raw, out[begin : begin + 2 * SIZE].reshape(2, SIZE))
    assert np.array_equal(out[begin : begin + 2 * SIZE].reshape(2, SIZE), photons, equal_nan=True)  # to the last bit
    assert (out[:begin] == -1.0).all()
    assert (out[begin + 2 * SIZE :] == -1.0).all()


@pytest.mark.parametrize("box", [(0, 9, 0, 300), (2, 5, 7, 290), (3, 4, 130, 131)])
def test_rectangles(box: tuple[int, int, int, int]) -> None:
    raw, photons, adu = raw_frame()
    y0, y1, x0, x1 = box
    inside = (slice(y0, y1), slice(x0, x1))
    part = part_of(np.array([1, *box], dtype=np.int32), WIDTH)
    assert part.rows * part.width == (y1 - y0) * (x1 - x0)
    dark, scale = (maps[0, 1].reshape(HEIGHT, WIDTH)[inside].ravel() for maps in (raw.pedestal, raw.inverse_gain))
    out, tile = np.full((2, SIZE), -1.0, dtype=np.float32), np.empty(len(dark), dtype=np.float32)
    write_photons(raw, Part(*part), dark, scale, np.float32(0.0), np.empty(len(dark), dtype=np.int32), out)
    expected = np.full((HEIGHT, WIDTH), -1.0, dtype=np.float32)
    expected[inside] = photons[1].reshape(HEIGHT, WIDTH)[inside]
    assert np.array_equal(out[1], expected.ravel(), equal_nan=True)
    assert (out[0] == -1.0).all()
    write_adu(raw, Part(*part), dark, tile)
    assert np.array_equal(tile, adu[1].reshape(HEIGHT, WIDTH)[inside].ravel(), equal_nan=True)

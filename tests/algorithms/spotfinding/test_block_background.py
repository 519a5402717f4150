from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tests.algorithms.spotfinding.frames import expected, frame_of, grid
from xfelproc.algorithms.spotfinding.block_background import BlockBackground
from xfelproc.algorithms.spotfinding.workspace import workspace_for
from xfelproc.models.frames import Frame


def reference(frame: Frame, method: BlockBackground) -> NDArray[np.bool_]:
    """The same in plain numpy: block by block, then 3 x 3 sums of the panel with blocks' means in the place of bad pixels."""
    strong = np.zeros(frame.pixels.shape, dtype=bool)
    k = method.n_sigma
    for p, raw in enumerate(frame.pixels):
        values = raw.astype(float)
        height, width = values.shape
        good = (frame.mask[p] == 0) & (values >= frame.trusted[p, 0])
        ny, nx = round(height / method.block_size), round(width / method.block_size)
        ys, xs = [i * height // ny for i in range(ny + 1)], [i * width // nx for i in range(nx + 1)]
        for y0, y1 in pairwise(ys):
            fill, level = np.empty(width), np.empty(width)
            for x0, x1 in pairwise(xs):
                sampled = slice(y0, y1, method.row_step)
                v = values[sampled, x0:x1][good[sampled, x0:x1] & (values[sampled, x0:x1] <= frame.trusted[p, 1])]
                kept = v
                for _ in range(2):
                    kept = v[v <= kept.mean() + max(4 * kept.std(), 1.0)]
                m, s2 = kept.mean(), max(kept.var(), kept.mean())
                fill[x0:x1] = np.rint(m)
                level[x0:x1] = 9 * m + 3 * k * np.sqrt(s2) + (k * k - 1) / 6
            clean = np.where(good, np.minimum(values, frame.trusted[p, 1]), fill)
            padded = np.vstack([fill, clean, fill])
            padded = np.hstack([padded[:, :1], padded, padded[:, -1:]])
            padded[1:-1, 0], padded[1:-1, -1] = fill[0], fill[-1]
            sums = ndimage.uniform_filter(padded, 3, mode="nearest")[1:-1, 1:-1] * 9
            strong[p, y0:y1] = (sums > level)[y0:y1]
    return strong


@pytest.mark.parametrize(
    ("dtype", "step"), [("uint16", 4), *(pytest.param(d, s, marks=pytest.mark.slow) for d, s in (("int32", 1), ("float32", 4)))]
)
def test_agrees_with_plain_numpy(dtype: str, step: int) -> None:
    rng = np.random.default_rng(11)
    stack = np.stack([rng.poisson(expected((170, 190), b, grid(190, 170, 80.0, rng))) for b in (0.2, 6.0)]).astype(dtype)
    mask = np.zeros(stack.shape, dtype=np.uint8)
    mask[0, 60:75] = 1
    mask[1, :, 100:104] = 1
    frame = frame_of(stack, mask, high=40.0, low=0.0)
    method = BlockBackground(row_step=step)
    found = np.zeros(stack.size, dtype=bool)
    found[method.strong_pixels(frame, workspace_for(stack.shape, stack.dtype))] = True
    wanted = reference(frame, method)
    assert wanted.sum() > 500
    # thresholds are truncated to integers, sums in 32 bits: a pixel exactly at its threshold may differ
    assert (found.reshape(stack.shape) != wanted).sum() <= (2 if dtype == "float32" else 0)


def test_noise_above_that_of_counting_is_measured() -> None:
    rng = np.random.default_rng(2)
    noisy = np.clip(np.rint(rng.normal(20.0, 9.0, (4, 400, 400))), 0, None).astype(np.uint16)
    n = len(BlockBackground().strong_pixels(frame_of(noisy), workspace_for(noisy.shape, noisy.dtype)))
    assert n < 20


def test_masked_blocks_take_a_neighbours_background_and_empty_strips_find_nothing() -> None:
    rng = np.random.default_rng(3)
    pixels = rng.poisson(3.0, (200, 200)).astype(np.uint16)
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    mask[40:80] = 1
    mask[:40, 40:79] = 1
    pixels[20:22, 78:82] = 40
    method = BlockBackground()
    strong = method.strong_pixels(frame_of(pixels, mask), workspace_for((1, 200, 200), pixels.dtype))
    assert np.any((strong // 200 < 30) & (strong % 200 > 76) & (strong % 200 < 84))
    assert not np.any((strong // 200 >= 42) & (strong // 200 < 78))

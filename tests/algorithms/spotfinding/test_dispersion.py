from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tests.algorithms.spotfinding.frames import expected, frame_of, grid
from xfelproc.algorithms.spotfinding.dispersion import Dispersion
from xfelproc.algorithms.spotfinding.dispersion_extended import DispersionExtended
from xfelproc.algorithms.spotfinding.workspace import workspace_for
from xfelproc.models.frames import Frame

Bools = NDArray[np.bool_]


def windows(frame: Frame, p: int, high: float) -> tuple[NDArray[np.float64], Bools, Bools, Bools]:
    """Values, usable pixels, and both tests of Kabsch's method for one panel, in double precision."""
    values = np.minimum(frame.pixels[p].astype(float), high)
    good = frame.mask[p] == 0
    values[~good] = 0.0

    def box(a: NDArray[np.float64]) -> NDArray[np.float64]:
        return ndimage.correlate(a, np.ones((7, 7)), mode="constant")

    n, s, q = box(good.astype(float)), box(values), box(values**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = s / n
        variance = (q - s * s / n) / (n - 1)
        scattered = good & (n >= 2) & (s > 0) & (variance / mean > 1 + 6 * np.sqrt(2 / (n - 1)))
        bright = values > mean + 3 * np.sqrt(mean)
    return values, good, scattered, bright


def sample(dtype: str) -> tuple[Frame, NDArray[np.uint8]]:
    rng = np.random.default_rng(21)
    stack = np.stack([rng.poisson(expected((90, 120), b, grid(120, 90, 90.0, rng))) for b in (0.3, 5.0)]).astype(dtype)
    mask = np.zeros(stack.shape, dtype=np.uint8)
    mask[:, 30:35] = 1
    mask[:, :, 60] = 1
    return frame_of(stack, mask, high=500.0), mask


@pytest.mark.parametrize("dtype", ["uint16", *(pytest.param(d, marks=pytest.mark.slow) for d in ("int16", "float32"))])
def test_agrees_with_plain_numpy(dtype: str) -> None:
    frame, _ = sample(dtype)
    strong = np.zeros(frame.pixels.shape, dtype=bool)
    strong.ravel()[Dispersion().strong_pixels(frame, workspace_for(frame.pixels.shape, frame.pixels.dtype))] = True
    for p in range(2):
        _, _, scattered, bright = windows(frame, p, 500.0)
        assert (scattered & bright).sum() > 40
        assert np.array_equal(strong[p], scattered & bright)


def test_extended_agrees_with_plain_numpy() -> None:
    frame, _ = sample("uint16")
    workspace = workspace_for(frame.pixels.shape, frame.pixels.dtype)
    strong = np.zeros(frame.pixels.shape, dtype=bool)
    strong.ravel()[DispersionExtended().strong_pixels(frame, workspace)] = True
    assert not workspace.state.any()
    for p in range(2):
        values, good, scattered, _ = windows(frame, p, 500.0)
        signal = ndimage.binary_erosion(scattered, np.ones((7, 7)), border_value=1)
        kept = (good & ~signal).astype(float)
        n = ndimage.correlate(kept, np.ones((11, 11)), mode="constant")
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = ndimage.correlate(values * kept, np.ones((11, 11)), mode="constant") / n
            wanted = scattered & (np.rint(n) >= 2) & (values > mean + 3 * np.sqrt(mean))
        assert wanted.sum() > 40
        assert (strong[p] != wanted).sum() == 0


def test_extended_finds_more_pixels_of_each_spot() -> None:
    frame, _ = sample("uint16")
    workspace = workspace_for(frame.pixels.shape, frame.pixels.dtype)
    assert len(DispersionExtended().strong_pixels(frame, workspace)) > 1.2 * len(Dispersion().strong_pixels(frame, workspace))


def test_gain_scales_the_tests() -> None:
    rng = np.random.default_rng(4)
    raw = (rng.poisson(5.0, (1, 300, 300)) * 5).astype(np.uint16)
    workspace = workspace_for(raw.shape, raw.dtype)
    assert len(Dispersion().strong_pixels(frame_of(raw), workspace)) > 100
    assert len(Dispersion(gain=5.0).strong_pixels(frame_of(raw), workspace)) < 5

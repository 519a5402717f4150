from __future__ import annotations

import numpy as np
import pytest

from xfelproc.kernels.common_mode import METHODS, group_offset
from xfelproc.kernels.pixel_histogram import scratch_size

SHAPE = (185, 194)
SIGMA = 3.0
GAINS = (1.0 + 0.04 * np.random.default_rng(1).standard_normal(SHAPE)).astype(np.float32)
"""Relative gains of the pixels."""


def tile(
    rng: np.random.Generator, photons: float, gain: float, offset: float, spots: int = 0, shape: tuple[int, int] = SHAPE
) -> np.ndarray:
    """ADU of one group: photons that fall off by a factor 1.9 across it, noise and gain different from pixel to pixel."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    counts = rng.poisson(photons * (1.0 + 0.6 * (x / shape[1] - 0.5)))
    for _ in range(spots):
        slow, fast = rng.uniform(5, shape[0] - 5), rng.uniform(5, shape[1] - 5)
        counts = counts + rng.poisson(rng.uniform(20, 300) * np.exp(-0.5 * ((y - slow) ** 2 + (x - fast) ** 2)))
    gains = gain * GAINS[: shape[0], : shape[1]]
    noise = SIGMA * (1.0 + 0.1 * rng.standard_normal(shape)) * rng.standard_normal(shape)
    return (offset + counts * gains + noise).astype(np.float32)[None]


def offset_of(
    adu: np.ndarray, method: str, gain: float, use: np.ndarray | None = None, max_error: float = np.inf
) -> tuple[float, float]:
    use = np.zeros(adu.shape, dtype=np.uint8) if use is None else use
    _, height, width = adu.shape
    scratch = np.zeros(scratch_size(width), dtype=np.uint32)
    constants = np.array([SIGMA * 1.005, gain, 0.12, 30.0, max_error])
    scale = (np.float32(1.0) / GAINS)[:height, :width] / np.float32(gain)
    return group_offset(adu[0], use[0], np.ascontiguousarray(scale), METHODS[method], constants, 1.0, scratch)


@pytest.mark.parametrize(
    ("method", "photons", "separation", "spots", "bound"),
    [
        *((method, 0.05, separation, 12, 1.4) for method in ("median", "mode") for separation in (5, 6, 12)),
        *(("peak", photons, 5, spots, 1.4) for photons in (0.01, 0.3, 2.0) for spots in (0, 12)),
        ("peak", 0.05, 3, 12, 1.4),
        ("peak", 0.3, 8, 12, 1.4),
        ("peak", 0.3, 30, 12, 1.4),
        ("peak", 4.0, 5, 12, 1.4),
        *(("peak", photons, separation, 12, 1.4) for photons in (0.02, 0.3, 2.0, 4.0) for separation in (5.3, 6, 12)),
    ],
)
def test_error_is_near_that_of_the_mean_without_photons(
    method: str, photons: float, separation: float, spots: int, bound: float
) -> None:
    rng = np.random.default_rng(round(100 * photons * separation) + spots)
    gain, unit = separation * SIGMA, SIGMA / np.sqrt(SHAPE[0] * SHAPE[1])
    errors, stated = [], []
    for offset in rng.normal(0.0, 8.0, 24):
        found, error = offset_of(tile(rng, photons, gain, offset, spots), method, gain)
        errors.append((found - offset) / unit)
        stated.append(error / unit)
    # the rms of 24 values is itself uncertain by a seventh
    assert np.sqrt(np.mean(np.square(errors))) < bound * 1.25
    assert 0.6 < np.median(stated) / np.sqrt(np.mean(np.square(errors))) < 2.5


def test_weak_photons_at_low_gain() -> None:
    rng = np.random.default_rng(6)
    gain = 2.0 * SIGMA
    errors = [offset_of(tile(rng, 0.05, gain, 2.0), "peak", gain)[0] - 2.0 for _ in range(10)]
    # 0.02 photon, and the plain median is off by more than half of that
    assert abs(np.mean(errors)) < 0.01 * gain
    assert offset_of(tile(rng, 0.05, gain, 2.0), "median", gain) == (0.0, np.inf)


def test_what_is_masked_missing_or_far_does_not_serve() -> None:
    rng = np.random.default_rng(7)
    adu = tile(rng, 0.1, 15.0, 4.0)
    use = np.zeros(adu.shape, dtype=np.uint8)
    use[0, :90], adu[0, :90] = 64, 0.5
    adu[0, 100:110], adu[0, 110:115], adu[0, 115:117] = np.nan, np.inf, -1e30
    for method in ("median", "mode", "peak"):
        found, _ = offset_of(adu, method, 15.0, use)
        assert found == pytest.approx(4.0, abs=0.12)


def test_rows_of_the_sample_may_be_masked() -> None:
    rng = np.random.default_rng(11)
    adu = tile(rng, 0.1, 30.0, 4.0)
    use = np.zeros(adu.shape, dtype=np.uint8)
    for first in range(0, SHAPE[0], 32):
        use[0, first : first + 4] = 1
    found, error = offset_of(adu, "peak", 30.0, use)
    assert found == pytest.approx(4.0, abs=5.0 * error)


@pytest.mark.parametrize("method", METHODS)
def test_flagged_where_it_cannot_be_determined(method: str) -> None:
    rng = np.random.default_rng(8)
    undetermined = (0.0, np.inf)
    adu = tile(rng, 0.1, 15.0, 0.0, shape=(40, 40))
    assert offset_of(adu, method, 15.0, np.ones(adu.shape, dtype=np.uint8)) == undetermined
    assert offset_of(adu, method, 15.0, max_error=0.0001) == undetermined
    # all pixels bright
    assert offset_of(adu + np.float32(5000), method, 15.0) == undetermined
    # beyond the largest offset
    assert offset_of(adu + np.float32(45), method, 15.0) == undetermined


def test_no_peak_without_photons_is_flagged() -> None:
    rng = np.random.default_rng(9)
    for method in ("median", "mode", "peak"):
        found, error = offset_of(tile(rng, 9.0, 15.0, 0.0), method, 15.0, max_error=0.1)
        assert error == np.inf or abs(found) < 1.5


def test_mean_of_unbonded_pixels() -> None:
    rng = np.random.default_rng(10)
    adu = tile(rng, 3.0, 15.0, 0.0)
    use = np.ones(adu.shape, dtype=np.uint8)
    diagonal = np.arange(0, 185, 10)
    adu[0, diagonal, diagonal] = rng.normal(-7.0, SIGMA, len(diagonal))
    adu[0, 0, 0] = 25.0
    use[0, diagonal, diagonal] = 0
    found, error = offset_of(adu, "unbonded", 15.0, use)
    assert error == pytest.approx(SIGMA / np.sqrt(18), rel=0.02)
    assert found == pytest.approx(-7.0, abs=3 * error)

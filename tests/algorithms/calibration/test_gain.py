from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from xfelproc.algorithms.calibration.common_mode import PeakOffset
from xfelproc.algorithms.calibration.gain import combine_gain_sums, estimate_gain_panels, gain_sums

SHAPE = (3, 120, 160)
SIGMA = 3.0


def frame(rng: np.random.Generator, gain: np.ndarray, photons: float, offsets: bool, spots: int = 0) -> np.ndarray:
    """ADU after the pedestal; pixels of a panel differ in gain by 3 %, in noise by a tenth."""
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    level = photons * rng.gamma(4.0, 0.25) * (1.3 - 0.6 * x / SHAPE[2]) * np.ones(SHAPE)
    for _ in range(spots):
        p, slow, fast = rng.integers(SHAPE[0]), rng.uniform(5, SHAPE[1] - 5), rng.uniform(5, SHAPE[2] - 5)
        level[p] += rng.uniform(10, 200) * np.exp(-0.5 * ((y - slow) ** 2 + (x - fast) ** 2))
    common = rng.normal(0, 6.0, (SHAPE[0], 1, 1)) if offsets else 0.0
    return (common + rng.poisson(level) * gain + rng.standard_normal(SHAPE) * SIGMA).astype(np.float32)


@pytest.mark.parametrize(
    ("photons", "separation", "offsets", "spots"),
    [(0.1, 5.0, True, 0), (0.1, 5.0, True, 10), (2.0, 8.0, True, 10), (0.3, 1.5, False, 10), (1.0, 4.0, False, 0)],
)
def test_gain_within_three_per_cent(photons: float, separation: float, offsets: bool, spots: int) -> None:
    rng = np.random.default_rng(3)
    means = separation * SIGMA * np.array([0.8, 1.0, 1.2])
    gain = means[:, None, None] * (1.0 + 0.03 * rng.standard_normal(SHAPE))
    mask, noise = np.zeros(SHAPE, dtype=np.uint8), np.full(SHAPE, SIGMA, dtype=np.float32)
    groups = PeakOffset(max_offset=30.0).prepare(mask, noise, np.ones(3, dtype=np.float32)) if offsets else None
    frames = [frame(rng, gain, photons, offsets, spots) for _ in range(24)]
    found = estimate_gain_panels(reduce(combine_gain_sums, (gain_sums(f, mask, noise, groups) for f in frames)))
    np.testing.assert_allclose(found.gain, means, rtol=0.03)
    assert np.all(np.abs(found.gain - means) < 4.0 * found.error + 0.005 * means)
    assert np.all(found.error < 0.03 * means)


def test_a_second_pass_knows_the_gain() -> None:
    rng = np.random.default_rng(4)
    gain = np.full((3, 1, 1), 3.0 * SIGMA)
    mask, noise = np.zeros(SHAPE, dtype=np.uint8), np.full(SHAPE, SIGMA, dtype=np.float32)
    groups = PeakOffset(max_offset=30.0).prepare(mask, noise, np.ones(3, dtype=np.float32))
    frames = [frame(rng, gain, 0.2, True) for _ in range(16)]
    first = estimate_gain_panels(reduce(combine_gain_sums, (gain_sums(f.copy(), mask, noise, groups) for f in frames)))
    second = estimate_gain_panels(reduce(combine_gain_sums, (gain_sums(f, mask, noise, groups, first.gain) for f in frames)))
    off = abs(np.stack([first.gain, second.gain]) / gain[:, 0, 0] - 1).max(axis=1)
    assert off[1] < 0.03
    assert off[1] < off[0]


def test_panels_without_photons_have_no_gain() -> None:
    mask, noise = np.zeros(SHAPE, dtype=np.uint8), np.full(SHAPE, SIGMA, dtype=np.float32)
    mask[1] = 1
    adu = np.random.default_rng(5).poisson(1.0, SHAPE).astype(np.float32) * 10
    found = estimate_gain_panels(gain_sums(adu, mask, noise * 0.01))
    assert np.isnan(found.gain[1])
    assert found.gain[[0, 2]] == pytest.approx(10.0, rel=0.1)
    assert np.isnan(found.error).all()

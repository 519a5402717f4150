from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from xfelproc.algorithms.calibration import Darks, DarkSums, combine_darks, dark_constants, dark_means
from xfelproc.algorithms.calibration.dark_pixels import DarkPixels
from xfelproc.errors import DataError
from xfelproc.models.calibration import DetectorConstants, StageCoding
from xfelproc.models.conventions import MaskBit, PixelMask
from xfelproc.models.experiment import Beam, Detector, Panel
from xfelproc.models.frames import Frame, FrameRef

SHAPE = (2, 160, 192)
MODEL = Panel("p0", (1, 0, 0), (0, -1, 0), (0, 0, -100), (0.1, 0.1), (192, 160))
DETECTOR = Detector((MODEL, MODEL))
JUNGFRAU = StageCoding("bits", np.array([[0, 1, -1, 2]], dtype=np.int8))
FRAMES = 60


@dataclass
class Run:
    """Dark frames, and what was planted in them."""

    frames: list[Frame]
    pedestal: NDArray[np.float64]
    noise: NDArray[np.float64]
    planted: dict[PixelMask, NDArray[np.bool_]]


def frame_of(pixels: NDArray[Any], number: int = 0) -> Frame:
    return Frame(FrameRef(0, number), pixels, np.zeros(SHAPE, np.uint8), DETECTOR.trusted_ranges, DETECTOR, Beam(1.3))


@pytest.fixture(scope="module")
def run() -> Run:
    """ASICs of other levels and noises, a gradient, bad pixels of each kind, stray photons, and two frames that are not dark."""
    rng = np.random.default_rng(11)
    asic = np.indices(SHAPE)[2] // 96 + 2 * np.indices(SHAPE)[0]
    pedestal = np.choose(asic, [900.0, 1500.0, 1100.0, 2600.0]) + np.indices(SHAPE)[1] * 0.5 + rng.normal(0, 20, SHAPE)
    noise = np.choose(asic, [2.5, 3.5, 3.0, 6.0]) * np.exp(rng.normal(0, 0.05, SHAPE))
    kind = np.where(rng.random(SHAPE) < 0.02, rng.integers(1, 6, SHAPE), 0)
    names = (PixelMask.HOT, PixelMask.COLD, PixelMask.NOISY, PixelMask.DEAD, PixelMask.STUCK)
    planted = {name: kind == number for number, name in enumerate(names, 1)}
    pedestal[planted[PixelMask.HOT]] += rng.uniform(300, 3000, int(planted[PixelMask.HOT].sum()))
    pedestal[planted[PixelMask.COLD]] -= rng.uniform(300, 800, int(planted[PixelMask.COLD].sum()))
    noise[planted[PixelMask.NOISY]] *= rng.uniform(4, 20, int(planted[PixelMask.NOISY].sum()))
    noise[planted[PixelMask.DEAD]] *= 0.12
    stuck = rng.integers(0, 10000, SHAPE)
    frames = []
    for number in range(FRAMES):
        common = rng.normal(0, 8, 4)  # of the ASICs, more than the noise
        values = rng.normal(pedestal, noise) + np.choose(asic, list(common)) + 400 * (rng.random(SHAPE) < 0.003)
        if number in (17, 40):
            values += rng.poisson(2, SHAPE) * 60
        raw = np.clip(np.rint(values), 0, 16383).astype(np.uint16)
        frames.append(frame_of(np.where(planted[PixelMask.STUCK], stuck, raw).astype(np.uint16), number))
    return Run(frames, pedestal, noise, planted)


def sums(
    frames: Iterable[Frame], coding: StageCoding | None = None, first: DetectorConstants | None = None, darks: Darks | None = None
) -> dict[str, Any]:
    total = DarkSums(darks or Darks(), coding, first)
    for frame in frames:
        total.add(frame)
    return total.partial()


def constants_of(frames: list[Frame], coding: StageCoding | None = None, darks: Darks | None = None) -> DetectorConstants:
    first = dark_means(sums(frames, coding, None, darks))
    return dark_constants(darks or Darks(), sums(frames, coding, first, darks), first, np.zeros(SHAPE, np.uint8), coding)


def test_pedestal_and_noise_in_spite_of_outliers(run: Run) -> None:
    found = constants_of(run.frames)
    assert found.pedestal is not None
    assert found.noise is not None
    good = np.logical_not(np.logical_or.reduce(list(run.planted.values())))
    error = found.pedestal[0] - run.pedestal
    for p, f in np.ndindex(2, 2):
        here = np.s_[p, :, 96 * f : 96 * f + 96]
        own = good[here]
        scaled = (error[here] - np.median(error[here][own]))[own] / (run.noise[here][own] / np.sqrt(FRAMES - 2))
        assert abs(np.median(error[here][own])) < 4 * 8 / np.sqrt(FRAMES)  # the mean common mode is part of the pedestal
        assert abs(scaled.mean()) < 0.05
        assert abs(scaled.std() - 1) < 0.05
    ratio = found.noise[0][good] / np.hypot(run.noise[good], 1 / np.sqrt(12))
    assert abs(ratio.mean() - 1) < 0.01
    left = constants_of(run.frames, darks=Darks(common_mode=False)).noise
    assert left is not None
    assert np.median(left[0][good] / run.noise[good]) > 2
    plain = np.std([f.pixels for f in run.frames], axis=0)
    assert np.median(plain[good] / run.noise[good]) > 2  # what the outliers make of it


def test_planted_pixels_are_found(run: Run) -> None:
    found = constants_of(run.frames)
    assert found.mask is not None
    for reason, where in run.planted.items():
        assert np.mean(found.mask[where] != 0) >= 0.99, reason
        assert np.mean(found.mask[where] & np.uint32(reason) != 0) >= 0.95, reason
    good = np.logical_not(np.logical_or.reduce(list(run.planted.values())))
    assert np.count_nonzero(found.mask[good]) <= 1e-4 * good.sum()


def test_sums_are_the_same_in_any_order(run: Run) -> None:
    first = dark_means(sums(run.frames))
    whole = sums(run.frames, None, first)
    parts = [sums(part, None, first) for part in (run.frames[40:], run.frames[:7], run.frames[7:40])]
    joined = combine_darks(combine_darks(parts[0], parts[1]), parts[2])
    assert joined.keys() == whole.keys()
    assert all(np.array_equal(joined[name], whole[name]) for name in whole)


def test_stages_by_bits(run: Run) -> None:
    levels = {1: 3000, 2: 5000}
    frames = list(run.frames[:15])
    for stage, code in ((1, 1), (2, 3)):
        for frame in run.frames[:15]:
            raw = frame.pixels + np.uint16(levels[stage]) | np.uint16(code << 14)
            raw[0, 3, 3] = 700  # stays in the first stage
            raw[0, 3, 4] = 0xFFFF
            frames.append(frame_of(raw))
    found = constants_of(frames, JUNGFRAU)
    alone = constants_of(run.frames[:15])
    for a, b in ((found.pedestal, alone.pedestal), (found.noise, alone.noise)):
        assert a is not None
        assert b is not None
        assert len(a) == 3
        assert np.array_equal(a[0], b[0])
    assert found.pedestal is not None
    assert alone.pedestal is not None
    shift = found.pedestal[1:] - alone.pedestal[0]
    shift[:, 0, 3, 3:5] = [[3000, 3000], [5000, 5000]]
    np.testing.assert_allclose(shift[0], 3000, atol=1e-2)
    np.testing.assert_allclose(shift[1], 5000, atol=1e-2)
    assert found.mask is not None
    assert found.mask[0, 3, 3] & PixelMask.STUCK
    assert found.mask[0, 3, 4] & PixelMask.STUCK
    assert found.coding is JUNGFRAU
    only = constants_of(frames[15:30], JUNGFRAU)
    assert only.pedestal is not None
    assert np.isnan(only.pedestal[0]).all()
    assert not np.isnan(only.pedestal[1]).all()


def test_settings_and_masked_pixels(run: Run) -> None:
    frames = [frame_of(f.pixels.astype(np.float32)) for f in run.frames[:20]]
    frames[3].pixels[1, 2, 2] = np.nan
    darks = Darks(
        stage=1, outliers=6.0, pixels=DarkPixels(noisy=30.0, hot=60.0, quiet=0.0, window=9, noise_factor=3.0, missing=0.01)
    )
    static = np.zeros(SHAPE, np.uint8)
    static[0, :9] = MaskBit.PADDING
    total = DarkSums(darks)
    for frame in frames:
        total.add(frame)
    first = dark_means(total.partial())
    second = DarkSums(darks, None, first)
    for frame in frames:
        second.add(frame)
    found = dark_constants(darks, second.partial(), first, static)
    assert found.pedestal is not None
    assert found.mask is not None
    assert np.isnan(found.pedestal[0]).all()
    assert np.all(found.mask[0, :9] == PixelMask.GAP)
    assert found.mask[1, 2, 2] == PixelMask.STUCK
    assert not np.any(found.mask & np.uint32(PixelMask.DEAD))
    fewer = np.count_nonzero(found.mask[0, 9:] & np.uint32(PixelMask.NOISY | PixelMask.HOT))
    usual = constants_of(run.frames[:20]).mask
    assert usual is not None
    assert 0 < fewer < np.count_nonzero(usual[0, 9:] & np.uint32(PixelMask.NOISY | PixelMask.HOT))


def test_what_cannot_be_is_said(run: Run) -> None:
    with pytest.raises(DataError, match="there are no three dark frames"):
        dark_means(sums([]))
    with pytest.raises(DataError, match="there are 5 dark frames of gain stage 0, at least 10 are needed"):
        constants_of(run.frames[:5])
    total = DarkSums(Darks())
    total.add(run.frames[0])
    with pytest.raises(DataError, match=r"a dark frame has shape \(2, 160, 100\), those before it"):
        total.add(frame_of(np.ascontiguousarray(run.frames[0].pixels[:, :, :100])))
    with pytest.raises(DataError, match="dark frames of shapes"):
        combine_darks(total.partial(), {name: a[..., :5] for name, a in sums(run.frames[:3]).items()})
    with pytest.raises(DataError, match="no pixel is in a gain stage"):
        sums([frame_of(np.full(SHAPE, 2 << 14, np.uint16))], JUNGFRAU)

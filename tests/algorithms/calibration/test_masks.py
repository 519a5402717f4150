"""Masks of simulated runs: background that falls off with the angle, Bragg spots, planted pixels, a beam stop on an arm."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from xfelproc.algorithms.calibration.average import Average, average_of
from xfelproc.algorithms.calibration.masks import StaticMask, counts_of, reasons_of
from xfelproc.algorithms.calibration.shadows import reference_profile
from xfelproc.errors import ConfigError
from xfelproc.models.conventions import MaskBit, PixelMask
from xfelproc.models.experiment import Beam, Detector, Panel

SIZE, PIXEL, DISTANCE, FRAMES = 240, 0.2, 90.0, 120
BEAM = Beam(1.3, polarization_fraction=1.0)
DETECTOR = Detector(
    (Panel("p", (1, 0, 0), (0, -1, 0), (-SIZE * PIXEL / 2, SIZE * PIXEL / 2, -DISTANCE), (PIXEL, PIXEL), (SIZE, SIZE)),)
)
HOT, COLD, DEAD, NOISY = (50, 60), (200, 40), (30, 200), (180, 180)


def polarized() -> NDArray[np.float64]:
    """Fraction that a horizontally polarised beam scatters to each pixel, from the angle to the horizontal."""
    x, y = np.meshgrid((np.arange(SIZE) + 0.5 - SIZE / 2) * PIXEL, (SIZE / 2 - np.arange(SIZE) - 0.5) * PIXEL)
    r2 = x * x + y * y + DISTANCE**2
    return np.asarray(1.0 - x * x / r2)


def stop() -> NDArray[np.bool_]:
    """A disc in the beam and an arm from it to the lower edge."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    return np.asarray((np.hypot(x, y) < 18) | ((np.abs(x + 2) < 6) & (y > 0)))


def run_of(spots: int = 20, stopped: bool = True, photons: float = 8.0) -> Average:
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    radius = np.hypot(x, y)
    expected = photons * (0.3 + np.exp(-((radius / 70) ** 2)) + 0.5 * np.exp(-(((radius - 80) / 15) ** 2))) * polarized()
    if stopped:
        expected[stop()] *= 0.02
    frames = rng.poisson(expected, (FRAMES, SIZE, SIZE)).astype(np.float64)
    number = np.repeat(np.arange(FRAMES), spots)
    sy, sx = rng.integers(1, SIZE - 1, (2, FRAMES * spots))
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            frames[number, sy + dy, sx + dx] += rng.poisson(60, len(number))
    if stopped:
        frames[:, stop()] = rng.poisson(0.02 * photons, (FRAMES, np.count_nonzero(stop())))
    frames[:, *HOT] += 30
    frames[:, *COLD] *= 0.1
    frames[:, *DEAD] = 0
    frames[:, *NOISY] = rng.uniform(0, 60, FRAMES)
    sums = {"total": frames.sum(axis=0)[None], "square": (frames**2).sum(axis=0)[None], "maximum": frames.max(axis=0)[None]}
    sums["n_frames"] = np.array(FRAMES)
    found = average_of(sums | {"count": np.full((1, SIZE, SIZE), FRAMES, np.uint32)})
    assert found is not None
    return found


@pytest.fixture(scope="module")
def average() -> Average:
    return run_of()


def make(average: Average, settings: StaticMask) -> NDArray[np.uint32]:
    mask = settings.of_geometry(DETECTOR, BEAM)
    return np.asarray((mask | settings.of_run(average, mask, DETECTOR, BEAM))[0])


def test_planted_pixels_are_found_and_no_others(average: Average) -> None:
    mask = make(average, StaticMask(shadow=False))
    assert mask[HOT] & PixelMask.HOT
    assert mask[COLD] & PixelMask.COLD
    assert mask[DEAD] & PixelMask.DEAD
    assert mask[NOISY] & PixelMask.DEVIANT
    assert np.count_nonzero(mask[~stop()]) <= 4 + 1
    assert np.count_nonzero(make(average, StaticMask(pixels=False, shadow=False))) == 0


def test_beam_stop(average: Average) -> None:
    shadow = make(average, StaticMask(pixels=False, shadow_grow=2)) & PixelMask.SHADOW > 0
    inner = stop()
    assert np.count_nonzero(shadow & inner) > 0.97 * np.count_nonzero(inner)
    assert np.count_nonzero(shadow & ~inner) < 0.6 * np.count_nonzero(inner)
    assert np.count_nonzero(shadow[:90]) == 0


def test_no_shadow_where_there_is_none() -> None:
    mask = make(run_of(stopped=False, spots=10), StaticMask())
    assert np.count_nonzero(mask & PixelMask.SHADOW) == 0


def test_too_dark_to_tell() -> None:
    mask = make(run_of(photons=0.002, spots=0), StaticMask(pixels=False))
    assert np.count_nonzero(mask) == 0


def test_profile_is_kept_beyond_abrupt_edges() -> None:
    radius = np.arange(400)
    profile = 10.0 * np.exp(-((radius / 200.0) ** 2))
    profile[150:158] += 30.0  # a powder ring
    stopped, cut = profile.copy(), profile.copy()
    stopped[:30] = 0.1
    cut[350:] = 0.01
    bright = np.zeros(400, np.bool_)
    found = reference_profile(stopped, stopped < 0.2)
    assert np.all(found[:30] > 9.0)
    assert np.abs(found[60:140] - profile[60:140]).max() < 0.5
    assert found[154] < 8.0
    assert np.all(reference_profile(cut, bright)[350:] > 0.3)
    assert np.all(reference_profile(np.full(10, np.nan), bright[:10]) == 0.0)
    assert np.all(reference_profile(profile, ~bright) == 0.0)


def test_geometry() -> None:
    settings = StaticMask(edge_pixels=2, d_min=2.0, d_max=15.0, ice=True)
    mask = settings.of_geometry(DETECTOR, BEAM)[0]
    assert np.all(mask[:2] & PixelMask.EDGE)
    assert not mask[2, 2] & PixelMask.EDGE
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    d = 1.3 / (2 * np.sin(0.5 * np.arctan2(np.hypot(x, y) * PIXEL, DISTANCE)))
    assert np.array_equal(mask & PixelMask.RESOLUTION > 0, (d < 2.0) | (d > 15.0))
    assert np.all(mask[np.abs(d - 3.894) < 0.01] & PixelMask.ICE)
    assert not np.any(mask[np.abs(d - 3.2) < 0.05] & PixelMask.ICE)
    with pytest.raises(ConfigError, match="nothing would be left"):
        StaticMask(d_min=4.0, d_max=3.0).of_geometry(DETECTOR, BEAM)


def test_reasons_of_frames() -> None:
    bits = np.array([0, MaskBit.BAD, MaskBit.PADDING, MaskBit.EDGE | MaskBit.CALIBRATION], dtype=np.uint8)
    found = reasons_of(bits)
    assert found.tolist() == [0, PixelMask.USER, PixelMask.GAP, PixelMask.EDGE | PixelMask.NO_GAIN]
    assert counts_of(found) == {"USER": 1, "EDGE": 1, "NO_GAIN": 1, "bad": 2}

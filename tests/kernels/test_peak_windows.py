from __future__ import annotations

import numpy as np
import pytest

from xfelproc.kernels.peak_windows import FIXED, MOST, Windows, newton_step, peak_numbers, window_shape, window_sums


@pytest.mark.parametrize(("last", "psi"), [(0, (0.0, 0.0, 1.0)), (0, (1.0, 0.15, 0.0)), (3, (1.0, 0.0, 0.0))])
@pytest.mark.parametrize("shape", [(300, 21), (1, 200)])
def test_sums_are_those_of_the_pixels_near_a_peak(shape: tuple[int, int], last: int, psi: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(1)
    gain, half, zero, sigma = 6.0, 2.5, -3.0, 4.0
    scale = (0.01 * (1.0 + 0.05 * rng.standard_normal(shape))).astype(np.float32)
    adu = (zero + sigma * 0.01 / scale * (gain * rng.poisson(1.0, shape) + rng.standard_normal(shape))).astype(np.float32)
    adu.flat[::37], adu.flat[::41], adu.flat[::43] = np.nan, np.inf, -np.inf
    use = (rng.random(shape) < 0.1).astype(np.uint8)
    windows = Windows(last, half, gain, *psi, 0.0, 1.0, 1.0)
    number, total = window_sums(adu, use, scale, zero, 100.0 / sigma, windows)
    t = (adu.astype(np.float64) - zero) * scale * 100.0 / sigma
    with np.errstate(invalid="ignore"):
        r = t - gain * np.clip(np.rint(t / gain), 0, last)
        inside = (np.abs(r) <= half) & (use == 0)
    r = r[inside]
    assert number == inside.sum()
    expected = (psi[0] * r - psi[1] * r**3 + psi[2] * np.sign(r)).sum()
    assert total / FIXED == pytest.approx(expected, abs=6e-4 * np.sqrt(number))  # rounding to FIXED


def test_what_neighbouring_peaks_spill_is_expected() -> None:
    rng = np.random.default_rng(2)
    gain, n = 5.2, 400_000
    photons = rng.poisson(0.5, n)
    x = gain * photons + rng.standard_normal(n)
    numbers = np.bincount(np.minimum(photons, MOST - 1), minlength=MOST).astype(np.float64)
    for last in (0, 2):
        windows = window_shape(2.0, gain, numbers, last, 1.0, 0.0, 0.0)
        r = x - gain * np.clip(np.rint(x / gain), 0, last)
        r = r[np.abs(r) <= 2.0]
        assert r.mean() == pytest.approx(windows.expected, abs=4.0 / np.sqrt(n))
        assert np.mean(r * r) == pytest.approx(windows.square, rel=0.02)
        shift, error = newton_step(float(len(r)), float(r.sum()), windows)
        assert abs(shift) < 4.0 * error
        assert 1.0 < error * np.sqrt(numbers[: last + 1].sum()) < 1.2


def test_windows_of_as_many_peaks_as_hold_the_pixels() -> None:
    counts = np.zeros(1024, dtype=np.uint32)
    counts[[100, 130, 160, 400]] = 50, 30, 15, 5
    numbers = np.empty(MOST)
    assert peak_numbers(counts, 100.0, 30.0, numbers) == 2
    assert numbers.tolist() == [50, 30, 15, 0, 0, 0, 0, 0]
    assert peak_numbers(counts, 100.0, np.inf, numbers) == 0

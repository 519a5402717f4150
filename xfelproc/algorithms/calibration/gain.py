"""The gain from ordinary frames: photons scatter with a variance equal to their mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.calibration.common_mode import CommonModeGroups
from xfelproc.kernels.calibration import window_dispersion
from xfelproc.kernels.common_mode import FLANK, METHODS, group_offset
from xfelproc.kernels.gain import N_COLUMNS, window_scatter
from xfelproc.kernels.pixels import pixel_limits
from xfelproc.models.frames import Frame

WINDOW = 10
MAX_WINDOWS = 1024
BRIGHT_WINDOWS = 0.1
"""Fraction of windows, those with the brightest pixels, that are left out of the first guess of the gain."""
LEAST_WINDOWS = 20

Partial = dict[str, NDArray[np.float64]]


def estimate_gain(frame: Frame) -> float:
    """Return the raw units a photon, estimated from the scatter of the counts; NaN where there are too few usable pixels.

    It is the median of the index of dispersion (variance over mean) of windows of 10 x 10 pixels, those outside
    1.5 interquartile ranges from the quartiles left out. Photons scatter with a variance equal to their mean, so that raw values of
    gain g have index g. Read noise and gradients add to it: where the background is below about a photon a pixel on an integrating
    detector, the estimate is too high.
    """
    panels, height, width = frame.pixels.shape
    area = panels * height * width
    pitch = max(WINDOW, int(np.ceil(np.sqrt(area / MAX_WINDOWS))))
    pitch = min(pitch, max(WINDOW, min(height, width) // 2))
    index = np.empty(panels * (height // pitch + 1) * (width // pitch + 1))
    mask = frame.mask.view()
    mask.setflags(write=False)  # as that of calibrated frames: another type to kernels
    n = window_dispersion(frame.pixels, mask, pixel_limits(frame.pixels.dtype, frame.trusted), WINDOW, pitch, index)
    if n < 20:
        return float("nan")
    values = np.sort(index[:n])
    q1, q3 = values[n // 4], values[3 * n // 4]
    reach = 1.5 * (q3 - q1)
    first, last = np.searchsorted(values, [q1 - reach, q3 + reach])
    return float(np.median(values[first:last]))


@dataclass(frozen=True)
class GainEstimate:
    """Gains of the panels (ADU a photon) with their standard errors; NaN where there were too few photons."""

    gain: NDArray[np.float64]
    error: NDArray[np.float64]
    photons: NDArray[np.float64]


def gain_sums(
    adu: NDArray[np.float32],
    mask: NDArray[np.uint8],
    noise: NDArray[np.float32],
    groups: CommonModeGroups | None = None,
    gain: NDArray[np.float64] | None = None,
) -> Partial:
    """Return what one frame tells of the gain of each panel; sums of frames are added by `combine_gain_sums`.

    In windows of 10 x 10 pixels the variance less that of the noise grows with the mean by the gain. Windows with pixels brighter
    than background can be (spots) are left out.

    Parameters
    ----------
    adu
        (panel, slow, fast) raw values less the pedestal; NaN: no measurement. Changed: the common mode is subtracted.
    mask
        (panel, slow, fast), 0 where usable.
    noise
        (panel, slow, fast) ADU rms without photons and without common mode.
    groups
        Pixels that share an offset on each frame; None: there is no common mode.
    gain
        (panel,) about the gain, ADU a photon, from an earlier pass; None: unknown. Wanted where it is less than 3 times the noise.

    Returns
    -------
    dict
        ``sums`` (panel, 6): frames, x, y, x², xy, y² with x the sum of the means over pixels and y that of the variances.
    """
    sums = np.zeros((len(adu), 6))
    undetermined = _subtract_common_mode(adu, groups, gain) if groups is not None else np.zeros(len(adu), dtype=np.bool_)
    windows = np.empty((adu.shape[1] // WINDOW * (adu.shape[2] // WINDOW), N_COLUMNS))
    variance = noise * noise
    for p in range(len(adu)):
        if undetermined[p]:
            continue
        n = window_scatter(adu[p], mask[p], variance[p], WINDOW, windows)
        if n >= LEAST_WINDOWS:
            x, y = _background(windows[:n], float(np.sqrt(np.median(variance[p]))))
            sums[p] = 1.0, x, y, x * x, x * y, y * y
    return {"sums": sums}


def combine_gain_sums(first: Partial, second: Partial) -> Partial:
    """Return the sums of the frames of both."""
    return {"sums": first["sums"] + second["sums"]}


def estimate_gain_panels(partial: Partial) -> GainEstimate:
    """Return the gain of each panel: all variance over all mean, with its error from the scatter of the frames."""
    n, x, y, xx, xy, yy = partial["sums"].T
    usable = (x > 0) & (y > 0)
    gain = np.divide(y, x, out=np.full(len(n), np.nan), where=usable)
    scatter = yy - 2.0 * gain * xy + gain * gain * xx
    error = np.divide(np.sqrt(np.maximum(scatter, 0.0)), x, out=np.full(len(n), np.nan), where=usable & (n > 1))
    photons = np.divide(x, gain, out=np.zeros(len(n)), where=usable)
    return GainEstimate(gain, error, photons)


def _background(windows: NDArray[np.float64], noise: float) -> tuple[float, float]:
    """Return the sums of mean and of excess variance over the pixels of windows without spots."""
    n, mean, excess, largest = windows.T
    kept = largest <= np.quantile(largest, 1.0 - BRIGHT_WINDOWS)
    for _ in range(3):
        x, y = float(np.dot(n[kept], mean[kept])), float(np.dot(n[kept], excess[kept]))
        if x <= 0.0 or y <= 0.0:
            return x, y
        gain, level = y / x, x / n[kept].sum()
        # one pixel in some 10^5 has more photons or more noise than this
        bound = level + 5.0 * np.sqrt(gain * level + noise * noise) + 3.0 * gain
        kept = largest <= bound
    return x, y


def _subtract_common_mode(
    adu: NDArray[np.float32], groups: CommonModeGroups, gain: NDArray[np.float64] | None
) -> NDArray[np.bool_]:
    """Subtract each group's offset; return (panel,) where some group of a panel has none."""
    scratch = np.zeros(groups.scratch, dtype=np.uint32)
    failed = np.zeros(len(adu), dtype=np.bool_)
    method = METHODS["peak"] if gain is not None else FLANK
    for bounds, known in zip(groups.bounds, groups.constants, strict=True):
        p, y0, y1, x0, x1 = bounds
        box = (p, slice(y0, y1), slice(x0, x1))
        of_panel = np.inf if gain is None else gain[p]
        constants = np.array([known[0], of_panel, known[2], known[3], np.inf])
        alike = np.full((y1 - y0, x1 - x0), 1.0 if gain is None else 1.0 / of_panel, dtype=np.float32)
        group, use = np.ascontiguousarray(adu[box]), np.ascontiguousarray(groups.use[box])
        offset, error = group_offset(group, use, alike, method, constants, 1.0, scratch)
        failed[p] |= not np.isfinite(error)
        adu[box] -= np.float32(offset)
    return failed

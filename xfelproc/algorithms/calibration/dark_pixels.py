"""Bad pixels of a dark run: judged by their neighbours, as pedestal and noise differ from ASIC to ASIC.

A pixel is compared with the median of the square around it: at the border of two ASICs most of that is still its own. How far it
may be from it is told by how such differences scatter in a larger block.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.ndimage import median_filter

from xfelproc.models.conventions import PixelMask
from xfelproc.models.parameters import Parameters

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MAD_TO_SIGMA = 1.4826
FEWEST_NEIGHBOURS = 50
BLOCK = 64
"""Side of the blocks in which the scatter is determined, px."""
LEAST_NOISE = 0.5
"""Raw units. Where pixels scatter by less, one that always reads the same number is nothing special."""


class DarkPixels(Parameters):
    """Which pixels of a dark run are bad. σ is a robust one (1.4826 times the median of the absolute deviations)."""

    window: Annotated[int, Field(ge=3, le=31, description="side of the square of neighbours around a pixel, px; odd")] = 7
    hot: Annotated[
        float, Field(gt=0, description="σ of its neighbours' pedestals by which a pixel's is above (hot) or below them (cold)")
    ] = 8.0
    noisy: Annotated[float, Field(gt=0, description="σ of its neighbours' (logarithms of) noises by which a pixel's is above")] = (
        6.0
    )
    noise_factor: Annotated[float, Field(ge=1, description="and at least so many times their median")] = 1.5
    quiet: Annotated[float, Field(ge=0, lt=1, description="a pixel whose noise is below this times the neighbours' is dead")] = 0.4
    missing: Annotated[
        float,
        Field(ge=0, le=1, description="largest fraction of frames in which a pixel may be in another stage, or have no value"),
    ] = 0.5


def bad_pixels(
    settings: DarkPixels,
    pedestal: NDArray[np.float32],
    noise: NDArray[np.float32],
    n: NDArray[np.uint32],
    frames: int,
    constant: Bools,
    skip: Bools,
) -> NDArray[np.uint32]:
    """Return PixelMask (panel, slow, fast) of one gain stage.

    A pixel is STUCK if it always reads the same, or is in another stage or without a value too often, DEAD if it scatters much less
    than its neighbours, NOISY if much more, HOT or COLD if its pedestal is far from theirs.

    Parameters
    ----------
    pedestal, noise
        (panel, slow, fast), raw units.
    n
        Values that each pixel's are made of.
    frames
        Number of frames.
    constant
        Pixels that read the same in every frame.
    skip
        Pixels that are not judged.
    """
    known = ~skip & np.isfinite(pedestal) & np.isfinite(noise)
    moving = known & (noise > 0) & ~constant
    usual = float(np.median(noise[moving])) if moving.any() else 0.0
    reasons = np.zeros(pedestal.shape, dtype=np.uint32)

    def mark(where: Bools, reason: PixelMask) -> None:
        reasons[where & ~skip] |= np.uint32(reason)

    mark(n < (1.0 - settings.missing) * frames, PixelMask.STUCK)
    if usual > LEAST_NOISE:
        mark(constant, PixelMask.STUCK)
    judged = moving
    log_noise = np.log(noise, out=np.zeros(noise.shape), where=judged)
    middle, spread = of_neighbours(log_noise, judged, settings.window)
    least = np.log(usual) - 1.0 if usual > 0 else 0.0
    middle = np.where(middle > least, middle, least + 1.0)  # dead pixels are no standard
    sampling = 1.0 / np.sqrt(2.0 * np.maximum(n.astype(np.float64) - 1.0, 1.0))
    excess = log_noise - middle
    enough = settings.noisy * np.maximum(spread, sampling)
    mark(judged & (excess > np.maximum(enough, np.log(settings.noise_factor))), PixelMask.NOISY)
    if settings.quiet > 0:
        mark(judged & (excess < np.minimum(np.log(settings.quiet), -settings.noisy * sampling)), PixelMask.DEAD)
    level = pedestal.astype(np.float64)
    middle, spread = of_neighbours(level, judged, settings.window)
    error = np.where(judged, noise, 0.0) / np.sqrt(np.maximum(n, 1))
    reach = settings.hot * np.maximum(spread, error)
    mark(known & (level - middle > reach), PixelMask.HOT)
    mark(known & (level - middle < -reach), PixelMask.COLD)
    return reasons


def of_neighbours(values: NDArray[np.floating], good: Bools, window: int) -> tuple[Floats, Floats]:
    """Return the median of the good pixels around each pixel of (panel, slow, fast), and the robust σ of the differences from it.

    The σ is that of a block, or where it has few good pixels of the panel.
    """
    middle, spread = np.zeros(values.shape), np.full(values.shape, np.inf)
    for panel in range(len(values)):
        here = good[panel]
        if not here.any():
            continue
        filled = np.where(here, values[panel], np.median(values[panel][here]))
        middle[panel] = median_filter(filled, size=window | 1)
        difference = filled - middle[panel]
        whole = _sigma(difference[here])
        slows, fasts = (block_bounds(size) for size in values.shape[1:])
        for s0, s1 in pairwise(slows):
            for f0, f1 in pairwise(fasts):
                some = difference[s0:s1, f0:f1][here[s0:s1, f0:f1]]
                spread[panel, s0:s1, f0:f1] = _sigma(some) if len(some) >= FEWEST_NEIGHBOURS else whole
    return middle, spread


def block_bounds(size: int) -> NDArray[np.int64]:
    """Return where the blocks of a panel side of so many pixels begin and end: an even number, so that they part two ASICs."""
    n = 2 * max(1, round(size / (2 * BLOCK))) if size >= BLOCK else 1
    return np.linspace(0, size, n + 1).astype(np.int64)


def _sigma(values: Floats) -> float:
    """Return 1.4826 times the median absolute value."""
    return MAD_TO_SIGMA * float(np.median(np.abs(values)))

"""Robust losses of normalised residuals, and their histograms."""

from __future__ import annotations

import math

from numba import njit

N_BINS = 256
"""Bins of the histograms of normalised residuals."""
BINS_AN_OCTAVE = 16.0
FIRST_OCTAVE = -6.0
"""Lower end of the histograms, log2."""


@njit(cache=True, nogil=True)
def robust(square: float, bound: float, kind: int) -> tuple[float, float]:
    """Return weight and loss (half the squared residual where it is small) of a squared normalised residual.

    ``kind`` 0: least squares; 1: Huber, linear beyond ``bound``; 2: Tukey's biweight, constant beyond ``bound``.
    """
    if kind == 2:
        t = square / (bound * bound)
        if t >= 1.0:
            return 0.0, bound * bound / 6.0
        return (1.0 - t) * (1.0 - t), 0.5 * square * (1.0 - t + t * t / 3.0)
    if kind == 1 and square > bound * bound:
        r = math.sqrt(square)
        return bound / r, bound * (r - 0.5 * bound)
    return 1.0, 0.5 * square


@njit(cache=True, nogil=True)
def influence_slope(square: float, bound: float, kind: int, dimensions: float) -> float:
    """Return the mean derivative of weight times residual, a component, of a residual of 1 or 2 ``dimensions``."""
    weight, _ = robust(square, bound, kind)
    if kind == 2:
        t = min(1.0, square / (bound * bound))
        return weight - 4.0 * t * (1.0 - t) / dimensions
    if kind == 1 and square > bound * bound:
        return weight * (1.0 - 1.0 / dimensions)
    return weight


@njit(cache=True, nogil=True)
def bin_of(value: float) -> int:
    """Return the bin of a normalised residual: ``BINS_AN_OCTAVE`` to each factor of 2, the outer ones hold all beyond."""
    if not value > 0.0:
        return 0
    place = (math.log2(value) - FIRST_OCTAVE) * BINS_AN_OCTAVE
    return int(min(N_BINS - 1.0, max(0.0, place)))

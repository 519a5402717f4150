"""Intensities known from elsewhere as what lattices are compared to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.ambiguity_operators import Settings
from xfelproc.algorithms.merging.ambiguity_solve import FIRST_SPREAD, Floats, Mean

SHELL_SIZE = 100
"""Reflections that the mean intensity at a resolution is taken of."""
LEAST_VARIANCE = 0.02
"""Of E² of a reference: another crystal is never quite the same."""


def reference_mean(hkl: NDArray[np.int32], intensity: Floats, sigma: Floats, inverse_d2: Floats, settings: Settings) -> Mean:
    """Return E² - 1 of reference intensities, for `ambiguity.resolve`.

    Parameters
    ----------
    hkl, intensity, sigma, inverse_d2
        One row a reflection, unique or not, in the setting that is wanted; σ 0 where it is not known.
    settings
        Of the lattices.

    Raises
    ------
    ValueError
        If there are none with a finite intensity, or their mean is not positive.
    """
    good = np.isfinite(intensity) & np.isfinite(sigma)
    hkl, intensity, sigma, inverse_d2 = hkl[good], intensity[good], sigma[good], inverse_d2[good]
    if not len(hkl) or intensity.mean() <= 0:
        raise ValueError(f"{len(hkl)} reflections with an intensity, of a mean that is not positive")
    expected = _smooth_mean(intensity, inverse_d2)
    weight = 1.0 / (LEAST_VARIANCE + (sigma / expected) ** 2)
    keys, row = np.unique(settings.keys(hkl), return_inverse=True)
    n = np.bincount(row)
    # equivalents are no independent word on another crystal
    total = np.bincount(row, weight) / n
    value = np.bincount(row, weight * (np.clip(intensity / expected, 0.0, 8.0) - 1.0)) / n
    return Mean(keys, np.stack([total, value], axis=1), FIRST_SPREAD)


def _smooth_mean(intensity: Floats, inverse_d2: Floats) -> Floats:
    """Return the mean intensity at the resolution of each reflection, interpolated between shells of equal numbers."""
    order = np.argsort(inverse_d2, kind="stable")
    parts = np.array_split(order, max(1, len(order) // SHELL_SIZE))
    middle = np.array([inverse_d2[part].mean() for part in parts])
    mean = np.array([intensity[part].mean() for part in parts])
    floor = 1e-3 * float(intensity.mean())
    smooth: Floats = np.exp(np.interp(inverse_d2, middle, np.log(np.maximum(mean, floor))))
    return smooth

"""Which pixel values are measurements: limits of a frame in the frame's own type."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_COUNT = 200_000_000
"""Integer values are clipped here, so that a sum over 3 x 3 pixels fits 32 bits."""


def pixel_limits(dtype: np.dtype[Any], trusted: NDArray[np.float64]) -> NDArray[Any]:
    """Return (panel, 3) limits in the type of the pixels: lowest and highest trusted value, and the highest value that is a pixel.

    Values from above the highest trusted one to the third limit are saturated. The largest number of an unsigned type marks a
    missing pixel where it is beyond the trusted range (the convention of Dectris detectors), so that the third limit is one less.
    """
    limits = np.empty((len(trusted), 3), dtype=dtype)
    if np.issubdtype(dtype, np.floating):
        limits[:, :2] = trusted
        limits[:, 2] = np.inf
        return limits
    info = np.iinfo(dtype)
    limits[:, 0] = np.clip(np.ceil(trusted[:, 0]), info.min, info.max).astype(np.int64)
    limits[:, 1] = np.clip(np.floor(trusted[:, 1]), info.min, info.max).astype(np.int64)
    marked = (trusted[:, 1] < info.max) & (info.min == 0)
    limits[:, 2] = np.where(marked, info.max - 1, info.max)
    return limits


def plain_limits(limits: NDArray[Any], value_mask: int | None = None) -> NDArray[Any]:
    """Return (panel, 2) the lowest and the highest value that is a measurement, and has no bits but those of ``value_mask``."""
    plain: NDArray[Any] = limits[:, :2].copy()
    if value_mask is not None:
        plain[:, 1] = np.minimum(plain[:, 1], limits.dtype.type(value_mask))
    plain[:] = np.minimum(plain, limits[:, 2:])
    return plain

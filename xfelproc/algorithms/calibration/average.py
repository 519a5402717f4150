"""Images of the detector averaged over frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats32 = NDArray[np.float32]


@dataclass(frozen=True)
class Average:
    """Images (panel, slow, fast) of ``n_frames`` frames; NaN where a pixel was never measured.

    ``count`` is how often each pixel was, ``sd`` the standard deviation over the frames.
    """

    n_frames: int
    count: NDArray[np.uint32]
    mean: Floats32
    sd: Floats32
    maximum: Floats32


def average_of(sums: Mapping[str, NDArray[Any]]) -> Average | None:
    """Return the images of ``n_frames``, ``count``, ``total``, ``square`` and ``maximum``; None where there is no frame."""
    if "total" not in sums:
        return None
    n, total, square = sums["count"].astype(np.float64), sums["total"], sums["square"]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n
        variance = np.maximum(square - n * mean * mean, 0.0) / (n - 1)
    variance[n < 2] = np.nan
    maximum = np.where(np.isfinite(sums["maximum"]), sums["maximum"], np.float32(np.nan))
    return Average(int(sums["n_frames"]), sums["count"], mean.astype(np.float32), np.sqrt(variance).astype(np.float32), maximum)

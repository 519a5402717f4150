"""The gain from an ordinary frame."""

from __future__ import annotations

import numpy as np

from xfelproc.kernels.calibration import window_dispersion
from xfelproc.kernels.pixels import pixel_limits
from xfelproc.models.frames import Frame

WINDOW = 10
MAX_WINDOWS = 1024


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
    n = window_dispersion(frame.pixels, frame.mask, pixel_limits(frame.pixels.dtype, frame.trusted), WINDOW, pitch, index)
    if n < 20:
        return float("nan")
    values = np.sort(index[:n])
    q1, q3 = values[n // 4], values[3 * n // 4]
    reach = 1.5 * (q3 - q1)
    first, last = np.searchsorted(values, [q1 - reach, q3 + reach])
    return float(np.median(values[first:last]))

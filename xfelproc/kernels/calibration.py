"""Raw values to photons, and the gain from the scatter of counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def calibrate_maps(
    pixels: NDArray[Any],
    limits: NDArray[Any],
    pedestal: NDArray[np.float32],
    inverse_gain: NDArray[np.float32],
    ceiling: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write ``(raw - pedestal) × inverse_gain`` of a stack (panel, slow, fast), with maps of the same shape.

    Raw values below ``limits[panel, 0]``, above ``limits[panel, 2]`` or NaN become NaN; those above ``limits[panel, 1]``
    become ``ceiling[panel]``, which is beyond what the panel's trusted range allows.
    """
    for p in range(pixels.shape[0]):
        low, high, last = limits[p, 0], limits[p, 1], limits[p, 2]
        top = ceiling[p]
        for y in range(pixels.shape[1]):
            row, dark, scale, target = pixels[p, y], pedestal[p, y], inverse_gain[p, y], out[p, y]
            for x in range(len(row)):
                v = row[x]
                photons = (np.float32(v) - dark[x]) * scale[x]
                good = (v >= low) & (v <= last)
                photons = top if v > high else photons
                target[x] = photons if good else np.float32(np.nan)


@njit(cache=True, nogil=True)
def calibrate_panels(
    pixels: NDArray[Any],
    limits: NDArray[Any],
    pedestal: NDArray[np.float32],
    inverse_gain: NDArray[np.float32],
    ceiling: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Do as `calibrate_maps` with one pedestal and one gain a panel."""
    for p in range(pixels.shape[0]):
        low, high, last = limits[p, 0], limits[p, 1], limits[p, 2]
        dark, scale, top = pedestal[p], inverse_gain[p], ceiling[p]
        for y in range(pixels.shape[1]):
            row, target = pixels[p, y], out[p, y]
            for x in range(len(row)):
                v = row[x]
                photons = (np.float32(v) - dark) * scale
                good = (v >= low) & (v <= last)
                photons = top if v > high else photons
                target[x] = photons if good else np.float32(np.nan)


@njit(cache=True, nogil=True)
def window_dispersion(
    pixels: NDArray[Any], mask: NDArray[np.uint8], limits: NDArray[Any], size: int, pitch: int, out: NDArray[np.float64]
) -> int:
    """Fill ``out`` with the index of dispersion (variance over mean) of square windows ``pitch`` pixels apart; return their number.

    Windows of which less than three quarters are usable, and those whose mean is not positive, are left out.
    """
    n_panels, height, width = pixels.shape
    n_found = 0
    for p in range(n_panels):
        low, high = limits[p, 0], limits[p, 1]
        for y0 in range(0, height - size + 1, pitch):
            for x0 in range(0, width - size + 1, pitch):
                n = 0
                s = 0.0
                q = 0.0
                for y in range(y0, y0 + size):
                    for x in range(x0, x0 + size):
                        v = pixels[p, y, x]
                        if mask[p, y, x] == 0 and v >= low and v <= high:
                            n += 1
                            s += v
                            q += float(v) * float(v)
                if 4 * n < 3 * size * size or s <= 0.0 or n_found >= len(out):
                    continue
                out[n_found] = (q - s * s / n) / (n - 1) * n / s
                n_found += 1
    return n_found

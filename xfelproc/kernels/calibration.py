"""Raw values to photons, and the gain from the scatter of counts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats32 = NDArray[np.float32]


class RawFrame(NamedTuple):
    """A frame of raw values, with what makes photons of them.

    Maps are (stage, panel, slow, fast). Where ``coded`` is False there is one stage; else a pixel's is
    ``stages[panel, codes >> shift]``, -1: no measurement. ``codes`` are the pixels themselves where the bits from ``shift`` on are
    the code; these are then not part of the value (``bits``).

    Values below ``limits[panel, 0]``, above ``limits[panel, 2]`` or NaN are no measurement, and become NaN; those above
    ``limits[panel, 1]`` are saturated and become ``ceiling[panel]``, which is beyond what the panel's trusted range allows. Both
    are for code 0; where no value of it can be outside ``limited[panel]`` may be False, which is faster. In stage s a pixel is
    saturated up to the value ``saturated[panel, s, 0]`` and from ``saturated[panel, s, 1]``; raw values with another code are none
    above ``largest[panel]``. Photons are (value - pedestal) × (inverse_gain × factor).
    """

    pixels: NDArray[Any]
    codes: NDArray[Any]
    coded: bool
    shift: int
    bits: bool
    limits: NDArray[Any]
    limited: NDArray[np.bool_]
    stages: NDArray[np.int8]
    saturated: NDArray[np.float64]
    largest: NDArray[np.float64]
    pedestal: Floats32
    inverse_gain: Floats32
    factor: np.float32
    ceiling: Floats32


BAND = 16
"""Rows until the pixels with a code are calibrated, one after the other without a branch between."""
BLOCK = 128
"""Pixels of a row that are looked at together for a code that is not 0."""


@njit(cache=True, nogil=True)
def calibrate_frame(raw: RawFrame, out: Floats32) -> None:
    """Write the photons of all pixels to ``out`` (panel, slow, fast).

    A row is first taken as if all codes were 0, a loop that vectorises; the few other pixels are then done one by one.
    """
    pixels, factor = raw.pixels, raw.factor
    panels, height, width = pixels.shape
    listed = np.empty((BAND * width if raw.coded else 0, 2), dtype=np.int32)
    for p in range(panels):
        first, limits, limited, top = raw.stages[p, 0], raw.limits[p], raw.limited[p], raw.ceiling[p]
        darks, scales = raw.pedestal[max(first, 0), p], raw.inverse_gain[max(first, 0), p]
        for begin in range(0, height, BAND):
            end = min(begin + BAND, height)
            if first >= 0:
                for y in range(begin, end):
                    row, dark, scale, target = pixels[p, y], darks[y], scales[y], out[p, y]
                    if limited:
                        calibrate_row(row, limits, dark, scale, factor, top, target)
                    else:
                        calibrate_plain_row(row, dark, scale, factor, target)
            if raw.coded:
                n = list_coded(raw.codes, raw.shift, first < 0, p, begin, end, 0, width, listed)
                write_listed(raw, p, listed, n, out)


@njit(cache=True, nogil=True, inline="always")
def calibrate_plain_row(row: NDArray[Any], dark: Floats32, scale: Floats32, factor: np.float32, out: Floats32) -> None:
    """Do as `calibrate_row` where no value can be outside the limits; NaN stays NaN."""
    for x in range(len(row)):
        out[x] = (np.float32(row[x]) - dark[x]) * (scale[x] * factor)


@njit(cache=True, nogil=True, inline="always")
def calibrate_row(
    row: NDArray[Any], limits: NDArray[Any], dark: Floats32, scale: Floats32, factor: np.float32, top: np.float32, out: Floats32
) -> None:
    """Write the photons of a row of a panel, all of code 0; see `RawFrame`."""
    low, high, last = limits[0], limits[1], limits[2]
    for x in range(len(row)):
        v = row[x]
        photons = (np.float32(v) - dark[x]) * (scale[x] * factor)
        good = (v >= low) & (v <= last)
        photons = top if v > high else photons
        out[x] = photons if good else np.float32(np.nan)


@njit(cache=True, nogil=True)
def calibrate_panels(
    pixels: NDArray[Any],
    limits: NDArray[Any],
    pedestal: Floats32,
    inverse_gain: Floats32,
    ceiling: Floats32,
    out: Floats32,
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
def list_coded(
    codes: NDArray[Any], shift: int, every: bool, p: int, y0: int, y1: int, x0: int, x1: int, out: NDArray[np.int32]
) -> int:
    """Write (slow, fast) of the pixels of a rectangle whose code is not 0, or of ``every`` one, row by row; return their number."""
    n = 0
    for y in range(y0, y1):
        row = codes[p, y]
        for begin in range(x0, x1, BLOCK):
            end = min(begin + BLOCK, x1)
            if end - begin == BLOCK and not every:
                block, together = row[begin:end], row[begin]
                for i in range(BLOCK):  # a number of turns that is known makes vector instructions of it
                    together |= block[i]
                if together >> shift == 0:
                    continue
            for x in range(begin, end):
                out[n, 0], out[n, 1] = y, x
                n += (row[x] >> shift != 0) | every
    return n


@njit(cache=True, nogil=True)
def write_listed(raw: RawFrame, p: int, listed: NDArray[np.int32], n: int, out: Floats32) -> None:
    """Write the photons of the first ``n`` listed pixels of a panel: each in its stage."""
    pixels, codes, shift, bits, largest = raw.pixels, raw.codes, raw.shift, raw.bits, raw.largest[p]
    table, saturated = raw.stages[p], raw.saturated[p]
    pedestal, inverse_gain, factor, top = raw.pedestal, raw.inverse_gain, raw.factor, raw.ceiling[p]
    for i in range(n):
        y, x = listed[i]
        v, code = pixels[p, y, x], np.int64(codes[p, y, x] >> shift)
        stage = table[code] if code < len(table) and v <= largest else -1
        if stage < 0:
            out[p, y, x] = np.nan
            continue
        value = np.float32(np.float64(v) - (code << shift if bits else 0))
        photons = (value - pedestal[stage, p, y, x]) * (inverse_gain[stage, p, y, x] * factor)
        measured = (value > saturated[stage, 0]) & (value < saturated[stage, 1])
        out[p, y, x] = photons if measured else top


@njit(cache=True, nogil=True)
def codes_of_array(values: NDArray[Any], thresholds: Floats32, out: NDArray[np.uint8]) -> None:
    """Write how many of ``thresholds`` (threshold, panel, slow, fast) or (threshold, 1, 1, 1) each value exceeds; 255 for NaN."""
    each = thresholds.shape[1] > 1 or thresholds.shape[2] > 1 or thresholds.shape[3] > 1
    for p in range(values.shape[0]):
        for y in range(values.shape[1]):
            for x in range(values.shape[2]):
                v = values[p, y, x]
                code = 0
                for t in range(thresholds.shape[0]):
                    code += v > (thresholds[t, p, y, x] if each else thresholds[t, 0, 0, 0])
                out[p, y, x] = code if v == v else 255


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

"""Raw values to photons, and the gain from the scatter of counts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.streaming import LINE, finish_stores, line_within, stream_scaled

Floats32 = NDArray[np.float32]


class RawFrame(NamedTuple):
    """A frame of raw values, with what makes photons of them.

    Arrays are (panel, pixel), maps (stage, panel, pixel), row after row; rows have ``width`` pixels. Where ``coded`` is False there
    is one stage; else a pixel's is ``stages[panel, code]``, -1: no measurement. With ``bits`` the code is in the bits of the value
    from ``shift`` on, which are then not part of it; else it is in ``codes``.

    Values below ``limits[panel, 0]``, above ``limits[panel, 2]`` or NaN are no measurement, and become NaN; those above
    ``limits[panel, 1]`` are saturated and become ``ceiling[panel]``, which is beyond what the panel's trusted range allows. Both
    are for code 0. Of the values from ``plain[panel, 0]`` to ``plain[panel, 1]`` none is outside, or has another code in its bits.
    In stage s a pixel is saturated up to the value ``saturated[panel, s, 0]`` and from ``saturated[panel, s, 1]``; raw values with
    another code are none above ``largest[panel]``. Photons are (value - pedestal) × (inverse_gain × factor).
    """

    pixels: NDArray[Any]
    codes: NDArray[np.uint8]
    width: int
    coded: bool
    shift: int
    bits: bool
    limits: NDArray[Any]
    plain: NDArray[Any]
    stages: NDArray[np.int8]
    saturated: NDArray[np.float64]
    largest: NDArray[np.float64]
    pedestal: Floats32
    inverse_gain: Floats32
    factor: np.float32
    ceiling: Floats32


class Part(NamedTuple):
    """``rows`` times ``width`` pixels of a panel, the first ones ``pitch`` apart."""

    panel: int
    start: int
    rows: int
    width: int
    pitch: int


BAND = 65536
"""Pixels of a panel until those with a code are calibrated."""


@njit(cache=True, nogil=True)
def calibrate_frame(raw: RawFrame, out: Floats32) -> None:
    """Write the photons of all pixels to ``out`` (panel, pixel)."""
    panels, size = raw.pixels.shape
    listed = np.empty(min(size, BAND) if raw.coded else 0, dtype=np.int32)
    for p in range(panels):
        first = max(raw.stages[p, 0], 0)
        dark, scale = raw.pedestal[first, p], raw.inverse_gain[first, p]
        for start in range(0, size, BAND):
            end = min(start + BAND, size)
            write_photons(
                raw, Part(p, start, 1, end - start, size), dark[start:end], scale[start:end], np.float32(0.0), listed, out
            )
    finish_stores()


@njit(cache=True, nogil=True)
def write_photons(
    raw: RawFrame, part: Part, dark: Floats32, scale: Floats32, shift: np.float32, listed: NDArray[np.int32], out: Floats32
) -> None:
    """Write the photons of a part of a panel to ``out`` (panel, pixel); `finish_stores` has to follow.

    Parameters
    ----------
    dark, scale
        Pedestal and inverse gain of the part's pixels in the stage of code 0.
    shift
        What these have in common beyond the pedestal, raw units.
    listed
        Scratch of as many pixels where values have codes.
    """
    p, low, high, n = part.panel, raw.plain[part.panel, 0], raw.plain[part.panel, 1], 0
    values, target, factor = raw.pixels[p], out[p], raw.factor
    apart = raw.coded and not raw.bits
    codes, none = raw.codes[p if apart else 0], np.uint8(0)
    for row in range(part.rows):
        # i counts the pixels of the panel, i + lag those of the part
        begin = part.start + row * part.pitch
        end, lag = begin + part.width, row * part.width - begin
        i = min(end, begin + -(target.ctypes.data // 4 + begin) % LINE)
        n = write_each(raw, p, begin, i, dark, scale, lag, shift, target, listed, n)
        while i + LINE <= end:
            if line_within(values, i, low, high) and not (apart and not line_within(codes, i, none, none)):
                stream_scaled(values, i, dark, i + lag, scale, i + lag, shift, factor, target, i)
            else:
                n = write_each(raw, p, i, i + LINE, dark, scale, lag, shift, target, listed, n)
            i += LINE
        n = write_each(raw, p, i, end, dark, scale, lag, shift, target, listed, n)
    # in one loop by themselves: their maps are seldom in a cache, and many can be waited for at once
    for k in range(n):
        target[listed[k]] = photons_of_code(raw, p, listed[k])


@njit(cache=True, nogil=True)
def write_each(
    raw: RawFrame,
    p: int,
    begin: int,
    end: int,
    dark: Floats32,
    scale: Floats32,
    lag: int,
    shift: np.float32,
    out: Floats32,
    listed: NDArray[np.int32],
    n: int,
) -> int:
    """Write photons as of code 0, with regard to the limits, and list the pixels of other codes after ``n``; return their number.

    If code 0 has no stage all are listed.
    """
    low, high, last, top = raw.limits[p, 0], raw.limits[p, 1], raw.limits[p, 2], raw.ceiling[p]
    values = raw.pixels[p]
    for i in range(begin, end):
        v = values[i]
        photons = (np.float32(v) - dark[i + lag] - shift) * (scale[i + lag] * raw.factor)
        good = (v >= low) & (v <= last)
        photons = top if v > high else photons
        out[i] = photons if good else np.float32(np.nan)
    if raw.coded:
        every = raw.stages[p, 0] < 0
        for i in range(begin, end):
            listed[n] = i
            n += every | (code_of(raw, p, i) != 0)
    return n


@njit(cache=True, nogil=True)
def code_of(raw: RawFrame, p: int, i: int) -> int:
    """Return the code of a pixel."""
    return int(raw.pixels[p, i]) >> raw.shift if raw.bits else int(raw.codes[p, i])


@njit(cache=True, nogil=True)
def photons_of_code(raw: RawFrame, p: int, i: int) -> np.float32:
    """Return the photons of a pixel in the stage of its code."""
    v, code, table = raw.pixels[p, i], code_of(raw, p, i), raw.stages[p]
    stage = table[code] if code < len(table) and v <= raw.largest[p] else -1
    if stage < 0:
        return np.float32(np.nan)
    value = np.float32(np.float64(v) - (code << raw.shift if raw.bits else 0))
    photons = (value - raw.pedestal[stage, p, i]) * (raw.inverse_gain[stage, p, i] * raw.factor)
    measured = (value > raw.saturated[p, stage, 0]) & (value < raw.saturated[p, stage, 1])
    return np.float32(photons if measured else raw.ceiling[p])


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

"""Raw values to photons, and the gain from the scatter of counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats32 = NDArray[np.float32]


@njit(cache=True, nogil=True)
def calibrate_maps(
    pixels: NDArray[Any],
    limits: NDArray[Any],
    limited: NDArray[np.bool_],
    pedestal: Floats32,
    inverse_gain: Floats32,
    factor: np.float32,
    ceiling: Floats32,
    out: Floats32,
) -> None:
    """Write ``(raw - pedestal) × (inverse_gain × factor)`` of a stack (panel, slow, fast), with maps of the same shape.

    Raw values below ``limits[panel, 0]``, above ``limits[panel, 2]`` or NaN become NaN; those above ``limits[panel, 1]``
    become ``ceiling[panel]``, which is beyond what the panel's trusted range allows. Where no value can be outside the limits
    ``limited[panel]`` may be False, which is faster.
    """
    for p in range(pixels.shape[0]):
        for y in range(pixels.shape[1]):
            row, dark, scale, target = pixels[p, y], pedestal[p, y], inverse_gain[p, y], out[p, y]
            if limited[p]:
                calibrate_row(row, limits[p], dark, scale, factor, ceiling[p], target)
            else:
                calibrate_plain_row(row, dark, scale, factor, target)


@njit(cache=True, nogil=True)
def calibrate_plain_row(row: NDArray[Any], dark: Floats32, scale: Floats32, factor: np.float32, out: Floats32) -> None:
    """Do as `calibrate_row` where no value can be outside the limits; NaN stays NaN."""
    for x in range(len(row)):
        out[x] = (np.float32(row[x]) - dark[x]) * (scale[x] * factor)


@njit(cache=True, nogil=True)
def calibrate_row(
    row: NDArray[Any], limits: NDArray[Any], dark: Floats32, scale: Floats32, factor: np.float32, top: np.float32, out: Floats32
) -> None:
    """Do as `calibrate_maps` with a row of a panel."""
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


BLOCK = 128
"""Pixels of a row that are looked at together for a code that is not 0."""
PART = 16
"""Pixels of a block where there is one."""


@njit(cache=True, nogil=True)
def calibrate_bits(
    pixels: NDArray[Any],
    shift: int,
    limits: NDArray[Any],
    limited: NDArray[np.bool_],
    stages: NDArray[np.int8],
    saturated: NDArray[np.float64],
    pedestal: Floats32,
    inverse_gain: Floats32,
    factor: np.float32,
    ceiling: Floats32,
    out: Floats32,
) -> None:
    """Do as `calibrate_maps` with a pedestal and a gain for each gain stage: maps (stage, panel, slow, fast).

    A pixel's stage is ``stages[panel, code]``, -1: no measurement; the code is ``raw >> shift`` of unsigned values, the bits below
    are the value. ``limits`` are for values of code 0; in stage s a pixel is saturated up to the value ``saturated[panel, s, 0]``
    and from ``saturated[panel, s, 1]``. A row is first taken as if all codes were 0, a loop that vectorises; the few other pixels
    are then done one by one.
    """
    blocks = np.empty(pixels.shape[2] // BLOCK + 1, dtype=np.int64)
    for p in range(pixels.shape[0]):
        first = stages[p, 0]
        for y in range(pixels.shape[1]):
            row, target = pixels[p, y], out[p, y]
            if first >= 0:
                dark, scale = pedestal[first, p, y], inverse_gain[first, p, y]
                if limited[p]:
                    calibrate_row(row, limits[p], dark, scale, factor, ceiling[p], target)
                else:
                    calibrate_plain_row(row, dark, scale, factor, target)
            if coded_blocks(row, shift, first < 0, blocks) > 0:
                switched_by_bits(row, p, y, 0, shift, stages[p], saturated[p], pedestal, inverse_gain, factor, ceiling[p], target)


@njit(cache=True, nogil=True)
def coded_blocks(row: NDArray[Any], shift: int, every: bool, out: NDArray[np.int64]) -> int:
    """Write where blocks of a row begin in which a code is not 0 (or ``every`` one), and return their number."""
    whole = 0 if every else len(row) - len(row) % BLOCK
    n = 0
    for begin in range(0, whole, BLOCK):
        block, bits = row[begin : begin + BLOCK], row[begin]
        for i in range(BLOCK):  # a number of turns that is known makes vector instructions of it
            bits |= block[i]
        if bits >> shift != 0:
            out[n] = begin
            n += 1
    for begin in range(whole, len(row), BLOCK):
        out[n] = begin
        n += 1
    return n


@njit(cache=True, nogil=True)
def switched_by_bits(
    row: NDArray[Any],
    p: int,
    y: int,
    x0: int,
    shift: int,
    table: NDArray[np.int8],
    saturated: NDArray[np.float64],
    pedestal: Floats32,
    inverse_gain: Floats32,
    factor: np.float32,
    top: np.float32,
    out: Floats32,
) -> None:
    """Write those pixels of a part of a row whose code is not 0; all, where code 0 is no stage. It begins at pixel (p, y, x0).

    ``table`` and ``saturated`` are the panel's; all bits set are no measurement. See `calibrate_bits`.
    """
    blocks = np.empty(len(row) // BLOCK + 1, dtype=np.int64)
    n = coded_blocks(row, shift, table[0] < 0, blocks)
    for b in range(n):
        begin = blocks[b]
        end = min(begin + BLOCK, len(row))
        switched_pixels(
            row[begin:end], p, y, x0 + begin, shift, table, saturated, pedestal, inverse_gain, factor, top, out[begin:end]
        )


@njit(cache=True, nogil=True)
def switched_pixels(
    row: NDArray[Any],
    p: int,
    y: int,
    x0: int,
    shift: int,
    table: NDArray[np.int8],
    saturated: NDArray[np.float64],
    pedestal: Floats32,
    inverse_gain: Floats32,
    factor: np.float32,
    top: np.float32,
    out: Floats32,
) -> None:
    """Do as `switched_by_bits`, pixel by pixel."""
    every = table[0] < 0
    value_mask = (1 << shift) - 1
    for begin in range(0, len(row), PART):
        end = min(begin + PART, len(row))
        if end - begin == PART and not every:
            part, bits = row[begin:end], row[begin]
            for i in range(PART):
                bits |= part[i]
            if bits >> shift == 0:
                continue
        for x in range(begin, end):
            v = row[x]
            code = v >> shift
            if code == 0 and not every:
                continue
            stage = table[code] if code < len(table) else -1
            if v & value_mask == value_mask and code == len(table) - 1:
                stage = -1
            value = np.float32(v & value_mask)
            out[x] = photons_in_stage(value, stage, p, y, x0 + x, saturated, pedestal, inverse_gain, factor, top)


@njit(cache=True, nogil=True)
def photons_in_stage(
    value: np.float32,
    stage: int,
    p: int,
    y: int,
    x: int,
    saturated: NDArray[np.float64],
    pedestal: Floats32,
    inverse_gain: Floats32,
    factor: np.float32,
    top: np.float32,
) -> np.float32:
    """Return the photons of a pixel, ``top`` where it is saturated, NaN where the stage is negative."""
    if stage < 0:
        return np.float32(np.nan)
    if value <= saturated[stage, 0] or value >= saturated[stage, 1]:
        return top
    return np.float32((value - pedestal[stage, p, y, x]) * (inverse_gain[stage, p, y, x] * factor))


@njit(cache=True, nogil=True)
def calibrate_codes(
    pixels: NDArray[Any],
    codes: NDArray[np.uint8],
    limits: NDArray[Any],
    limited: NDArray[np.bool_],
    stages: NDArray[np.int8],
    saturated: NDArray[np.float64],
    pedestal: Floats32,
    inverse_gain: Floats32,
    factor: np.float32,
    ceiling: Floats32,
    out: Floats32,
) -> None:
    """Do as `calibrate_bits` with codes (panel, slow, fast) of their own beside the values."""
    for p in range(pixels.shape[0]):
        table, first = stages[p], stages[p, 0]
        last = limits[p, 2]
        for y in range(pixels.shape[1]):
            row, target = pixels[p, y], out[p, y]
            if first >= 0:
                dark, scale = pedestal[first, p, y], inverse_gain[first, p, y]
                if limited[p]:
                    calibrate_row(row, limits[p], dark, scale, factor, ceiling[p], target)
                else:
                    calibrate_plain_row(row, dark, scale, factor, target)
            for x in range(len(row)):
                code = codes[p, y, x]
                if code == 0 and first >= 0:
                    continue
                stage = table[code] if code < len(table) and row[x] <= last else -1
                target[x] = photons_in_stage(
                    np.float32(row[x]), stage, p, y, x, saturated[p], pedestal, inverse_gain, factor, ceiling[p]
                )


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

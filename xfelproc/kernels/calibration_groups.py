"""Raw values to photons with the common mode of each group of pixels, while the group is in the processor's cache."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.calibration import Part, RawFrame, code_of, photons_of_code, write_each, write_photons
from xfelproc.kernels.common_mode import Counts, Floats, Floats32, group_offset
from xfelproc.kernels.streaming import LINE, finish_stores, line_less, line_within, stream_shifted

Bytes = NDArray[np.uint8]
Bounds = NDArray[np.int32]


@njit(cache=True, nogil=True)
def calibrate_groups(
    raw: RawFrame,
    bounds: Bounds,
    dark: Floats32,
    scale: Floats32,
    use: Bytes,
    method: int,
    constants: Floats,
    scratch: Counts,
    out: Floats32,
) -> int:
    """Do as `kernels.calibration.calibrate_frame`, less the common mode of the stage of code 0; return how many groups have none.

    Pixels of no group are not written. Photons need the offset, and that needs all pixels of the group: these are gone through
    twice, the second time in the processor's cache.

    Parameters
    ----------
    bounds
        (group, 5) panel, first and last slow (half open), first and last fast.
    dark, scale, use
        Pedestal and inverse gain of the stage of code 0, and 0 where the pixel may serve: the pixels of one group after the other.
    method, constants, scratch
        As `kernels.common_mode.group_offset` takes them; constants are (group, 5).
    """
    failed, begin, pixels = 0, 0, 0
    for g in range(len(bounds)):
        part = part_of(bounds[g], raw.width)
        pixels = max(pixels, part.rows * part.width)
    tile, listed = np.empty(pixels, dtype=np.float32), np.empty(pixels if raw.coded else 0, dtype=np.int32)
    for g in range(len(bounds)):
        part = part_of(bounds[g], raw.width)
        end = begin + part.rows * part.width
        darks, scales = dark[begin:end], scale[begin:end]
        if raw.stages[part.panel, 0] >= 0:
            write_adu(raw, part, darks, tile)
            shape = (bounds[g, 2] - bounds[g, 1], bounds[g, 4] - bounds[g, 3])
            offset, error = group_offset(
                tile[: end - begin].reshape(shape),
                use[begin:end].reshape(shape),
                scales.reshape(shape),
                method,
                constants[g],
                float(raw.factor),
                scratch,
            )
            failed += not error < np.inf
            write_tile(raw, part, tile, darks, scales, np.float32(offset), listed, out)
        else:
            write_photons(raw, part, darks, scales, np.float32(0.0), listed, out)
        begin = end
    finish_stores()
    return failed


@njit(cache=True, nogil=True)
def part_of(bounds: Bounds, width: int) -> Part:
    """Return a rectangle of a panel whose rows have ``width`` pixels; one long row if it has the whole of them."""
    p, y0, y1, x0, x1 = int(bounds[0]), int(bounds[1]), int(bounds[2]), int(bounds[3]), int(bounds[4])
    if x1 - x0 == width:
        return Part(p, y0 * width, 1, (y1 - y0) * width, width)
    return Part(p, y0 * width + x0, y1 - y0, x1 - x0, width)


@njit(cache=True, nogil=True)
def write_adu(raw: RawFrame, part: Part, dark: Floats32, out: Floats32) -> None:
    """Write values of a part less the pedestal: inf where saturated, NaN where there is no measurement, or one of another code."""
    p, low, high = part.panel, raw.plain[part.panel, 0], raw.plain[part.panel, 1]
    values, apart = raw.pixels[p], raw.coded and not raw.bits
    codes, none = raw.codes[p if apart else 0], np.uint8(0)
    for row in range(part.rows):
        i, lag = part.start + row * part.pitch, row * (part.width - part.pitch) - part.start
        end = i + part.width
        while i + LINE <= end:
            if line_within(values, i, low, high) and not (apart and not line_within(codes, i, none, none)):
                line_less(values, i, dark, i + lag, out, i + lag)
            else:
                write_each_adu(raw, p, i, i + LINE, dark, lag, out)
            i += LINE
        write_each_adu(raw, p, i, end, dark, lag, out)


@njit(cache=True, nogil=True)
def write_each_adu(raw: RawFrame, p: int, begin: int, end: int, dark: Floats32, lag: int, out: Floats32) -> None:
    """Do as `write_adu` with the pixels of a panel from ``begin`` to ``end``, pixel by pixel."""
    values, low, high, last = raw.pixels[p], raw.limits[p, 0], raw.limits[p, 1], raw.limits[p, 2]
    for i in range(begin, end):
        v = values[i]
        adu = np.float32(v) - dark[i + lag]
        good = (v >= low) & (v <= last)
        adu = np.float32(np.inf) if v > high else adu
        out[i + lag] = adu if good else np.float32(np.nan)
    if raw.coded:
        for i in range(begin, end):
            if code_of(raw, p, i) != 0:
                out[i + lag] = np.nan


@njit(cache=True, nogil=True)
def write_tile(
    raw: RawFrame, part: Part, adu: Floats32, dark: Floats32, scale: Floats32, shift: np.float32, listed: Bounds, out: Floats32
) -> None:
    """Do as `kernels.calibration.write_photons`, of what `write_adu` made of the part: this is in the processor's cache."""
    p, n, target, factor = part.panel, 0, out[part.panel], raw.factor
    largest = np.finfo(np.float32).max
    for row in range(part.rows):
        begin = part.start + row * part.pitch
        end, lag = begin + part.width, row * part.width - begin
        i = min(end, begin + -(target.ctypes.data // 4 + begin) % LINE)
        n = write_each(raw, p, begin, i, dark, scale, lag, shift, target, listed, n)
        while i + LINE <= end:
            if line_within(adu, i + lag, -largest, largest):
                stream_shifted(adu, i + lag, scale, i + lag, shift, factor, target, i)
            else:
                n = write_each(raw, p, i, i + LINE, dark, scale, lag, shift, target, listed, n)
            i += LINE
        n = write_each(raw, p, i, end, dark, scale, lag, shift, target, listed, n)
    for k in range(n):
        target[listed[k]] = photons_of_code(raw, p, listed[k])

"""Raw values to photons with the common mode of each group of pixels, while the group is in the processor's cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.calibration import RawFrame, list_coded, write_listed
from xfelproc.kernels.common_mode import (
    ALL,
    FOUND,
    Counts,
    Floats,
    Floats32,
    begin_offset,
    finish_offset,
    found_columns,
    offset_of_all,
    sampled_rows,
)
from xfelproc.kernels.peak_windows import ROWS, add_row, take_sums
from xfelproc.kernels.pixel_histogram import is_sampled

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

    Pixels of no group are not written. Photons need the offset, and that needs all pixels of the group: values less the pedestal
    wait in a tile of their own, which unlike the group's rows in a frame is contiguous and stays in the processor's cache.

    Parameters
    ----------
    bounds
        (group, 5) panel, first and last slow (half open), first and last fast.
    dark, scale, use
        Pedestal and inverse gain of the stage of code 0, and 0 where the pixel may serve: the pixels of one group after the other.
    method, constants, scratch
        As `kernels.common_mode.group_offset` takes them; constants are (group, 5).
    """
    failed, largest, begin = 0, 0, 0
    for g in range(len(bounds)):
        _, y0, y1, x0, x1 = bounds[g]
        largest = max(largest, (y1 - y0) * (x1 - x0))
    listed = np.empty((largest if raw.coded else 0, 2), dtype=np.int32)
    memory = np.empty(largest, dtype=np.float32)
    for g in range(len(bounds)):
        p, y0, y1, x0, x1 = bounds[g]
        shape, end = (y1 - y0, x1 - x0), begin + (y1 - y0) * (x1 - x0)
        n = list_coded(raw.codes, raw.shift, raw.stages[p, 0] < 0, p, y0, y1, x0, x1, listed) if raw.coded else 0
        if raw.stages[p, 0] >= 0:
            tile, gains = memory[: end - begin].reshape(shape), scale[begin:end].reshape(shape)
            offset, error = measure_group(
                raw,
                bounds[g],
                dark[begin:end].reshape(shape),
                gains,
                use[begin:end].reshape(shape),
                method,
                constants[g],
                listed[:n],
                scratch,
                tile,
            )
            failed += not error < np.inf
            write_tile(tile, bounds[g], np.float32(offset), gains, raw.factor, raw.ceiling[p], out)
        write_listed(raw, p, listed, n, out)
        begin = end
    return failed


@njit(cache=True, nogil=True)
def measure_group(
    raw: RawFrame,
    bounds: Bounds,
    dark: Floats32,
    scale: Floats32,
    use: Bytes,
    method: int,
    constants: Floats,
    listed: NDArray[np.int32],
    scratch: Counts,
    tile: Floats32,
) -> tuple[float, float]:
    """Write a group's values less the pedestal to ``tile``; return its offset (ADU) and the standard error of that.

    Values are NaN where there is no measurement of the first stage (``listed`` are in others), inf where it is saturated.
    """
    p, y0, _, x0, x1 = bounds
    pixels, limits, factor = raw.pixels, raw.limits[p], float(raw.factor)
    height, width = tile.shape
    step = sampled_rows(height, width)
    for y in range(height):
        if is_sampled(y, step):
            row_to_adu(pixels[p, y0 + y][x0:x1], limits, dark[y], tile[y])
    for i in range(len(listed)):
        if is_sampled(listed[i, 0] - y0, step):
            tile[listed[i, 0] - y0, listed[i, 1] - x0] = np.nan
    found = begin_offset(tile, use, scale, method, constants, factor, step, scratch)
    columns, number, total, i = found_columns(scratch)[:width], 0, 0, 0
    for y in range(height):
        row = tile[y]
        if not is_sampled(y, step):
            row_to_adu(pixels[p, y0 + y][x0:x1], limits, dark[y], row)
        while i < len(listed) and listed[i, 0] == y0 + y:
            row[listed[i, 1] - x0] = np.nan
            i += 1
        if found.state == FOUND:
            add_row(row, use[y], scale[y], found.zero, found.norm, found.windows, columns)
            if y % ROWS == ROWS - 1 or y == height - 1:
                more, added = take_sums(columns)
                number, total = number + more, total + added
    if found.state == ALL:
        return offset_of_all(tile, use, scale, method, constants, factor, found.zero, scratch)
    return finish_offset(found, number, total, constants, factor)


@njit(cache=True, nogil=True, inline="always")
def row_to_adu(row: NDArray[Any], limits: NDArray[Any], dark: Floats32, out: Floats32) -> None:
    """Write raw values of a row less the pedestal, NaN where there is no measurement, inf where it is saturated."""
    low, high, last = limits[0], limits[1], limits[2]
    for x in range(len(row)):
        v = row[x]
        adu = np.float32(v) - dark[x]
        good = (v >= low) & (v <= last)
        adu = np.float32(np.inf) if v > high else adu
        out[x] = adu if good else np.float32(np.nan)


@njit(cache=True, nogil=True)
def write_tile(
    tile: Floats32, bounds: Bounds, shift: np.float32, scale: Floats32, factor: np.float32, top: np.float32, out: Floats32
) -> None:
    """Write the photons of a tile's values less the offset ``shift``; ``top`` where they are inf."""
    p, y0, y1, x0, x1 = bounds
    for y in range(y0, y1):
        row, inverse, target = tile[y - y0], scale[y - y0], out[p, y][x0:x1]
        for x in range(len(row)):
            adu = row[x]
            photons = (adu - shift) * (inverse[x] * factor)
            target[x] = top if adu == np.float32(np.inf) else photons

"""Raw values to photons with the common mode of each group of pixels, while the group is in the processor's cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.calibration import photons_in_stage, switched_by_bits
from xfelproc.kernels.common_mode import Counts, Floats, Floats32, group_offset

Bytes = NDArray[np.uint8]
Bounds = NDArray[np.int32]


@njit(cache=True, nogil=True)
def group_to_adu(pixels: NDArray[Any], limits: NDArray[Any], bounds: Bounds, dark: Floats32, out: Floats32) -> None:
    """Write one group's raw values less the pedestal: NaN where there is no measurement, inf where it is saturated.

    Parameters
    ----------
    pixels, dark, out
        Stacks (panel, slow, fast): raw values, pedestal, result.
    limits
        (3,) of the panel, as `kernels.pixels.pixel_limits`.
    bounds
        (5,) panel, first and last slow, first and last fast.
    """
    low, high, last = limits[0], limits[1], limits[2]
    p, y0, y1, x0, x1 = bounds
    for y in range(y0, y1):
        row, zero, target = pixels[p, y][x0:x1], dark[p, y][x0:x1], out[p, y][x0:x1]
        for x in range(len(row)):
            v = row[x]
            adu = np.float32(v) - zero[x]
            good = (v >= low) & (v <= last)
            adu = np.float32(np.inf) if v > high else adu
            target[x] = adu if good else np.float32(np.nan)


@njit(cache=True, nogil=True)
def group_to_photons(
    bounds: Bounds,
    scale: Floats32,
    factor: np.float32,
    top: np.float32,
    use: Bytes,
    method: int,
    constants: Floats,
    scratch: Counts,
    out: Floats32,
) -> bool:
    """Make photons of what `group_to_adu` wrote, less the group's offset; return whether this could be determined.

    Parameters
    ----------
    scale, use, out
        Stacks (panel, slow, fast): inverse gain, 0 where a pixel may serve, ADU and then photons.
    factor, top
        What inverse gains are multiplied with; what saturated pixels become.
    method, constants
        As `kernels.common_mode.group_offset` takes them.
    """
    p, y0, y1, x0, x1 = bounds
    offset, error = group_offset(out, use, scale, bounds, method, constants, float(factor), scratch)
    shift = np.float32(offset)
    for y in range(y0, y1):
        target, inverse = out[p, y][x0:x1], scale[p, y][x0:x1]
        for x in range(len(target)):
            adu = target[x]
            photons = (adu - shift) * (inverse[x] * factor)
            target[x] = top if adu == np.float32(np.inf) else photons
    return bool(error < np.inf)


@njit(cache=True, nogil=True)
def calibrate_map_groups(
    pixels: NDArray[Any],
    limits: NDArray[Any],
    pedestal: Floats32,
    inverse_gain: Floats32,
    factor: np.float32,
    ceiling: Floats32,
    bounds: Bounds,
    use: Bytes,
    method: int,
    constants: Floats,
    scratch: Counts,
    out: Floats32,
) -> int:
    """Do as `kernels.calibration.calibrate_maps` less the common mode; return the number of groups that have none.

    ``bounds`` and ``constants`` (group, 5) are as in `group_to_photons`. Pixels of no group are not written.
    """
    failed = 0
    for g in range(len(bounds)):
        p = bounds[g, 0]
        group_to_adu(pixels, limits[p], bounds[g], pedestal, out)
        failed += not group_to_photons(bounds[g], inverse_gain, factor, ceiling[p], use, method, constants[g], scratch, out)
    return failed


@njit(cache=True, nogil=True)
def calibrate_bit_groups(
    pixels: NDArray[Any],
    shift: int,
    limits: NDArray[Any],
    stages: NDArray[np.int8],
    saturated: NDArray[np.float64],
    pedestal: Floats32,
    inverse_gain: Floats32,
    factor: np.float32,
    ceiling: Floats32,
    bounds: Bounds,
    use: Bytes,
    method: int,
    constants: Floats,
    scratch: Counts,
    out: Floats32,
) -> int:
    """Do as `kernels.calibration.calibrate_bits` less the common mode of the stage of code 0; see `calibrate_map_groups`.

    ``limits`` must end, in a panel of which code 0 is a stage, below the values with another code.
    """
    failed = 0
    for g in range(len(bounds)):
        p, y0, y1, x0, x1 = bounds[g]
        first, table = stages[p, 0], stages[p]
        if first >= 0:
            group_to_adu(pixels, limits[p], bounds[g], pedestal[first], out)
            scale = inverse_gain[first]
            failed += not group_to_photons(bounds[g], scale, factor, ceiling[p], use, method, constants[g], scratch, out)
        for y in range(y0, y1):
            row, target = pixels[p, y][x0:x1], out[p, y][x0:x1]
            switched_by_bits(row, p, y, x0, shift, table, saturated[p], pedestal, inverse_gain, factor, ceiling[p], target)
    return failed


@njit(cache=True, nogil=True)
def calibrate_code_groups(
    pixels: NDArray[Any],
    codes: Bytes,
    limits: NDArray[Any],
    stages: NDArray[np.int8],
    saturated: NDArray[np.float64],
    pedestal: Floats32,
    inverse_gain: Floats32,
    factor: np.float32,
    ceiling: Floats32,
    bounds: Bounds,
    use: Bytes,
    method: int,
    constants: Floats,
    scratch: Counts,
    out: Floats32,
) -> int:
    """Do as `kernels.calibration.calibrate_codes` less the common mode of the stage of code 0; see `calibrate_map_groups`."""
    failed = 0
    for g in range(len(bounds)):
        p, y0, y1, x0, x1 = bounds[g]
        first, table, last = stages[p, 0], stages[p], limits[p, 2]
        if first >= 0:
            group_to_adu(pixels, limits[p], bounds[g], pedestal[first], out)
            for y in range(y0, y1):
                for x in range(x0, x1):
                    if codes[p, y, x] != 0:
                        out[p, y, x] = np.nan
            scale = inverse_gain[first]
            failed += not group_to_photons(bounds[g], scale, factor, ceiling[p], use, method, constants[g], scratch, out)
        for y in range(y0, y1):
            for x in range(x0, x1):
                code = codes[p, y, x]
                if code == 0 and first >= 0:
                    continue
                v = pixels[p, y, x]
                stage = table[code] if code < len(table) and v <= last else -1
                out[p, y, x] = photons_in_stage(
                    np.float32(v), stage, p, y, x, saturated[p], pedestal, inverse_gain, factor, ceiling[p]
                )
    return failed

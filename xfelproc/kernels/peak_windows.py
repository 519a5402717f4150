"""The offset of a group of pixels whose photon peaks lie apart: a mean over windows about the peaks, over all pixels.

A histogram of some of the rows tells where the lowest peak is, and how many pixels are in each. From there one step of
Newton's method on all pixels is as good as many: the mean of an odd function ψ of the distance from the nearest peak, over the
pixels within a window, is 0 where the peaks are (an M-estimate of location: Huber 1964, Ann. Math. Stat. 35, 73). No pixel
needs a bin of its own, and the loop vectorises.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Counts = NDArray[np.uint32]

CLEARANCE = 3.2
"""σ that a window keeps from the next peak at least."""
SEPARATED = 5.2
"""Gain over noise from which peaks are apart: half a window is 2 σ then."""
HELD = 0.9
"""Part of the pixels that windows hold, as far as `MOST` of them do: errors of the gain grow with the number of photons."""
MOST = 8
LEAST = 30
"""Pixels in windows."""
POINTS = 32
FIXED = 4096.0
"""Sums are of whole numbers, of this part of σ: exact in whatever order."""
LONGEST = 1 << 17
"""Pixels whose ψ, at most 3 σ each, have a sum of 32 bits."""
WHOLE = np.float32(1.5 * 2.0**23)


class Windows(NamedTuple):
    """Windows of ± ``half`` about the peaks 0 to ``last``, ``gain`` apart (σ), with ψ(r) = straight r - bent r³ + step sign(r).

    Of the pixels in the windows: mean of ψ as it should be, its slope with a shift, and the mean of ψ².
    """

    last: int
    half: float
    gain: float
    straight: float
    bent: float
    step: float
    expected: float
    slope: float
    square: float


@njit(cache=True, nogil=True)
def window_shape(half: float, gain: float, numbers: Floats, last: int, straight: float, bent: float, step: float) -> Windows:
    """Return windows for normal noise; ``numbers`` are the pixels of each peak, which spill into the windows of neighbours."""
    held, slope, square, spilled = 0.0, 0.0, 0.0, 0.0
    width = 2.0 * half / POINTS
    for i in range(POINTS):
        r = (i + 0.5) * width - half
        weight = math.exp(-0.5 * r * r) * width / math.sqrt(2.0 * math.pi)
        psi = r * (straight - bent * r * r) + math.copysign(step, r)
        held += weight
        slope += weight * psi * r
        square += weight * psi * psi
        if gain < 12.0:
            spilled += weight * psi * math.exp(r * gain - 0.5 * gain * gain)
    # what comes from above and from below cancels but for the first and the last window
    surplus = spilled * (numbers[last] + numbers[last + 1] - numbers[0]) / max(numbers[: last + 1].sum(), 1.0)
    return Windows(last, half, min(gain, 1e6), straight, bent, step, surplus / held, slope / held, square / held)


@njit(cache=True, nogil=True)
def no_windows() -> Windows:
    """Return windows where none are found."""
    return Windows(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@njit(cache=True, nogil=True)
def newton_step(number: float, total: float, windows: Windows) -> tuple[float, float]:
    """Return the shift of the peaks and its standard error, σ, from the pixels in the windows and their sum of ψ."""
    if number < LEAST:
        return 0.0, np.inf
    shift = (total / number - windows.expected) / windows.slope
    if abs(shift) > 1.0:
        return 0.0, np.inf
    return shift, math.sqrt(windows.square / number) / windows.slope


@njit(cache=True, nogil=True)
def histogram_sums(counts: Counts, at: float, sigma: float, windows: Windows) -> tuple[float, float]:
    """Return number of pixels and sum of ψ over the windows in a histogram; the lowest peak is at bin ``at``, ``sigma`` in bins."""
    number, total = 0.0, 0.0
    for k in range(windows.last + 1):
        centre = at + k * windows.gain * sigma
        first = max(0, math.ceil(centre - windows.half * sigma))
        end = min(len(counts), math.floor(centre + windows.half * sigma) + 1)
        for b in range(first, end):
            r = (b - centre) / sigma
            number += counts[b]
            total += counts[b] * (r * (windows.straight - windows.bent * r * r) + math.copysign(windows.step, r))
    return number, total


@njit(cache=True, nogil=True)
def peak_numbers(counts: Counts, at: float, gain: float, out: Floats) -> int:
    """Write the pixels nearest to each peak, the lowest first; return the last peak until which they are `HELD`."""
    out[:] = 0.0
    if gain == np.inf:
        out[0] = 1.0
        return 0
    total = 0
    for b in range(len(counts)):
        total += counts[b]
    for k in range(len(out)):
        first = max(0, math.ceil(at + (k - 0.5) * gain))
        for b in range(first, min(len(counts), math.ceil(at + (k + 0.5) * gain))):
            out[k] += counts[b]
    last, running = 0, out[0]
    while running < HELD * total and last + 2 < len(out):
        last += 1
        running += out[last]
    return last


@njit(cache=True, nogil=True)
def window_sums(
    adu: Floats32, use: NDArray[np.uint8], scale: Floats32, zero: float, norm: float, windows: Windows
) -> tuple[int, int]:
    """Return number of pixels of a rectangle and sum of ψ (`FIXED`) over the windows.

    Parameters
    ----------
    adu, use, scale
        As `common_mode.group_offset` takes them.
    zero
        ADU of the lowest peak.
    norm
        What values less ``zero``, times ``scale``, are multiplied with to be in σ.
    """
    values, serves, inverse = adu.reshape(-1), use.reshape(-1), scale.reshape(-1)
    number, total = 0, 0
    for begin in range(0, len(values), LONGEST):
        end = begin + LONGEST
        if windows.last == 0:
            more, added = sums_of_one(values[begin:end], serves[begin:end], inverse[begin:end], zero, norm, windows)
        else:
            more, added = sums_of_many(values[begin:end], serves[begin:end], inverse[begin:end], zero, norm, windows)
        number, total = number + more, total + added
    return number, total


@njit(cache=True, nogil=True)
def sums_of_one(
    adu: Floats32, use: NDArray[np.uint8], scale: Floats32, zero: float, norm: float, windows: Windows
) -> tuple[int, int]:
    """Return `window_sums` of up to `LONGEST` pixels and one window."""
    lowest, to_sigma, within = np.float32(zero), np.float32(norm), np.float32(windows.half)
    straight, bent, step = np.float32(windows.straight * FIXED), np.float32(windows.bent * FIXED), np.float32(windows.step * FIXED)
    number, total = np.int32(0), np.int32(0)
    for x in range(len(adu)):
        r = (adu[x] - lowest) * (scale[x] * to_sigma)
        good = (abs(r) <= within) & (use[x] == 0)
        value = r * (straight - bent * (r * r)) + math.copysign(step, r)
        number = np.int32(number + np.int32(good))
        total = np.int32(total + (np.int32(value) if good else np.int32(0)))
    return int(number), int(total)


@njit(cache=True, nogil=True)
def sums_of_many(
    adu: Floats32, use: NDArray[np.uint8], scale: Floats32, zero: float, norm: float, windows: Windows
) -> tuple[int, int]:
    """Return `window_sums` of up to `LONGEST` pixels and several windows, where ψ is straight."""
    lowest, to_sigma, within = np.float32(zero), np.float32(norm), np.float32(windows.half)
    between, to_peaks, top = np.float32(windows.gain), np.float32(1.0 / windows.gain), np.float32(windows.last)
    straight = np.float32(windows.straight * FIXED)
    number, total = np.int32(0), np.int32(0)
    for x in range(len(adu)):
        t = (adu[x] - lowest) * (scale[x] * to_sigma)
        k = t * to_peaks
        k = k if k < top else top
        k = k if k > np.float32(0.0) else np.float32(0.0)
        # the nearest whole number: what is added leaves no bits for a fraction
        r = t - ((k + WHOLE) - WHOLE) * between
        good = (abs(r) <= within) & (use[x] == 0)
        number = np.int32(number + np.int32(good))
        total = np.int32(total + (np.int32(r * straight) if good else np.int32(0)))
    return int(number), int(total)

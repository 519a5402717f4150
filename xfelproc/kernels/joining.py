"""Spots of single frames joined to spots of a sweep."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.spots import sampling_variance

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@njit(cache=True, nogil=True)
def _nearest(
    row: int, first: int, last: int, panel: NDArray[np.int32], fast: Floats, slow: Floats, box: NDArray[np.int32], slack: float
) -> int:
    """Return the row in [first, last), sorted by panel and slow, whose box meets that of ``row``, the nearest one; -1: none."""
    best, best_distance = -1, np.inf
    low, high = first, last
    key = slow[row] - 60.0
    while low < high:
        middle = (low + high) // 2
        if panel[middle] < panel[row] or (panel[middle] == panel[row] and slow[middle] < key):
            low = middle + 1
        else:
            high = middle
    for other in range(low, last):
        if panel[other] != panel[row] or slow[other] > slow[row] + 60.0:
            break
        reach = slack + 0.25 * (box[row, 1] - box[row, 0] + box[row, 3] - box[row, 2])
        distance = (fast[other] - fast[row]) ** 2 + (slow[other] - slow[row]) ** 2
        meet = (
            box[other, 0] < box[row, 1]
            and box[row, 0] < box[other, 1]
            and box[other, 2] < box[row, 3]
            and box[row, 2] < box[other, 3]
        )
        if meet and distance < reach * reach and distance < best_distance:
            best, best_distance = other, distance
    return best


@njit(cache=True, nogil=True)
def link_frames(
    frame_start: Integers,
    panel: NDArray[np.int32],
    fast: Floats,
    slow: Floats,
    box: NDArray[np.int32],
    slack: float,
    following: Integers,
) -> None:
    """Write the row on the next frame that goes on with each row (-1: none): both are each other's nearest whose boxes meet.

    Rows of frame f are ``frame_start[f]:frame_start[f + 1]``, sorted by panel and slow; ``box`` is fast0, fast1, slow0, slow1, half
    open. Centres may be apart by ``slack`` px and a quarter of the box's width and height.
    """
    following[:] = -1
    for f in range(len(frame_start) - 2):
        here, there, end = frame_start[f], frame_start[f + 1], frame_start[f + 2]
        for row in range(here, there):
            other = _nearest(row, there, end, panel, fast, slow, box, slack)
            if other >= 0 and _nearest(other, here, there, panel, fast, slow, box, slack) == row:
                following[row] = other


@njit(cache=True, nogil=True)
def cut_chains(following: Integers, intensity: Floats, depth: float) -> None:
    """Cut chains between two maxima where the least intensity between, which ends the former, is below ``depth`` of the smaller."""
    n = len(following)
    has_former = np.zeros(n, dtype=np.bool_)
    for row in range(n):
        if following[row] >= 0:
            has_former[following[row]] = True
    for head in range(n):
        if has_former[head]:
            continue
        highest, lowest, lowest_row = intensity[head], intensity[head], head
        row = following[head]
        while row >= 0:
            value = intensity[row]
            if value < lowest:
                lowest, lowest_row = value, row
            if lowest < depth * min(highest, value) and lowest_row != row:
                rest = following[lowest_row]
                following[lowest_row] = -1
                highest, lowest, lowest_row = value, intensity[rest], rest
                inner = rest
                while inner != row:
                    highest = max(highest, intensity[inner])
                    inner = following[inner]
            elif value > highest:
                highest, lowest, lowest_row = value, value, row
            row = following[row]


@njit(cache=True, nogil=True)
def sum_chains(
    following: Integers, frame: Integers, columns: Floats, flags: NDArray[np.uint16], out: Floats, out_flags: NDArray[np.uint16]
) -> int:
    """Write one row for each chain of rows and return their number.

    ``columns`` (n, 8): fast, slow, their variances, intensity, its σ, peak and number of pixels. ``out`` (n, 12): fast, slow, z,
    the variances of the three, intensity, σ, peak, pixels, frames and the row of the highest intensity. The centroid's variance
    along z is that of counting and of the sampling by frames (`sampling_variance`).
    """
    n = len(following)
    inner = np.zeros(n, dtype=np.bool_)
    for row in range(n):
        if following[row] >= 0:
            inner[following[row]] = True
    count = 0
    for head in range(n):
        if inner[head]:
            continue
        total = variance = x = y = z = moment = vx = vy = peak = pixels = 0.0
        highest, at = -np.inf, head
        length, mark = 0, np.uint16(0)
        row = head
        while row >= 0:
            weight = max(columns[row, 4], 1e-6)
            middle = frame[row] + 0.5
            total += weight
            x += weight * columns[row, 0]
            y += weight * columns[row, 1]
            z += weight * middle
            moment += weight * middle * middle
            vx += weight * weight * columns[row, 2]
            vy += weight * weight * columns[row, 3]
            variance += columns[row, 5] ** 2
            peak = max(peak, columns[row, 6])
            pixels += columns[row, 7]
            mark |= flags[row]
            if columns[row, 4] > highest:
                highest, at = columns[row, 4], row
            length += 1
            row = following[row]
        x, y, z = x / total, y / total, z / total
        moment = max(0.0, moment / total - z * z)
        spread = 0.0
        row = head
        while row >= 0:
            spread += columns[row, 5] ** 2 * (frame[row] + 0.5 - z) ** 2
            row = following[row]
        line = out[count]
        line[0], line[1], line[2] = x, y, z
        line[3], line[4] = vx / (total * total), vy / (total * total)
        line[5] = spread / (total * total) + sampling_variance(moment + 1.0 / 12.0)
        line[6], line[7], line[8], line[9], line[10], line[11] = total, np.sqrt(variance), peak, pixels, length, at
        out_flags[count] = mark
        count += 1
    return count

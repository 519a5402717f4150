"""Shoeboxes of a sweep: cut out frame by frame, then integrated by summation and by profile fitting.

A shoebox has the same number of pixels for all reflections of a call, (slow, fast) = (2 half + 1)², about the pixel of the
predicted
position, and as many frames as its reflection needs; its pixels lie in one pool, one frame after the other. A pixel's place
relative
to the predicted position is measured in Kabsch's frame (1988, J. Appl. Cryst. 21, 916; 2010, Acta Cryst. D66, 133): e1 along s1
× s0, e2 along s1 × e1, and the angle about the scan axis times ζ.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

OUT = (
    "sum",
    "var_sum",
    "profile",
    "var_profile",
    "background",
    "correlation",
    "inside",
    "n_background",
    "fast",
    "slow",
    "z",
    "peak",
    "flags",
)
"""What each column of the results of `integrate_shoeboxes` holds."""
N_OUT = 13
BAD_PIXEL, OVERLAP, FEW_BACKGROUND, SATURATED, EDGE = 4, 8, 16, 2, 32


@njit(cache=True, nogil=True)
def cut_frame(
    pixels: NDArray[Any],
    mask: NDArray[np.uint8],
    limits: Floats,
    rows: Integers,
    panel: NDArray[np.int32],
    corner: Integers,
    size: int,
    offset: Integers,
    pool: NDArray[np.float32],
) -> None:
    """Copy the pixels of one frame into the pool: NaN where masked or off the panel, infinite where saturated.

    ``rows`` are the reflections on this frame, ``corner`` (n, 2) the first fast and slow of their boxes, ``offset`` (rows) where
    the frame's pixels go. ``limits`` (panel, 2) are the lowest and highest values that are measurements.
    """
    _, height, width = pixels.shape
    for k in range(len(rows)):
        row = rows[k]
        p = panel[row]
        at = offset[k]
        for y in range(corner[row, 1], corner[row, 1] + size):
            for x in range(corner[row, 0], corner[row, 0] + size):
                value = np.float32(np.nan)
                if 0 <= x < width and 0 <= y < height and mask[p, y, x] == 0:
                    v = pixels[p, y, x]
                    if v > limits[p, 1]:
                        value = np.float32(np.inf)
                    elif v >= limits[p, 0]:
                        value = np.float32(v)
                pool[at] = value
                at += 1


@njit(cache=True, nogil=True)
def normal_fraction(low: float, high: float) -> float:
    """Return the part of a standard normal law between two deviates."""
    return 0.5 * (math.erf(high / math.sqrt(2.0)) - math.erf(low / math.sqrt(2.0)))


@njit(cache=True, nogil=True)
def kabsch_axes(s1: Floats, s0: Floats, geometry: Floats, out: Floats) -> None:
    """Write (2, 2): the changes of ε1 and ε2 (radians) with fast and slow (pixels) at a ray s1 onto a packed panel."""
    n1 = math.sqrt(s1[0] ** 2 + s1[1] ** 2 + s1[2] ** 2)
    e1x, e1y, e1z = s1[1] * s0[2] - s1[2] * s0[1], s1[2] * s0[0] - s1[0] * s0[2], s1[0] * s0[1] - s1[1] * s0[0]
    norm = math.sqrt(e1x * e1x + e1y * e1y + e1z * e1z)
    e1x, e1y, e1z = e1x / norm, e1y / norm, e1z / norm
    e2x, e2y, e2z = (s1[1] * e1z - s1[2] * e1y) / n1, (s1[2] * e1x - s1[0] * e1z) / n1, (s1[0] * e1y - s1[1] * e1x) / n1
    g = geometry
    reach = g[12] / (g[6] * s1[0] + g[7] * s1[1] + g[8] * s1[2])  # X = reach s1, mm
    length = reach * n1
    for axis in range(2):
        ax, ay, az = g[3 * axis], g[3 * axis + 1], g[3 * axis + 2]
        step = g[13 + axis] / length
        out[0, axis] = step * (ax * e1x + ay * e1y + az * e1z)
        out[1, axis] = step * (ax * e2x + ay * e2y + az * e2z)


@njit(cache=True, nogil=True)
def _inside(dx: float, dy: float, angle: float, jacobian: Floats, widths: Floats, reach: float) -> float:
    """Return the squared distance of a voxel from a reflection, in units of ``reach`` standard deviations."""
    a = jacobian[0, 0] * dx + jacobian[0, 1] * dy
    b = jacobian[1, 0] * dx + jacobian[1, 1] * dy
    return float(((a / widths[0]) ** 2 + (b / widths[1]) ** 2 + (angle / widths[2]) ** 2) / (reach * reach))


@njit(cache=True, nogil=True)
def _profile_at(table: Floats, half: float, a: float, b: float) -> float:
    """Return the bilinear value of a profile table (n, n) over ±``half`` standard deviations; 0 outside."""
    n = table.shape[0]
    u = (a / half + 1.0) * 0.5 * (n - 1)
    v = (b / half + 1.0) * 0.5 * (n - 1)
    if u < 0.0 or v < 0.0 or u > n - 1 or v > n - 1:
        return 0.0
    i, j = min(int(u), n - 2), min(int(v), n - 2)
    u, v = u - i, v - j
    near = (1 - v) * table[i, j] + v * table[i, j + 1]
    return float((1 - u) * near + u * ((1 - v) * table[i + 1, j] + v * table[i + 1, j + 1]))


@njit(cache=True, nogil=True)
def _background(values: Floats, n: int) -> tuple[float, float, int]:
    """Return mean, its variance and number of values, clipped three times at 3.5 σ (at least a count)."""
    low, high = -np.inf, np.inf
    mean, count, variance = 0.0, 0, 0.0
    for _ in range(4):
        total = square = 0.0
        count = 0
        for i in range(n):
            v = values[i]
            if low <= v <= high:
                total += v
                square += v * v
                count += 1
        if count == 0:
            return 0.0, 0.0, 0
        mean = total / count
        variance = max(square / count - mean * mean, 0.0)
        reach = max(3.5 * math.sqrt(max(variance, mean)), 1.5)
        low, high = mean - reach, mean + reach
    return mean, max(variance, mean) / count, count


@njit(cache=True, nogil=True)
def _frame_angle(frame: float, z: float, turn: float) -> float:
    """Return the least distance (radians times ζ) in angle of a frame's exposure from the angle of a reflection."""
    if frame <= z <= frame + 1.0:
        return 0.0
    return turn * (frame - z if z < frame else z - frame - 1.0)


@njit(cache=True, nogil=True)
def _own(
    row: int,
    x: float,
    y: float,
    frame: float,
    place: Floats,
    turn: Floats,
    jacobian: Floats,
    widths: Floats,
    reach: float,
    neighbour: Integers,
    first: int,
    last: int,
) -> tuple[bool, bool]:
    """Return whether a voxel belongs to reflection ``row``, and whether it belongs to a nearer one of its neighbours."""
    here = _inside(
        x - place[row, 0], y - place[row, 1], _frame_angle(frame, place[row, 2], turn[row]), jacobian[row], widths[row], reach
    )
    for k in range(first, last):
        other = neighbour[k]
        dx, dy = x - place[other, 0], y - place[other, 1]
        angle = _frame_angle(frame, place[other, 2], turn[other])
        there = _inside(dx, dy, angle, jacobian[other], widths[other], reach)
        if there <= 1.0 and there < here:
            return here <= 1.0, True
    return here <= 1.0, False


@njit(cache=True, nogil=True)
def integrate_shoeboxes(
    pool: NDArray[np.float32],
    offset: Integers,
    corner: Integers,
    frames: Integers,
    size: int,
    place: Floats,
    turn: Floats,
    jacobian: Floats,
    widths: Floats,
    reach: float,
    neighbour: Integers,
    neighbour_start: Integers,
    tables: Floats,
    region: Integers,
    extent: float,
    min_background: int,
    out: Floats,
) -> None:
    """Integrate each shoebox; columns `OUT`.

    Parameters
    ----------
    offset, corner, frames
        Where the box starts in ``pool`` (n,), its first fast and slow (n, 2), its first frame and the one after its last (n, 2).
    place, turn, jacobian, widths
        Predicted fast, slow (px), frame coordinate (n, 3); radians times |ζ| a frame (n,); `kabsch_axes` (n, 2, 2); σ of ε1, ε2
        and of the angle times ζ (n, 3; radians).
    reach
        Standard deviations to which a voxel belongs to the reflection.
    neighbour, neighbour_start
        Rows of the reflections near each, in one list.
    tables, region, extent
        Profiles (k, m, m) in units of σ over ±``extent``, and which is each reflection's.

    Longer than the house's 60 lines: what is found of a voxel once is used for background, sum and fit.
    """
    largest = 1
    for row in range(len(offset)):
        largest = max(largest, (frames[row, 1] - frames[row, 0]) * size * size)
    back, p, kind = np.empty(largest), np.empty(largest), np.empty(largest, dtype=np.int8)
    for row in range(len(offset)):
        line = out[row]
        line[:] = 0.0
        n_frames, base = frames[row, 1] - frames[row, 0], offset[row]
        flags, n_back, n = 0, 0, n_frames * size * size
        plane = 0.0
        for k in range(size * size):  # the profile in the plane, normed over all pixels, masked or not
            dx, dy = corner[row, 0] + k % size + 0.5 - place[row, 0], corner[row, 1] + k // size + 0.5 - place[row, 1]
            a = (jacobian[row, 0, 0] * dx + jacobian[row, 0, 1] * dy) / widths[row, 0]
            b = (jacobian[row, 1, 0] * dx + jacobian[row, 1, 1] * dy) / widths[row, 1]
            p[k] = max(0.0, _profile_at(tables[region[row]], extent, a, b))
            plane += p[k]
        for i in range(n - 1, -1, -1):  # backwards: the first frame's plane is read by all
            k, frame = i % (size * size), frames[row, 0] + i // (size * size)
            low = (frame - place[row, 2]) * turn[row] / widths[row, 2]
            p[i] = p[k] / max(plane, 1e-12) * normal_fraction(low, low + turn[row] / widths[row, 2])
        for i in range(n):
            k, frame = i % (size * size), frames[row, 0] + i // (size * size)
            x, y = corner[row, 0] + k % size + 0.5, corner[row, 1] + k // size + 0.5
            inside, others = _own(
                row, x, y, frame, place, turn, jacobian, widths, reach, neighbour, neighbour_start[row], neighbour_start[row + 1]
            )
            value = pool[base + i]
            kind[i] = 0
            if np.isinf(value):
                flags |= SATURATED if inside else 0
            elif np.isnan(value):
                flags |= BAD_PIXEL if inside else 0
            elif others:
                flags |= OVERLAP if inside else 0
            elif inside:
                kind[i] = 1
            else:
                kind[i] = 2
                back[n_back] = value
                n_back += 1
        mean, var_mean, used = _background(back, n_back)
        if used < min_background:
            flags |= FEW_BACKGROUND
            line[12] = flags
            continue
        total = inside_part = sx = sy = sz = 0.0
        count, peak = 0, 0.0
        for i in range(n):
            if kind[i] == 1:
                excess = pool[base + i] - mean
                total += excess
                inside_part += p[i]
                count += 1
                peak = max(peak, float(pool[base + i]))
                k = i % (size * size)
                sx += excess * (corner[row, 0] + k % size + 0.5)
                sy += excess * (corner[row, 1] + k // size + 0.5)
                sz += excess * (frames[row, 0] + i // (size * size) + 0.5)
        if count == 0 or inside_part <= 1e-3:
            line[12] = flags | BAD_PIXEL
            continue
        counted = max(total, 0.0) + count * mean + count * count * var_mean
        line[0], line[1] = total / inside_part, counted / (inside_part * inside_part)
        intensity = max(line[0], 0.0)
        upper = lower = cross = 0.0
        for _ in range(3):
            upper = lower = cross = 0.0
            for i in range(n):
                if kind[i] == 1 and p[i] > 0.0:
                    weight = p[i] / max(mean + intensity * p[i], 0.02)
                    upper += weight * (pool[base + i] - mean)
                    lower += weight * p[i]
                    cross += weight
            if lower <= 0.0:
                break
            intensity = max(upper / lower, 0.0)
        if lower > 0.0:
            line[2], line[3] = upper / lower, 1.0 / lower + (cross / lower) ** 2 * var_mean
        line[4], line[7], line[6], line[11], line[12] = mean, used, inside_part, peak, flags
        if total > 0.0:
            line[8], line[9], line[10] = sx / total, sy / total, sz / total


@njit(cache=True, nogil=True)
def learn_profiles(
    pool: NDArray[np.float32],
    offset: Integers,
    corner: Integers,
    frames: Integers,
    size: int,
    place: Floats,
    turn: Floats,
    jacobian: Floats,
    widths: Floats,
    rows: Integers,
    background: Floats,
    intensity: Floats,
    region: Integers,
    extent: float,
    total: Floats,
    weight: Floats,
) -> None:
    """Add the profiles of reflections ``rows`` to ``total`` and ``weight`` (regions, m, m), spread bilinearly over the nodes.

    What is averaged is the flux in a pixel, all frames together, as part of the intensity and of the pixel's share of the plane in
    units of σ.
    """
    m = total.shape[1]
    for row in rows:
        n_frames = frames[row, 1] - frames[row, 0]
        area = abs(jacobian[row, 0, 0] * jacobian[row, 1, 1] - jacobian[row, 0, 1] * jacobian[row, 1, 0])
        area /= widths[row, 0] * widths[row, 1]
        for k in range(size * size):
            dx, dy = corner[row, 0] + k % size + 0.5 - place[row, 0], corner[row, 1] + k // size + 0.5 - place[row, 1]
            a = (jacobian[row, 0, 0] * dx + jacobian[row, 0, 1] * dy) / widths[row, 0]
            b = (jacobian[row, 1, 0] * dx + jacobian[row, 1, 1] * dy) / widths[row, 1]
            u, v = (a / extent + 1.0) * 0.5 * (m - 1), (b / extent + 1.0) * 0.5 * (m - 1)
            if u < 0.0 or v < 0.0 or u >= m - 1 or v >= m - 1:
                continue
            flux = 0.0
            for f in range(n_frames):
                flux += pool[offset[row] + f * size * size + k] - background[row]
            if not np.isfinite(flux):
                continue
            i, j = int(u), int(v)
            u, v = u - i, v - j
            strength = intensity[row]  # strong ones know their profile better
            density = flux / (intensity[row] * area)
            for di in range(2):
                for dj in range(2):
                    part = (u if di else 1 - u) * (v if dj else 1 - v) * strength
                    total[region[row], i + di, j + dj] += part * density
                    weight[region[row], i + di, j + dj] += part

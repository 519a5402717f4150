"""Summation of reflections over a robust planar background."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

BUCKET = 16
INTEGRATED = 1
OVERLOADED = 2
BAD_PIXEL = 4
OVERLAP = 8
BACKGROUND = 16
EDGE = 32


@njit(cache=True, nogil=True)
def bucket_reflections(panel: Ints, fast: Floats, slow: Floats, shape: tuple[int, int, int]) -> tuple[Ints, Ints]:
    """Return starts and rows of the reflections in each square of ``BUCKET`` pixels, in the order (panel, slow, fast)."""
    ny, nx = shape[1] // BUCKET + 1, shape[2] // BUCKET + 1
    start = np.zeros(shape[0] * ny * nx + 1, dtype=np.int32)
    n = panel.shape[0]
    cell = np.empty(n, dtype=np.int32)
    for i in range(n):
        y = min(ny - 1, max(0, int(slow[i]) // BUCKET))
        x = min(nx - 1, max(0, int(fast[i]) // BUCKET))
        cell[i] = (panel[i] * ny + y) * nx + x
        start[cell[i] + 1] += 1
    for c in range(start.shape[0] - 1):
        start[c + 1] += start[c]
    rows = np.empty(n, dtype=np.int32)
    fill = start.copy()
    for i in range(n):
        rows[fill[cell[i]]] = i
        fill[cell[i]] += 1
    return start, rows


@njit(cache=True, nogil=True)
def _neighbours(
    i: int,
    panel: Ints,
    fast: Floats,
    slow: Floats,
    start: Ints,
    rows: Ints,
    shape: Any,
    reach: float,
    region: Floats,
    found: Floats,
) -> tuple[int, float]:
    """Write the positions of other reflections within ``reach`` px.

    Returns how many, and the smallest squared distance in the metric of ``region``.
    """
    ny, nx = shape[1] // BUCKET + 1, shape[2] // BUCKET + 1
    steps = int(reach) // BUCKET + 1
    cy, cx = int(slow[i]) // BUCKET, int(fast[i]) // BUCKET
    count, nearest = 0, 1e18
    for y in range(max(0, cy - steps), min(ny, cy + steps + 1)):
        base = (panel[i] * ny + y) * nx
        first, last = max(0, cx - steps), min(nx - 1, cx + steps)
        for k in range(start[base + first], start[base + last + 1]):
            j = rows[k]
            dx, dy = fast[j] - fast[i], slow[j] - slow[i]
            if j != i and dx * dx + dy * dy < reach * reach:
                nearest = min(nearest, region[0] * dx * dx + 2.0 * region[1] * dx * dy + region[2] * dy * dy)
                if count < found.shape[0]:
                    found[count, 0], found[count, 1] = fast[j], slow[j]
                    count += 1
    return count, nearest


@njit(cache=True, nogil=True)
def fit_plane(
    x: Floats, y: Floats, v: Floats, used: NDArray[np.bool_], n: int, plane: Floats, inverse: Floats
) -> tuple[int, float]:
    """Fit ``v = p0 + p1 x + p2 y`` to the ``used`` of the first ``n`` points.

    Returns their number and the variance of the residuals; ``inverse`` becomes the inverse normal matrix (00 01 02 11 12 22).
    With points that do not span a plane the number returned is 0.
    """
    m = 0
    sx = sy = sxx = sxy = syy = sv = svx = svy = svv = 0.0
    for i in range(n):
        if used[i]:
            m += 1
            sx += x[i]
            sy += y[i]
            sxx += x[i] * x[i]
            sxy += x[i] * y[i]
            syy += y[i] * y[i]
            sv += v[i]
            svx += v[i] * x[i]
            svy += v[i] * y[i]
            svv += v[i] * v[i]
    i00 = sxx * syy - sxy * sxy
    i01 = sxy * sy - sx * syy
    i02 = sx * sxy - sxx * sy
    determinant = m * i00 + sx * i01 + sy * i02
    if m < 6 or determinant <= 1e-9 * m * sxx * syy:
        return 0, 0.0
    inverse[0], inverse[1], inverse[2] = i00 / determinant, i01 / determinant, i02 / determinant
    inverse[3] = (m * syy - sy * sy) / determinant
    inverse[4] = (sx * sy - m * sxy) / determinant
    inverse[5] = (m * sxx - sx * sx) / determinant
    plane[0] = inverse[0] * sv + inverse[1] * svx + inverse[2] * svy
    plane[1] = inverse[1] * sv + inverse[3] * svx + inverse[4] * svy
    plane[2] = inverse[2] * sv + inverse[4] * svx + inverse[5] * svy
    rest = svv - plane[0] * sv - plane[1] * svx - plane[2] * svy
    return m, max(0.0, rest / (m - 3))


@njit(cache=True, nogil=True)
def select_middle(values: Floats, n: int) -> float:
    """Return the upper median of the first ``n`` values, which are reordered (Hoare's selection)."""
    k, low, high = n // 2, 0, n - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            break
    return float(values[k])


@njit(cache=True, nogil=True)
def _cut_about_median(v: Floats, used: NDArray[np.bool_], n: int, clip: float, scratch: Floats) -> None:
    """Drop points far from the median, by the median absolute deviation; the half nearest to it always stays."""
    scratch[:n] = v[:n]
    middle = select_middle(scratch, n)
    for i in range(n):
        scratch[i] = abs(v[i] - middle)
    deviation = select_middle(scratch, n)
    reach = clip * np.sqrt(max((1.4826 * deviation) ** 2, middle) + 0.375) + 0.25 * clip * clip
    for i in range(n):
        used[i] = abs(v[i] - middle) <= max(reach, deviation)


@njit(cache=True, nogil=True)
def robust_plane(
    x: Floats,
    y: Floats,
    v: Floats,
    used: NDArray[np.bool_],
    n: int,
    clip: float,
    excess: float,
    plane: Floats,
    inverse: Floats,
    scratch: Floats,
) -> tuple[int, float]:
    """Fit a plane to the first ``n`` points without those beyond ``clip`` standard deviations; return their number and variance.

    Limits are set on the scale of the square root (Anscombe 1948), where counts have equal variances: the tail of a Poisson
    distribution of small mean is not cut, and the background not biased. If the scatter is more than counting and the detector's
    ``excess`` variance explain, the points are first cut about their median.
    """
    for i in range(n):
        used[i] = True
    m, variance = fit_plane(x, y, v, used, n, plane, inverse)
    if m > 0 and variance > 1.5 * (max(plane[0], 0.0) + excess) + 0.5:
        _cut_about_median(v, used, n, clip, scratch)
        m, variance = fit_plane(x, y, v, used, n, plane, inverse)
    for _ in range(4):
        if m == 0:
            return 0, 0.0
        level = max(variance, plane[0]) + 0.375
        lower = clip * np.sqrt(level)
        upper = lower + 0.25 * clip * clip
        changed = False
        for i in range(n):
            r = v[i] - plane[0] - plane[1] * x[i] - plane[2] * y[i]
            good = -lower <= r <= upper
            changed |= good != used[i]
            used[i] = good
        if not changed:
            break
        m, variance = fit_plane(x, y, v, used, n, plane, inverse)
    return m, variance


@njit(cache=True, nogil=True)
def _touch(pixels: Any, mask: NDArray[np.uint8], x0: int, x1: int, y0: int, y1: int) -> float:
    """Ask for all rows of a box at once: they then come from memory together, not one after the other. The sum is of no use."""
    touched = 0.0
    for iy in range(y0, y1 + 1):
        touched += pixels[iy, x0] + pixels[iy, x1] + mask[iy, x0] + mask[iy, x1]
    return touched


@njit(cache=True, nogil=True)
def _is_free(x: float, y: float, around: Floats, near: int, region: Floats, exclude2: float) -> bool:
    """Return whether a point is farther than √``exclude2``, in the region's metric, from the first ``near`` of ``around``."""
    for t in range(near):
        ex, ey = x - around[t, 0], y - around[t, 1]
        if region[0] * ex * ex + 2.0 * region[1] * ex * ey + region[2] * ey * ey < exclude2:
            return False
    return True


@njit(cache=True, nogil=True)
def _collect(
    pixels: Any,
    mask: NDArray[np.uint8],
    low: float,
    high: float,
    p: int,
    width: int,
    height: int,
    cx: float,
    cy: float,
    region: Floats,
    around: Floats,
    near: int,
    x: Floats,
    y: Floats,
    v: Floats,
    peak: Floats,
) -> tuple[int, int, bool]:
    """Gather the ring into x, y, v and the peak's sums (1, dx, dy, value, largest) into ``peak``.

    Returns the ring's number of pixels, flags, and whether part of the peak region is off the panel. Longer than the house's 60
    lines by its parameters.
    """
    fa, fb, fc, radius, inner, outer = region[0], region[1], region[2], region[3], region[4], region[5]
    peak2, inner2, outer2 = radius * radius, inner * inner, outer * outer
    exclude2 = (radius + 1.0) ** 2
    stretch_x, stretch_y = np.sqrt(fc / (fa * fc - fb * fb)), np.sqrt(fa / (fa * fc - fb * fb))
    x0, x1 = int(np.floor(cx - outer * stretch_x)), int(np.floor(cx + outer * stretch_x))
    y0, y1 = int(np.floor(cy - outer * stretch_y)), int(np.floor(cy + outer * stretch_y))
    flag, lost = 0, False
    if x0 < 0 or y0 < 0 or x1 >= width or y1 >= height:
        flag = EDGE
        reach_x, reach_y = radius * stretch_x - 0.5, radius * stretch_y - 0.5
        lost = cx < reach_x or cy < reach_y or cx > width - reach_x or cy > height - reach_y
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width - 1), min(y1, height - 1)
    peak[5] = _touch(pixels[p], mask[p], x0, x1, y0, y1)
    n = 0
    peak[0], peak[1], peak[2], peak[3], peak[4] = 0.0, 0.0, 0.0, 0.0, -1e30
    for iy in range(y0, y1 + 1):
        dy = iy + 0.5 - cy
        middle = cx - fb * dy / fa
        span = np.sqrt(max(0.0, (outer2 - dy * dy * (fc - fb * fb / fa)) / fa))
        for ix in range(max(x0, int(np.floor(middle - span))), min(x1, int(np.floor(middle + span))) + 1):
            dx = ix + 0.5 - cx
            d2 = fa * dx * dx + 2.0 * fb * dx * dy + fc * dy * dy
            if d2 > outer2 or (peak2 < d2 < inner2):
                continue
            value = float(pixels[p, iy, ix])
            good = mask[p, iy, ix] == 0 and value >= low
            if d2 <= peak2:
                if not good:
                    flag |= BAD_PIXEL
                elif value > high:
                    flag |= OVERLOADED
                peak[0] += 1.0
                peak[1] += dx
                peak[2] += dy
                peak[3] += value
                peak[4] = max(peak[4], value)
            elif good and value <= high and n < x.shape[0] and _is_free(ix + 0.5, iy + 0.5, around, near, region, exclude2):
                x[n], y[n], v[n] = dx, dy, value
                n += 1
    return n, flag, lost


@njit(cache=True, nogil=True)
def _finish(n: int, variance: float, peak: Floats, plane: Floats, inverse: Floats, area: float, out: Floats) -> None:
    """Write intensity, sigma, background and largest pixel of one reflection.

    A Gaussian of ``area`` 2π √|C| has 1 - exp(-m / area) of its photons in the m pixels about its middle where it is highest.
    """
    m, ax, ay = peak[0], peak[1], peak[2]
    spread = (
        m * m * inverse[0]
        + 2.0 * m * (ax * inverse[1] + ay * inverse[2])
        + ax * ax * inverse[3]
        + 2.0 * ax * ay * inverse[4]
        + ay * ay * inverse[5]
    )
    inside = 1.0 - np.exp(-m / area) if area > 0.0 else 1.0
    out[0] = (peak[3] - m * plane[0] - plane[1] * ax - plane[2] * ay) / inside
    out[1] = np.sqrt(max(out[0], 0.0) / inside + (variance + 1.0 / n) * (m + spread) / (inside * inside))
    out[2] = plane[0]
    out[3] = peak[4]


@njit(cache=True, nogil=True)
def integrate_still(
    pixels: Any,
    mask: NDArray[np.uint8],
    trusted: Floats,
    sizes: NDArray[np.int64],
    panel: Ints,
    fast: Floats,
    slow: Floats,
    regions: Floats,
    clip: float,
    min_background: int,
    out: Floats,
    flags: NDArray[np.uint16],
) -> None:
    """Sum the pixels of reflections above a plane through the ring about them.

    ``regions`` (n, 7) are those of `xfelproc.kernels.footprint.peak_regions`. A pixel belongs to the peak if its centre lies within
    the radius ``[3]`` of the predicted position in the metric ``[0] dx² + 2 [1] dx dy + [2] dy²``, to the ring between ``[4]`` and
    ``[5]``, unless it is within one pixel more than the radius of another prediction. The sum is divided by the share of a Gaussian
    of the area ``[6]`` (px²; 0: none) that the m pixels hold. The variance of the sum is ``max(I, 0) + m v + v aᵀN⁻¹a`` with v the
    variance of the ring's pixels (plus 1/n, what n pixels without a count leave open) and a the peak's sums of 1, dx, dy: the last
    term is the variance of the plane's sum, m² v / n for a level background.

    ``out`` (n, 5) receives intensity, sigma, background a pixel, largest pixel and pixels summed; ``flags`` are added to.
    Longer than the house's 60 lines by its parameters and scratch.
    """
    shape = pixels.shape
    start, rows = bucket_reflections(panel, fast, slow, shape)
    x, y, v, scratch = np.empty(4096), np.empty(4096), np.empty(4096), np.empty(4096)
    used = np.empty(4096, dtype=np.bool_)
    plane, inverse, peak = np.zeros(3), np.zeros(6), np.zeros(6)
    around, sampled = np.empty((64, 2)), np.empty(64)
    step = max(1, rows.shape[0] // 32)
    excess, samples = 0.0, 0
    for pass_ in range(2):  # first a sample of rings, for the variance that counting does not explain; then all
        for k in range(0, rows.shape[0], step if pass_ == 0 else 1):
            i = rows[k]
            p = panel[i]
            region = regions[i]
            fa, fb, fc, radius = region[0], region[1], region[2], region[3]
            reach = (region[5] + radius + 1.0) * np.sqrt(max(fa, fc) / (fa * fc - fb * fb))
            near, distance2 = _neighbours(i, panel, fast, slow, start, rows, shape, reach, region, around)
            n, flag, lost = _collect(
                pixels, mask, trusted[p, 0], trusted[p, 1], p, sizes[p, 0], sizes[p, 1], fast[i], slow[i], region,
                around, near, x, y, v, peak,
            )  # fmt: skip
            if pass_ == 0:
                if n >= min_background:
                    _, variance = robust_plane(x, y, v, used, n, clip, 0.0, plane, inverse, scratch)
                    sampled[samples] = variance - max(plane[0], 0.0)
                    samples += 1
                continue
            if distance2 < 4.0 * radius * radius:
                flag |= OVERLAP
            kept, variance = 0, 0.0
            if n >= min_background:
                kept, variance = robust_plane(x, y, v, used, n, clip, excess, plane, inverse, scratch)
            out[i, :] = 0.0
            out[i, 4] = peak[0]
            if kept < min_background:
                flag |= BACKGROUND
            elif peak[0] > 0.0:
                _finish(kept, variance, peak, plane, inverse, region[6], out[i])
                if not lost and flag & (BAD_PIXEL | OVERLOADED) == 0:
                    flag |= INTEGRATED
            flags[i] |= flag
        if samples > 0 and pass_ == 0:
            excess = max(0.0, select_middle(sampled, samples))

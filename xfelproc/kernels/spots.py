"""Spots from components of strong pixels: background from a ring, intensity, centroid, their variances."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

COLUMNS = (
    "panel", "fast", "slow", "var_fast", "var_slow", "intensity", "variance", "background", "sigma_background", "peak",
    "n_pixels", "fast0", "fast1", "slow0", "slow1", "d", "flags", "peak_distance", "n_ring", "n_summed",
)  # fmt: skip
"""What each column of `measure_components`'s output holds; units as in SpotTable."""

SATURATED, NEAR_MASK = 1, 4


@njit(cache=True, nogil=True)
def grow_components(
    pixels: NDArray[Any],
    mask: NDArray[np.uint8],
    limits: NDArray[Any],
    index: NDArray[np.int32],
    order: NDArray[np.int32],
    start: NDArray[np.int32],
    grow_below: int,
    state: NDArray[np.uint8],
    region: NDArray[np.int32],
    region_start: NDArray[np.int32],
    near_mask: NDArray[np.uint8],
) -> None:
    """List the usable pixels of each component, and those that touch it if it has fewer than ``grow_below``; the first claims one.

    The foot of a spot is below any threshold: without the pixels around, intensities would be too low, and the pixels of the rim
    would be chosen by their fluctuation, which the variances would not know of.

    ``state`` (flat, zeros) becomes 1 at strong and 2 at claimed pixels. Component c is
    ``region[region_start[c]:region_start[c + 1]]``, its strong pixels first.
    """
    _, height, width = pixels.shape
    for i in range(len(index)):
        state[index[i]] = 1
    n = 0
    for c in range(len(start) - 1):
        region_start[c] = n
        near_mask[c] = 0
        for i in range(start[c], start[c + 1]):
            here = index[order[i]]
            p = here // (width * height)
            y = (here // width) % height
            x = here % width
            v = pixels[p, y, x]
            if mask[p, y, x] == 0 and v >= limits[p, 0] and v <= limits[p, 2]:
                region[n] = here
                n += 1
            else:
                near_mask[c] = 1
        for i in range(start[c], start[c + 1]):
            here = index[order[i]]
            p = here // (width * height)
            y = (here // width) % height
            x = here % width
            for yy in range(y - 1, y + 2):
                for xx in range(x - 1, x + 2):
                    if yy < 0 or xx < 0 or yy >= height or xx >= width:
                        near_mask[c] = 1
                        continue
                    there = (p * height + yy) * width + xx
                    if state[there] != 0:
                        continue
                    v = pixels[p, yy, xx]
                    if mask[p, yy, xx] != 0 or not (v >= limits[p, 0] and v <= limits[p, 2]):
                        near_mask[c] = 1
                    elif start[c + 1] - start[c] < grow_below:
                        state[there] = 2
                        region[n] = there
                        n += 1
    region_start[len(start) - 1] = n


@njit(cache=True, nogil=True)
def clear_state(state: NDArray[np.uint8], index: NDArray[np.int32], region: NDArray[np.int32]) -> None:
    """Set back to 0 what `grow_components` wrote."""
    for i in range(len(index)):
        state[index[i]] = 0
    for i in range(len(region)):
        state[region[i]] = 0


@njit(cache=True, nogil=True)
def clipped_statistics(values: NDArray[np.float64], n: int) -> tuple[int, float, float]:
    """Return the number and mean of ``values[:n]`` clipped twice at 3.5 σ, and the mean square of all about that mean.

    The clip keeps the tails of unseen spots out of the background; the scatter keeps them, so that noise of heavy tails (hot
    pixels, fluorescence in integrating detectors) counts as what it is.
    """
    low, high = -np.inf, np.inf
    count, mean, variance = 0, 0.0, 0.0
    for _ in range(3):
        count = 0
        s = 0.0
        q = 0.0
        for i in range(n):
            v = values[i]
            if v >= low and v <= high:
                count += 1
                s += v
                q += v * v
        if count == 0:
            return 0, 0.0, 0.0
        mean = s / count
        variance = max(0.0, q / count - mean * mean) * count / max(1, count - 1)
        # at least one count: all but empty rings would clip their counts away
        reach = max(3.5 * np.sqrt(variance), 1.0)
        low, high = mean - reach, mean + reach
    square = 0.0
    for i in range(n):
        square += (values[i] - mean) ** 2
    return count, mean, square / max(1, n - 1)


@njit(cache=True, nogil=True)
def ring_background(
    pixels: NDArray[Any],
    mask: NDArray[np.uint8],
    limits: NDArray[Any],
    state: NDArray[np.uint8],
    p: int,
    x0: int,
    x1: int,
    y0: int,
    y1: int,
    values: NDArray[np.float64],
) -> tuple[int, float, float]:
    """Return number, mean and variance of the pixels of a rectangle (half open) that belong to no spot."""
    _, height, width = pixels.shape
    low, high = limits[p, 0], limits[p, 1]
    n = 0
    for y in range(max(0, y0), min(height, y1)):
        for x in range(max(0, x0), min(width, x1)):
            v = pixels[p, y, x]
            if state[(p * height + y) * width + x] == 0 and mask[p, y, x] == 0 and v >= low and v <= high:
                values[n] = v
                n += 1
    return clipped_statistics(values, n)


@njit(cache=True, nogil=True)
def sampling_variance(moment: float) -> float:
    """Return the variance (px²) that pixels add to the centroid of a spot of given second moment (px², of the pixel image).

    A Gaussian of standard deviation s sampled by unit pixels has a centroid bias of amplitude exp(-2 π² s²)/π (first harmonic of
    the sawtooth of a point spot), whose variance over positions is half its square; a point spot has 1/12.
    """
    s2 = max(0.0, moment - 1.0 / 12.0)
    return min(1.0 / 12.0, 0.5 * math.exp(-4.0 * np.pi * np.pi * s2) / (np.pi * np.pi))


@njit(cache=True, nogil=True)
def resolution_of(
    d_matrix: NDArray[np.float64],
    pixel_size: NDArray[np.float64],
    direction: NDArray[np.float64],
    wavelength: float,
    x: float,
    y: float,
) -> float:
    """Return d (Å) at pixel coordinates; ``direction`` is the unit vector of the beam's travel. Parallax is neglected."""
    fast = x * pixel_size[0]
    slow = y * pixel_size[1]
    dot = 0.0
    norm2 = 0.0
    for i in range(3):
        r = d_matrix[i, 0] * fast + d_matrix[i, 1] * slow + d_matrix[i, 2]
        dot += r * direction[i]
        norm2 += r * r
    return wavelength / (2.0 * math.sqrt(max(1e-20, 0.5 * (1.0 - dot / math.sqrt(norm2)))))


@njit(cache=True, nogil=True)
def measure_components(
    pixels: NDArray[Any],
    mask: NDArray[np.uint8],
    limits: NDArray[Any],
    state: NDArray[np.uint8],
    region: NDArray[np.int32],
    region_start: NDArray[np.int32],
    near_mask: NDArray[np.uint8],
    ring: int,
    d_matrices: NDArray[np.float64],
    pixel_sizes: NDArray[np.float64],
    direction: NDArray[np.float64],
    wavelength: float,
    out: NDArray[np.float64],
) -> None:
    """Measure each component over its region, with the mean of a ring ``ring`` pixels wide around its box as background.

    With b and σ² the mean and variance of the n' pixels of the ring, v the counts of the n pixels of the region and w = v - b:
    I = Σw; var I = I + n σ² (1 + n/n'); centroid Σwx / I with variance Σ(w + σ²)(x - x̄)² / I² + σ²/n' (Σ(x - x̄))² / I², plus
    1/12 px² over I for the position inside the pixel and `sampling_variance`. Counts are photons: their variance is their number;
    σ² is at least b.
    """
    _, height, width = pixels.shape
    reach = ring + 1
    largest = 1
    for c in range(len(region_start) - 1):
        box_of(region[region_start[c] : region_start[c + 1]], width, height, out[c])
        largest = max(largest, int((out[c, 12] - out[c, 11] + 2 * reach) * (out[c, 14] - out[c, 13] + 2 * reach)))
    values = np.empty(largest, dtype=np.float64)
    for c in range(len(region_start) - 1):
        members = region[region_start[c] : region_start[c + 1]]
        row = out[c]
        row[16] = NEAR_MASK if near_mask[c] else 0
        if len(members) == 0:
            row[18] = 0
            continue
        p = int(row[0])
        n_ring, background, variance = ring_background(
            pixels,
            mask,
            limits,
            state,
            p,
            int(row[11]) - reach,
            int(row[12]) + reach,
            int(row[13]) - reach,
            int(row[14]) + reach,
            values,
        )
        row[7] = background
        row[18] = n_ring
        if n_ring == 0:
            continue
        variance = max(variance, background, 0.0)
        row[8] = np.sqrt(variance)
        sum_region(pixels, limits, members, p, background, variance, n_ring, row)
        row[15] = resolution_of(d_matrices[p], pixel_sizes[p], direction, wavelength, row[1], row[2])


@njit(cache=True, nogil=True)
def box_of(members: NDArray[np.int32], width: int, height: int, row: NDArray[np.float64]) -> None:
    """Write panel and bounding box (half open) of pixels into a row of the output; an empty component gets an empty box."""
    row[:] = 0.0
    if len(members) == 0:
        return
    row[0] = members[0] // (width * height)
    row[11], row[12], row[13], row[14] = width, 0, height, 0
    for i in members:
        x = i % width
        y = (i // width) % height
        row[11] = min(row[11], x)
        row[12] = max(row[12], x + 1)
        row[13] = min(row[13], y)
        row[14] = max(row[14], y + 1)


@njit(cache=True, nogil=True)
def sum_region(
    pixels: NDArray[Any],
    limits: NDArray[Any],
    members: NDArray[np.int32],
    p: int,
    background: float,
    variance: float,
    n_ring: int,
    row: NDArray[np.float64],
) -> None:
    """Fill the sums over a region; see `measure_components`. Pixels that count are 2 σ and a tenth of the peak above background."""
    _, height, width = pixels.shape
    n = len(members)
    intensity, sx, sy = 0.0, 0.0, 0.0
    peak, peak_x, peak_y = -np.inf, 0.0, 0.0
    for i in members:
        x = i % width
        y = (i // width) % height
        v = float(pixels[p, y, x])
        if v > limits[p, 1]:
            row[16] = int(row[16]) | SATURATED
        if v > peak:
            peak, peak_x, peak_y = v, x + 0.5, y + 0.5
        w = v - background
        intensity += w
        sx += w * (x + 0.5)
        sy += w * (y + 0.5)
    row[5] = intensity
    row[6] = max(intensity, 0.0) + n * variance * (1.0 + n / n_ring)
    row[9] = peak
    level = background + max(2.0 * np.sqrt(variance), 0.1 * (peak - background))
    for i in members:
        row[10] += float(pixels[p, (i // width) % height, i % width]) > level
    row[19] = n
    if intensity <= 0.0:
        row[1], row[2] = peak_x, peak_y
        return
    cx = min(max(sx / intensity, row[11] + 0.5), row[12] - 0.5)
    cy = min(max(sy / intensity, row[13] + 0.5), row[14] - 0.5)
    row[1], row[2] = cx, cy
    row[17] = np.hypot(cx - peak_x, cy - peak_y)
    mx, my, vx, vy, lx, ly = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in members:
        x = i % width + 0.5 - cx
        y = (i // width) % height + 0.5 - cy
        w = float(pixels[p, (i // width) % height, i % width]) - background
        mx += w * x * x
        my += w * y * y
        noise = max(w, 0.0) + variance
        vx += noise * x * x
        vy += noise * y * y
        lx += x
        ly += y
    i2 = intensity * intensity
    level_variance = variance / n_ring
    row[3] = (vx + level_variance * lx * lx) / i2 + 1.0 / (12.0 * intensity) + sampling_variance(mx / intensity)
    row[4] = (vy + level_variance * ly * ly) / i2 + 1.0 / (12.0 * intensity) + sampling_variance(my / intensity)

"""Kernels of the simulator: pixels are asked which lattice node they are near, never nodes where they fall.

Each detector pixel is taken to its scattering vector; the node nearest to it is found; and the Gaussian transforms of the
crystal's blocks around that node, each block with an orientation, size and wavelength of its own, are summed at points of
the pixel.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_CHUNK = 32.0  # Poisson draws of a larger mean are sums of draws of at most this mean


@njit(cache=True, nogil=True)
def render_lattice(
    image: NDArray[np.float32],
    panels: NDArray[np.float64],
    sizes: NDArray[np.int64],
    reciprocal: NDArray[np.float64],
    real_space: NDArray[np.float64],
    blocks: NDArray[np.float64],
    wavelengths: NDArray[np.float64],
    widths: NDArray[np.float64],
    weights: NDArray[np.float64],
    table: NDArray[np.float32],
    wavelength: float,
    reach: NDArray[np.float64],
    oversample: int,
    polarization: float,
) -> None:
    """Add the photons that a crystal scatters into each pixel to ``image`` (panel, slow, fast).

    Longer than the house's 60 lines by what its parameters need to be told.

    Parameters
    ----------
    panels
        (panel, 3, 3): rows are the corner of the first pixel and the steps of one pixel along fast and slow, mm; the crystal
        is at 0 and the beam goes towards -z.
    sizes
        (panel, 2) pixels along fast and slow.
    reciprocal, real_space
        (3, 3) columns a*, b*, c* (1/Å) and rows a, b, c (Å) of the mean orientation, which tells the nearest node.
    blocks, wavelengths, widths, weights
        (m, 3, 3) columns a*, b*, c*; (m,) Å; (m,) standard deviation of the node in 1/Å; (m,) share of the photons.
    table
        Intensity of index (h, k, l) at [h + nh, k + nk, l + nl] for a table of shape (2 nh + 1, 2 nk + 1, 2 nl + 1).
    wavelength
        Mean wavelength, Å.
    reach
        (2,) a pixel farther than ``reach[0] + reach[1] |q|`` (1/Å) from its node gets nothing.
    oversample
        Points a pixel and direction.
    polarization
        Share of the beam whose electric field is along x; the rest is along y.
    """
    nh, nk, nl = table.shape[0] // 2, table.shape[1] // 2, table.shape[2] // 2
    m = len(wavelengths)
    nodes = np.empty((m, 3))
    for panel in range(len(panels)):
        corner, step_f, step_s = panels[panel, 0], panels[panel, 1], panels[panel, 2]
        area = np.linalg.norm(np.cross(step_f, step_s))
        normal = np.cross(step_f, step_s) / area
        for slow in range(sizes[panel, 1]):
            for fast in range(sizes[panel, 0]):
                x = corner[0] + (fast + 0.5) * step_f[0] + (slow + 0.5) * step_s[0]
                y = corner[1] + (fast + 0.5) * step_f[1] + (slow + 0.5) * step_s[1]
                z = corner[2] + (fast + 0.5) * step_f[2] + (slow + 0.5) * step_s[2]
                r = np.sqrt(x * x + y * y + z * z)
                qx, qy, qz = x / r / wavelength, y / r / wavelength, (z / r + 1.0) / wavelength
                fh = real_space[0, 0] * qx + real_space[0, 1] * qy + real_space[0, 2] * qz
                fk = real_space[1, 0] * qx + real_space[1, 1] * qy + real_space[1, 2] * qz
                fl = real_space[2, 0] * qx + real_space[2, 1] * qy + real_space[2, 2] * qz
                h, k, el = int(np.floor(fh + 0.5)), int(np.floor(fk + 0.5)), int(np.floor(fl + 0.5))
                if abs(h) > nh or abs(k) > nk or abs(el) > nl:
                    continue
                intensity = table[h + nh, k + nk, el + nl]
                if intensity <= 0.0:
                    continue
                dx = qx - (reciprocal[0, 0] * h + reciprocal[0, 1] * k + reciprocal[0, 2] * el)
                dy = qy - (reciprocal[1, 0] * h + reciprocal[1, 1] * k + reciprocal[1, 2] * el)
                dz = qz - (reciprocal[2, 0] * h + reciprocal[2, 1] * k + reciprocal[2, 2] * el)
                limit = reach[0] + reach[1] * np.sqrt(qx * qx + qy * qy + qz * qz)
                if dx * dx + dy * dy + dz * dz > limit * limit:
                    continue
                for i in range(m):
                    for j in range(3):
                        nodes[i, j] = blocks[i, j, 0] * h + blocks[i, j, 1] * k + blocks[i, j, 2] * el
                solid_angle = area * abs(normal[0] * x + normal[1] * y + normal[2] * z) / (r * r * r)
                polarized = polarization * (1 - (x / r) ** 2) + (1 - polarization) * (1 - (y / r) ** 2)
                total = _pixel_sum(corner, step_f, step_s, fast, slow, nodes, wavelengths, widths, weights, oversample)
                image[panel, slow, fast] += np.float32(intensity * polarized * solid_angle * total)


@njit(cache=True, nogil=True)
def _pixel_sum(
    corner: NDArray[np.float64],
    step_f: NDArray[np.float64],
    step_s: NDArray[np.float64],
    fast: int,
    slow: int,
    nodes: NDArray[np.float64],
    wavelengths: NDArray[np.float64],
    widths: NDArray[np.float64],
    weights: NDArray[np.float64],
    oversample: int,
) -> float:
    """Return the mean over the pixel of Σ weight exp(-|q - node|² / 2σ²) / (2π σ² λ²): photons a steradian and unit intensity."""
    total = 0.0
    for i in range(oversample):
        f = fast + (i + 0.5) / oversample
        for j in range(oversample):
            s = slow + (j + 0.5) / oversample
            x = corner[0] + f * step_f[0] + s * step_s[0]
            y = corner[1] + f * step_f[1] + s * step_s[1]
            z = corner[2] + f * step_f[2] + s * step_s[2]
            r = np.sqrt(x * x + y * y + z * z)
            ux, uy, uz = x / r, y / r, z / r + 1.0
            for n in range(len(wavelengths)):
                inverse = 1.0 / wavelengths[n]
                dx, dy, dz = ux * inverse - nodes[n, 0], uy * inverse - nodes[n, 1], uz * inverse - nodes[n, 2]
                exponent = 0.5 * (dx * dx + dy * dy + dz * dz) / (widths[n] * widths[n])
                if exponent < 12.0:
                    total += weights[n] * inverse * inverse * np.exp(-exponent) / (2.0 * np.pi * widths[n] * widths[n])
    return total / (oversample * oversample)


@njit(cache=True, nogil=True)
def blur(image: NDArray[np.float32], taps: NDArray[np.float32], scratch: NDArray[np.float32]) -> None:
    """Convolve every panel of ``image`` in place with a symmetric kernel; ``taps`` is its half, centre first.

    Photons that a panel's edge would lose are lost. ``scratch`` has the shape of one panel.
    """
    n = len(taps)
    n_slow, n_fast = image.shape[1], image.shape[2]
    for panel in range(len(image)):
        for slow in range(n_slow):
            for fast in range(n_fast):
                total = taps[0] * image[panel, slow, fast]
                for t in range(1, n):
                    if fast >= t:
                        total += taps[t] * image[panel, slow, fast - t]
                    if fast + t < n_fast:
                        total += taps[t] * image[panel, slow, fast + t]
                scratch[slow, fast] = total
        for slow in range(n_slow):
            for fast in range(n_fast):
                total = taps[0] * scratch[slow, fast]
                for t in range(1, n):
                    if slow >= t:
                        total += taps[t] * scratch[slow - t, fast]
                    if slow + t < n_slow:
                        total += taps[t] * scratch[slow + t, fast]
                image[panel, slow, fast] = total


@njit(cache=True, nogil=True)
def add_background(
    image: NDArray[np.float32],
    momentum: NDArray[np.float32],
    weight: NDArray[np.float32],
    profile: NDArray[np.float32],
    step: float,
    wavelength: float,
) -> None:
    """Add a background that depends on |q|: ``profile[i]`` is its value at ``i * step`` 1/Å, linear in between.

    ``momentum`` is |u - b| of each pixel's unit ray u and the beam b (q times the wavelength), ``weight`` what polarisation and
    solid angle leave of it. Shapes are those of ``image``; pixels beyond the profile get its last value.
    """
    flat, q, w = image.ravel(), momentum.ravel(), weight.ravel()
    inverse = 1.0 / (step * wavelength)
    last = len(profile) - 1
    for i in range(len(flat)):
        position = q[i] * inverse
        cell = min(int(position), last - 1)
        part = min(position - cell, 1.0)
        flat[i] += w[i] * (profile[cell] * (1.0 - part) + profile[cell + 1] * part)


@njit(cache=True, nogil=True)
def _uniform(state: NDArray[np.uint64]) -> float:
    """Return a number of (0, 1] and advance the splitmix64 generator (Steele, Lea & Flood 2014) held in ``state[0]``."""
    state[0] += _GOLDEN
    v = state[0]
    v = (v ^ (v >> np.uint64(30))) * _MIX1
    v = (v ^ (v >> np.uint64(27))) * _MIX2
    v = v ^ (v >> np.uint64(31))
    return (float(v >> np.uint64(11)) + 1.0) * (1.0 / 9007199254740992.0)


@njit(cache=True, nogil=True)
def count_photons(mean: NDArray[np.float32], state: NDArray[np.uint64], largest: int, out: NDArray[np.uint16]) -> None:
    """Draw Poisson counts of the given means by inversion; larger ones than ``largest`` are cut to it (saturation)."""
    means, counts = mean.ravel(), out.ravel()
    previous, first = -1.0, 1.0
    for i in range(len(means)):
        left = float(means[i])
        total = 0
        while left > 0.0:
            part = min(left, _CHUNK)
            left -= part
            if part != previous:
                previous, first = part, np.exp(-part)
            probability = first
            u = _uniform(state)
            k = 0
            while u > probability and k < 200:
                u -= probability
                k += 1
                probability *= part / k
            total += k
        counts[i] = min(total, largest)


@njit(cache=True, nogil=True)
def count_maxima(image: NDArray[np.float32], threshold: float) -> int:
    """Return how many pixels of a noise-free ``image`` (panel, slow, fast) exceed ``threshold`` and all eight neighbours."""
    n = 0
    for panel in range(image.shape[0]):
        for slow in range(1, image.shape[1] - 1):
            for fast in range(1, image.shape[2] - 1):
                value = image[panel, slow, fast]
                if value < threshold:
                    continue
                highest = True
                for i in range(-1, 2):
                    for j in range(-1, 2):
                        if (i != 0 or j != 0) and image[panel, slow + i, fast + j] >= value:
                            highest = False
                if highest:
                    n += 1
    return n

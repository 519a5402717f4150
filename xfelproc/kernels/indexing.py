"""Small kernels of indexing: scattering vectors of spots and the chance of inliers."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.small_matrices import invert3

Doubles = NDArray[np.float64]


@njit(cache=True, nogil=True)
def spots_to_q(
    panel: NDArray[np.int32],
    fast: Doubles,
    slow: Doubles,
    d_matrices: Doubles,
    pixel_sizes: Doubles,
    sensors: Doubles,
    s0: Doubles,
) -> Doubles:
    """Return q (n, 3) in 1/Å of pixel positions, parallax removed: `geometry.detector.pixel_to_q` in one loop.

    ``d_matrices`` (panel, 3, 3) have the columns fast axis, slow axis, origin; ``sensors`` (panel, 2) μ and thickness.
    """
    n = panel.shape[0]
    q = np.empty((n, 3))
    k = math.sqrt(s0[0] * s0[0] + s0[1] * s0[1] + s0[2] * s0[2])
    lab = np.empty(3)
    for i in range(n):
        d = d_matrices[panel[i]]
        mu, thickness = sensors[panel[i], 0], sensors[panel[i], 1]
        x0, y0 = fast[i] * pixel_sizes[panel[i], 0], slow[i] * pixel_sizes[panel[i], 1]
        x, y = x0, y0
        for _ in range(5 if mu > 0.0 and thickness > 0.0 else 1):
            for j in range(3):
                lab[j] = d[j, 0] * x + d[j, 1] * y + d[j, 2]
            norm = math.sqrt(lab[0] * lab[0] + lab[1] * lab[1] + lab[2] * lab[2])
            if not (mu > 0.0 and thickness > 0.0):
                break
            on_fast = (d[0, 0] * lab[0] + d[1, 0] * lab[1] + d[2, 0] * lab[2]) / norm
            on_slow = (d[0, 1] * lab[0] + d[1, 1] * lab[1] + d[2, 1] * lab[2]) / norm
            cosine = math.sqrt(max(1e-12, 1.0 - on_fast * on_fast - on_slow * on_slow))
            depth = thickness / cosine
            path = 1.0 / mu - (depth + 1.0 / mu) * math.exp(-mu * depth)
            x, y = x0 - on_fast * path, y0 - on_slow * path
        for j in range(3):
            q[i, j] = lab[j] / norm * k - s0[j]
    return q


@njit(cache=True, nogil=True)
def log10_poisson_tail(count: int, mean: float) -> float:
    """Return log10 of the chance of ``count`` or more events under a Poisson law."""
    if count <= 0:
        return 0.0
    if mean <= 0.0:
        return -400.0 * count
    if count <= mean:
        below = 0.0
        term = math.exp(-mean)
        for j in range(count):
            below += term
            term *= mean / (j + 1)
        return math.log10(max(1e-300, 1.0 - below))
    first = -mean + count * math.log(mean) - math.lgamma(count + 1.0)
    total, ratio = 1.0, 1.0
    for j in range(count + 1, count + 200):
        ratio *= mean / j
        total += ratio
        if ratio < 1e-12 * total:
            break
    return (first + math.log(total)) / math.log(10.0)


@njit(cache=True, nogil=True)
def spots_off_lattice(basis: Doubles, q: Doubles, s0: Doubles) -> tuple[NDArray[np.int32], Doubles, Doubles, Doubles]:
    """Return for each spot the nearest indices (n, 3), the largest |Δhkl|, and Δq along and across the diffracted ray (1/Å).

    Along the ray the excitation error shows, across it the error of the position.
    """
    inverse = np.empty((3, 3))
    invert3(basis, inverse)
    n = q.shape[0]
    hkl = np.empty((n, 3), dtype=np.int32)
    fraction, radial, tangential = np.zeros(n), np.empty(n), np.empty(n)
    h, d = np.empty(3), np.empty(3)
    for i in range(n):
        for k in range(3):
            x = basis[k, 0] * q[i, 0] + basis[k, 1] * q[i, 1] + basis[k, 2] * q[i, 2]
            h[k] = np.rint(x)
            hkl[i, k] = int(h[k])
            fraction[i] = max(fraction[i], abs(x - h[k]))
        d2, along, ray2 = 0.0, 0.0, 0.0
        for k in range(3):
            d[k] = q[i, k] - (inverse[k, 0] * h[0] + inverse[k, 1] * h[1] + inverse[k, 2] * h[2])
            ray = q[i, k] + s0[k]
            d2 += d[k] * d[k]
            along += d[k] * ray
            ray2 += ray * ray
        radial[i] = abs(along) / math.sqrt(ray2)
        tangential[i] = math.sqrt(max(0.0, d2 - radial[i] * radial[i]))
    return hkl, fraction, radial, tangential


@njit(cache=True, nogil=True)
def count_inliers(fraction: Doubles, radial: Doubles, tangential: Doubles, limit: float, tolerances: Doubles) -> NDArray[np.int64]:
    """Return the number of spots (m, m) within ellipsoids of each tolerance along and across the ray, |Δhkl| at most ``limit``."""
    m = tolerances.shape[0]
    counts = np.zeros((m, m), dtype=np.int64)
    for i in range(fraction.shape[0]):
        if fraction[i] > limit:
            continue
        for j in range(m):
            along = (radial[i] / tolerances[j]) ** 2
            for k in range(m):
                if along + (tangential[i] / tolerances[k]) ** 2 < 1.0:
                    counts[j, k] += 1
    return counts

"""Kernels of simulated observations: which reflections a still predicts, and what is measured of them.

They share nothing with the kernels of prediction, scaling and merging, so that both can be wrong only separately.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

LORENTZIAN_REACH = 1.1774100225154747
"""√(2 ln 2): half the width at half height of a Gaussian of width 1, given to the Lorentzian as well."""


@njit(cache=True, nogil=True)
def _roots(a: float, b: float, c: float) -> tuple[float, float]:
    """Return the roots of a l² + 2 b l + c, a > 0, the smaller first; (1, -1) where there are none."""
    root = b * b - a * c
    if root < 0.0:
        return 1.0, -1.0
    root = math.sqrt(root)
    return (-b - root) / a, (-b + root) / a


@njit(cache=True, nogil=True)
def predict_still(A: Floats, wavelength: float, limits: Floats, width: Floats, reach: Ints, known: Ints, out: Ints) -> int:
    """Write the indices of the reflections near the Ewald sphere of radius 1/λ about -s0 = (0, 0, 1/λ); return their number.

    Parameters
    ----------
    A
        (3, 3) columns a*, b*, c* in 1/Å; the beam travels to -z.
    wavelength
        Å.
    limits
        Smallest and largest length of the reciprocal-space vectors, 1/Å.
    width
        Excitation errors up to √(w0² + w1² q² + w2² q⁴) are predicted.
    reach
        Largest |h|, |k|, |l| in ``known``.
    known
        Number of the unique reflection at [h + reach, ...], -1: none.
    out
        (capacity, 3). What does not fit is left out; the number returned counts it.
    """
    n = 0
    radius = 1.0 / wavelength
    aa = A[0, 2] ** 2 + A[1, 2] ** 2 + A[2, 2] ** 2
    widest = math.sqrt(width[0] ** 2 + (width[1] * limits[1]) ** 2 + (width[2] * limits[1] ** 2) ** 2)
    for h in range(-reach[0], reach[0] + 1):
        for k in range(-reach[1], reach[1] + 1):
            x, y, z = A[0, 0] * h + A[0, 1] * k, A[1, 0] * h + A[1, 1] * k, A[2, 0] * h + A[2, 1] * k
            b = x * A[0, 2] + y * A[1, 2] + z * A[2, 2]
            low, high = _roots(aa, b, x * x + y * y + z * z - limits[1] ** 2)
            if low > high:
                continue
            # |s0 + q|² with s0 = (0, 0, -1/λ) between the squares of the two spheres
            b -= radius * A[2, 2]
            c = x * x + y * y + (z - radius) ** 2
            outer0, outer1 = _roots(aa, b, c - (radius + widest) ** 2)
            low, high = max(low, outer0), min(high, outer1)
            if outer0 > outer1 or low > high:
                continue
            inner0, inner1 = _roots(aa, b, c - (radius - widest) ** 2)
            first, last = max(math.ceil(low), -reach[2]), min(math.floor(high), reach[2])
            i = first
            while i <= last:
                if inner0 < i < inner1:
                    i = max(i + 1, math.ceil(inner1))
                    continue
                if known[h + reach[0], k + reach[1], i + reach[2]] >= 0:
                    u, v, w = x + i * A[0, 2], y + i * A[1, 2], z + i * A[2, 2]
                    q2 = u * u + v * v + w * w
                    error = math.sqrt(u * u + v * v + (w - radius) ** 2) - radius
                    reached = width[0] ** 2 + width[1] ** 2 * q2 + (width[2] * q2) ** 2
                    if q2 >= limits[0] ** 2 and error * error <= reached:
                        if n < out.shape[0]:
                            out[n, 0], out[n, 1], out[n, 2] = h, k, i
                        n += 1
                i += 1
    return n


@njit(cache=True, nogil=True)
def excitation_errors(A: Floats, wavelength: float, hkl: Ints, excitation: Floats, q: Floats) -> None:
    """Write excitation errors |s0 + A h| - 1/λ (n,) in 1/Å and vectors q = A h (n, 3)."""
    radius = 1.0 / wavelength
    for i in range(hkl.shape[0]):
        for axis in range(3):
            q[i, axis] = A[axis, 0] * hkl[i, 0] + A[axis, 1] * hkl[i, 1] + A[axis, 2] * hkl[i, 2]
        excitation[i] = math.sqrt(q[i, 0] ** 2 + q[i, 1] ** 2 + (q[i, 2] - radius) ** 2) - radius


@njit(cache=True, nogil=True)
def observe_still(
    rng: np.random.Generator,
    excitation: Floats,
    q2: Floats,
    full: Floats,
    polarization: Floats,
    crystal: Floats,
    noise: Floats,
    out: Floats,
) -> None:
    """Measure reflections: counts of photons less the background's, with all errors.

    Parameters
    ----------
    rng
        Of this crystal alone.
    excitation, q2
        True ones, 1/Å and 1/Å².
    full
        Intensity of a reflection that is not partial in a crystal of scale 1.
    polarization
        Factor on the photons.
    crystal
        Scale, B (Å²), width (1/Å), mosaicity (rad), growth of the width with q² (Å), Lorentzian share, 1 where a wider profile
        is lower (its area is kept) or 0 where its peak stays 1.
    noise
        Photons of background under a reflection, relative error of an intensity, error of the partiality, share of
        observations that are outliers, size of an outlier in units of the lattice's mean full intensity.
    out
        (n, 4): observed, expected without any error, true partiality, 1 if an outlier was added.
    """
    scale, b, w0, w1, w2, lorentzian, area = crystal
    background, relative, partial, outliers, size = noise
    mean = 0.0
    for i in range(full.shape[0]):
        mean += scale * full[i] / full.shape[0]
    for i in range(full.shape[0]):
        w = w0 * w0 + w1 * w1 * q2[i] + (w2 * q2[i]) ** 2
        x = excitation[i] * excitation[i] / w
        p = (1.0 - lorentzian) * math.exp(-0.5 * x) + lorentzian / (1.0 + x / LORENTZIAN_REACH**2)
        if area > 0.0:
            p *= w0 / math.sqrt(w)
        whole = scale * math.exp(-0.5 * b * q2[i]) * full[i] * polarization[i]
        expected = whole * p
        wrong = expected * (1.0 + relative * rng.normal()) + partial * whole * rng.normal()
        added = rng.random() < outliers
        if added:
            wrong += size * mean * rng.exponential()
        out[i, 0] = rng.poisson(max(wrong, 0.0) + background) - background + min(wrong, 0.0)
        out[i, 1], out[i, 2], out[i, 3] = expected, p, 1.0 if added else 0.0

"""How broad the spots of a lattice are on the detector: a model of four variances, fitted to its strong spots.

The covariance of a spot's pixels is ``θ₀ 1 + Σ θₖ Bₖ``: the point spread (and what predictions miss by), the size of the blocks,
their turns, and the spectrum. With t the direction across the plane of beam and ray, e the one in that plane, taken to the panel:
blocks of size D spread the ray by λ/D along both, turns by η spread the point q by |q| η along t and sinθ times that along e on
the sphere, a relative change of the wavelength moves the ray by 2 tanθ times itself along e.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.geometry import pixel_to_ray

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

PARAMETERS = 4
ROUNDS = 4
LARGEST_BOX = 12  # px, half of the largest window
_FRAME = 8  # px, half of the square whose rim, two pixels wide, tells the background
_REACH = 12.0  # the window (1 - u/12)⁸ ends at u = d²/2 = 12, 4.9 standard deviations
_NARROWING = 0.5748  # ∫ u w e⁻ᵘ du / ∫ w e⁻ᵘ du: variance of a Gaussian of the model's size seen through the window, over its own
_GAIN = 3.168  # by how much more than what is seen the variance of a spot differs from the model's
_SCATTER = 0.04  # relative variance of spots' shapes about the model
_SMALLEST = 0.08  # px², the variance of a pixel


@njit(cache=True, nogil=True)
def variance_bases(g: Floats, beam: Floats, fast: float, slow: float, bases: Floats) -> None:
    """Write the matrices Bₖ (4, 3: xx, xy, yy; px²) of a spot on packed panel ``g``; ``beam`` is the unit vector of its travel."""
    ux, uy, uz = pixel_to_ray(g, fast, slow)
    cosine = min(1.0, max(-1.0, ux * beam[0] + uy * beam[1] + uz * beam[2]))
    tx, ty, tz = beam[1] * uz - beam[2] * uy, beam[2] * ux - beam[0] * uz, beam[0] * uy - beam[1] * ux
    norm = np.sqrt(tx * tx + ty * ty + tz * tz)
    if norm < 1e-9:  # at the beam: any direction across it
        tx, ty, tz = g[0], g[1], g[2]
        norm = 1.0
    tx, ty, tz = tx / norm, ty / norm, tz / norm
    ex, ey, ez = ty * uz - tz * uy, tz * ux - tx * uz, tx * uy - ty * ux
    along = g[6] * ux + g[7] * uy + g[8] * uz
    scale = g[12] / along
    slope_t = (g[6] * tx + g[7] * ty + g[8] * tz) / along
    slope_e = (g[6] * ex + g[7] * ey + g[8] * ez) / along
    uf, us = g[0] * ux + g[1] * uy + g[2] * uz, g[3] * ux + g[4] * uy + g[5] * uz
    tf = scale * (g[0] * tx + g[1] * ty + g[2] * tz - slope_t * uf) / g[13]
    ts = scale * (g[3] * tx + g[4] * ty + g[5] * tz - slope_t * us) / g[14]
    ef = scale * (g[0] * ex + g[1] * ey + g[2] * ez - slope_e * uf) / g[13]
    es = scale * (g[3] * ex + g[4] * ey + g[5] * ez - slope_e * us) / g[14]
    sine2 = 0.5 * (1.0 - cosine)  # sin²θ
    turn, band = 4.0 * sine2, 4.0 * sine2 / max(1.0 - sine2, 1e-6)
    bases[0, 0], bases[0, 1], bases[0, 2] = 1.0, 0.0, 1.0
    for k, (t0, t1, e0, e1) in enumerate(((tf, tf, ef, ef), (tf, ts, ef, es), (ts, ts, es, es))):
        across, inside = t0 * t1, e0 * e1
        bases[1, k] = across + inside
        bases[2, k] = turn * (across + sine2 * inside)
        bases[3, k] = band * inside


@njit(cache=True, nogil=True)
def spot_covariance(theta: Floats, bases: Floats) -> tuple[float, float, float]:
    """Return xx, xy and yy (px²) of a spot."""
    xx = xy = yy = 0.0
    for k in range(PARAMETERS):
        xx += theta[k] * bases[k, 0]
        xy += theta[k] * bases[k, 1]
        yy += theta[k] * bases[k, 2]
    return max(xx, _SMALLEST), xy, max(yy, _SMALLEST)


@njit(cache=True, nogil=True)
def _level_around(pixels: Any, bad: NDArray[np.uint8], low: float, high: float, place: Floats) -> float:
    """Return the mean of the measurements on a square frame about ``place``, without those far above it; NaN without any.

    ``pixels`` and ``bad`` are those of the spot's panel, ``pixels`` cut to its size.
    """
    cx, cy = int(np.floor(place[0])), int(np.floor(place[1]))
    limit, mean = high, np.nan
    for _ in range(3):
        total, n = 0.0, 0
        for dy in range(-_FRAME, _FRAME + 1):
            iy = cy + dy
            if iy < 0 or iy >= pixels.shape[0]:
                continue
            for step in range(2 * _FRAME + 1 if abs(dy) >= _FRAME - 1 else 4):
                dx = step - _FRAME if abs(dy) >= _FRAME - 1 or step < 2 else step + _FRAME - 3
                ix = cx + dx
                if ix < 0 or ix >= pixels.shape[1]:
                    continue
                value = float(pixels[iy, ix])
                if bad[iy, ix] == 0 and low <= value <= limit:
                    total += value
                    n += 1
        if n == 0:
            return mean
        mean = total / n
        limit = min(high, mean + 4.0 * np.sqrt(max(mean, 0.0) + 0.375) + 4.0)
    return mean


@njit(cache=True, nogil=True)
def _windowed_moments(
    pixels: Any, bad: NDArray[np.uint8], low: float, high: float, background: float, place: Floats, shape: Floats, seen: Floats
) -> bool:
    """Write the second moments (xx, xy, yy) of a spot about ``place`` through the window of covariance ``shape``.

    ``pixels`` and ``bad`` are those of the spot's panel, cut to its size. False if the window leaves the panel, meets a pixel that
    is no measurement, or holds nothing.
    """
    xx, xy, yy = shape[0], shape[1], shape[2]
    determinant = xx * yy - xy * xy
    if determinant <= 0.0:
        return False
    fa, fb, fc = 0.5 * yy / determinant, -0.5 * xy / determinant, 0.5 * xx / determinant
    reach_x = min(np.sqrt(2.0 * _REACH * xx), LARGEST_BOX)
    reach_y = min(np.sqrt(2.0 * _REACH * yy), LARGEST_BOX)
    x0, x1 = int(np.floor(place[0] - reach_x)), int(np.floor(place[0] + reach_x))
    y0, y1 = int(np.floor(place[1] - reach_y)), int(np.floor(place[1] + reach_y))
    if x0 < 0 or y0 < 0 or x1 >= pixels.shape[1] or y1 >= pixels.shape[0]:
        return False
    total = mxx = mxy = myy = 0.0
    for iy in range(y0, y1 + 1):
        dy = iy + 0.5 - place[1]
        for ix in range(x0, x1 + 1):
            dx = ix + 0.5 - place[0]
            u = fa * dx * dx + 2.0 * fb * dx * dy + fc * dy * dy
            if u >= _REACH:
                continue
            value = float(pixels[iy, ix])
            if bad[iy, ix] != 0 or not low <= value <= high:
                return False
            w = 1.0 - u / _REACH
            w *= w
            w *= w
            w *= w * (value - background)
            total += w
            mxx += w * dx * dx
            mxy += w * dx * dy
            myy += w * dy * dy
    if not total > 0.0:  # NaN, too
        return False
    seen[0], seen[1], seen[2] = mxx / total, mxy / total, myy / total
    return True


@njit(cache=True, nogil=True)
def _least_squares(normal: Floats, right: Floats, theta: Floats) -> None:
    """Bring ``theta`` to the minimum of ½ θᵀ N θ - rᵀ θ over θ ≥ 0, by coordinate descent."""
    for _ in range(200):
        largest = 0.0
        for k in range(PARAMETERS):
            rest = right[k]
            for m in range(PARAMETERS):
                rest -= normal[k, m] * theta[m]
            value = max(0.0, theta[k] + rest / normal[k, k])
            largest = max(largest, (value - theta[k]) ** 2 * normal[k, k])
            theta[k] = value
        if largest < 1e-8:
            return


@njit(cache=True, nogil=True)
def fit_footprint(
    pixels: Any,
    mask: NDArray[np.uint8],
    trusted: Floats,
    sizes: NDArray[np.int64],
    geometry: Floats,
    beam: Floats,
    panel: Ints,
    places: Floats,
    snr: Floats,
    prior: Floats,
    deviation: Floats,
) -> tuple[Floats, int]:
    """Return the variances θ (4) of a lattice's spots, and how many spots told.

    Parameters
    ----------
    pixels, mask
        (panel, slow, fast) photons, and nonzero where a pixel is no measurement.
    trusted
        (panel, 2) lowest and highest value of a measurement.
    sizes
        (panel, 2) pixels along fast and slow.
    geometry, beam
        Packed panels and the unit vector of the beam's travel.
    panel, places
        Of the spots: panel, and (n, 2) the predicted position, fast and slow, px.
    snr
        Intensity of each spot over its σ.
    prior, deviation
        (4,) θ expected, and how far they may be off.

    Notes
    -----
    Moments are taken through a window of the shape that the model has (adaptive moments, Bernstein & Jarvis 2002), about the
    predicted position, so that what predictions miss by belongs to the spread. What a spot is broader than the model says follows
    from how much broader it is seen; four rounds suffice.
    """
    theta, step = prior.copy(), np.empty(PARAMETERS)
    bases, seen, shape = np.empty((panel.shape[0], PARAMETERS, 3)), np.empty(3), np.empty(3)
    background = np.empty(panel.shape[0])
    for i in range(panel.shape[0]):
        p = panel[i]
        variance_bases(geometry[p], beam, places[i, 0], places[i, 1], bases[i])
        background[i] = _level_around(pixels[p, : sizes[p, 1], : sizes[p, 0]], mask[p], trusted[p, 0], trusted[p, 1], places[i])
    used = 0
    for _ in range(ROUNDS):
        normal, right = np.zeros((PARAMETERS, PARAMETERS)), np.zeros(PARAMETERS)
        for k in range(PARAMETERS):
            normal[k, k] = 1.0 / deviation[k] ** 2
            right[k] = prior[k] / deviation[k] ** 2
        used = 0
        for i in range(panel.shape[0]):
            p = panel[i]
            shape[0], shape[1], shape[2] = spot_covariance(theta, bases[i])
            if not _windowed_moments(
                pixels[p, : sizes[p, 1], : sizes[p, 0]],
                mask[p],
                trusted[p, 0],
                trusted[p, 1],
                background[i],
                places[i],
                shape,
                seen,
            ):
                continue
            used += 1
            half = 0.5 * (shape[0] + shape[2])
            excess = 0.5 * (seen[0] + seen[2]) / (_NARROWING * half) - 1.0
            weight = 1.0 / (half * half * (_SCATTER + 9.0 / snr[i] ** 2) * (1.0 + 16.0 * excess * excess))
            for r in range(3):
                wanted = shape[r] + _GAIN * (seen[r] - _NARROWING * shape[r])
                share = weight if r != 1 else 2.0 * weight
                for k in range(PARAMETERS):
                    right[k] += share * bases[i, k, r] * wanted
                    for m in range(PARAMETERS):
                        normal[k, m] += share * bases[i, k, r] * bases[i, m, r]
        for k in range(PARAMETERS):
            step[k] = theta[k] / deviation[k]
            right[k] *= deviation[k]
            for m in range(PARAMETERS):
                normal[k, m] *= deviation[k] * deviation[m]
        _least_squares(normal, right, step)
        theta[:] = step * deviation
    return theta, used


@njit(cache=True, nogil=True)
def peak_regions(
    geometry: Floats,
    beam: Floats,
    panel: Ints,
    fast: Floats,
    slow: Floats,
    theta: Floats,
    widths: float,
    radii: Floats,
    out: Floats,
) -> None:
    """Write the peak region and background ring (n, 7) of reflections whose spots have the variances ``theta``.

    A region is the ellipse of ``widths`` standard deviations, each semi-axis at least ``radii[0]`` and at most ``radii[3]``. The
    columns are its metric of determinant 1 (fa, fb, fc), its radius in that metric, the radii of the ring, and the area of the
    Gaussian, 2π √|C| px². The ring is as far outside of the region and has the area that ``radii`` (peak, inner, outer) give a
    round one.
    """
    bases = np.empty((PARAMETERS, 3))
    smallest, largest = (radii[0] / widths) ** 2, (radii[3] / widths) ** 2
    gap, ring = radii[1] - radii[0], radii[2] ** 2 - radii[1] ** 2
    for i in range(panel.shape[0]):
        variance_bases(geometry[panel[i]], beam, fast[i], slow[i], bases)
        xx, xy, yy = spot_covariance(theta, bases)
        mean, half = 0.5 * (xx + yy), 0.5 * (xx - yy)
        apart = np.sqrt(half * half + xy * xy)
        big, small = min(max(mean + apart, smallest), largest), min(max(mean - apart, smallest), largest)
        cosine, sine = (half / apart, xy / apart) if apart > 1e-12 else (1.0, 0.0)  # of twice the angle of the long axis
        root = np.sqrt(big * small)
        middle, lean = 0.5 * (big + small) / root, 0.5 * (big - small) / root
        out[i, 0], out[i, 1], out[i, 2] = middle - lean * cosine, -lean * sine, middle + lean * cosine
        radius = widths * np.sqrt(root)
        out[i, 3], out[i, 4] = radius, radius + gap
        out[i, 5] = np.sqrt(out[i, 4] ** 2 + ring)
        out[i, 6] = 2.0 * np.pi * np.sqrt(max(xx * yy - xy * xy, 1e-12))

"""Amplitudes from intensities: the posterior mean under Wilson's distribution (French & Wilson 1978, Acta Cryst. A34, 517).

The intensity J of a reflection is not negative and follows Wilson's distribution about its mean Σ; I was measured with a Gaussian
error σ. In units x = F/√σ the posterior is x exp(-(x² - h)²/2) with h = I/σ - σ/Σ (acentric), and exp(-(x² - h)²/2) with
h = I/σ - σ/(2Σ) (centric). Moments are taken by Gauss-Legendre quadrature over the interval outside of which the integrand is below
e⁻⁴⁰ of its largest value; for large h over J, where nothing is singular any more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MIN_SIGNIFICANCE = -4.0
"""I/σ below which a measurement cannot be believed and gets no amplitude."""
N_NODES = 64
TAIL = 9.0
"""Standard deviations of J at which the Gaussian of the measurement is e⁻⁴⁰."""
SMALL = 30.0
"""h up to which the integration is over F; above it J stays far from 0."""
CHUNK = 1 << 14
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(N_NODES)


@dataclass(frozen=True)
class Posterior:
    """Posterior means and standard deviations of amplitude and intensity, all (n,); NaN where there is none."""

    amplitude: Floats
    amplitude_sigma: Floats
    intensity: Floats
    intensity_sigma: Floats


def french_wilson(
    intensity: Floats, sigma: Floats, mean: Floats, centric: Bools, min_significance: float = MIN_SIGNIFICANCE
) -> Posterior:
    """Return amplitudes of merged intensities.

    Parameters
    ----------
    intensity, sigma
        (n,) merged intensities and their standard deviations; NaN or sigma ≤ 0: no measurement.
    mean
        (n,) mean Σ of Wilson's distribution at each reflection, ε included, in the same units.
    centric
        (n,) centric reflections.
    min_significance
        I/σ below which a measurement gets no amplitude.

    Returns
    -------
    Posterior
        NaN where there is no measurement, one below ``min_significance``, or no positive mean.
    """
    result = np.full((4, len(intensity)), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        usable = np.isfinite(intensity) & np.isfinite(sigma) & (sigma > 0) & (mean > 0) & (intensity / sigma >= min_significance)
    rows = np.flatnonzero(usable)
    for first in range(0, len(rows), CHUNK):
        some = rows[first : first + CHUNK]
        scale = sigma[some]
        h = intensity[some] / scale - scale / (np.where(centric[some], 2.0, 1.0) * mean[some])
        x, x_sigma, j, j_sigma = unit_moments(h, centric[some])
        result[:, some] = np.sqrt(scale) * x, np.sqrt(scale) * x_sigma, scale * j, scale * j_sigma
    return Posterior(*result)


def unit_moments(h: Floats, centric: Bools) -> tuple[Floats, Floats, Floats, Floats]:
    """Return mean and standard deviation of x and of x² under x^k exp(-(x² - h)²/2), k = 0 centric, 1 acentric; all (n,)."""
    x, log_weight = _nodes(h, centric)
    weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True)) * _WEIGHTS
    weight /= weight.sum(axis=1, keepdims=True)
    found = []
    for values in (x, x * x):
        mean = np.sum(weight * values, axis=1)
        # about the mean, since a difference of moments has no digits left at large h
        found += [mean, np.sqrt(np.sum(weight * (values - mean[:, None]) ** 2, axis=1))]
    return found[0], found[1], found[2], found[3]


def _nodes(h: Floats, centric: Bools) -> tuple[Floats, Floats]:
    """Return x (n, nodes) and the logarithm of the integrand with its Jacobian, up to a constant of the row."""
    large = h > SMALL
    # x² = J from the lower to the upper limit: about h, or where the exponential tail beside J = 0 has died away
    with np.errstate(over="ignore"):
        upper = np.where(h > 0, h + TAIL, TAIL**2 / (np.abs(h) + np.sqrt(h * h + TAIL**2)))
    lower = np.maximum(h - TAIL, 0.0)
    start, stop = np.where(large, -TAIL, np.sqrt(lower)), np.where(large, TAIL, np.sqrt(upper))
    half = 0.5 * (stop - start)
    nodes = (start + half)[:, None] + half[:, None] * _NODES
    x = np.where(large[:, None], np.sqrt(np.maximum(h[:, None] + nodes, 0.0)), nodes)
    squared = nodes**2
    offset = np.where(large[:, None], nodes, squared - h[:, None])
    # h x² - x⁴/2 is -(x² - h)²/2 + h²/2: of very negative h the latter has no digits left
    exponent = np.where(h[:, None] < 0, squared * (h[:, None] - 0.5 * squared), -0.5 * offset**2)
    power = np.where(large, np.where(centric, -1.0, 0.0), np.where(centric, 0.0, 1.0))
    return x, power[:, None] * np.log(x) + exponent

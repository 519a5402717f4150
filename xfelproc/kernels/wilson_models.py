"""Scale and widths of each lattice from nothing but its own intensities, by the likelihood of Wilson's statistics.

The full intensity is exponentially distributed about the mean t of its resolution, so that an observation of mean μ = k t with
Gaussian noise σ has the density exp(σ²/2μ² - I/μ) erfc(x) / 2μ, x = (σ/μ - I/σ)/√2 (`kernels.scaling`). A reflection far from the
sphere and found weak says as much of the width as a strong one near it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.lattice_equations import MUCH, add_products, restraints, write_columns
from xfelproc.kernels.partiality import Observed, lattice_factors, part_of
from xfelproc.kernels.postrefinement import GAIN_ENOUGH, TRIALS, Priors, bounded, damped_step
from xfelproc.kernels.scaling import INV_SQRT_2, INV_SQRT_PI, LIKELY

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]

FLOOR = 3e-3
"""Partiality that none falls below in the likelihood: tails beyond the profile must not rule the width."""
FAINT = 1e-4
"""Mean over noise below which it makes no difference how faint a reflection is: shells beyond the limit have no mean."""
ALL = -6.0
"""Below it erfc is 2."""
SMOOTH = (
    -1.2655121177480133,
    0.9999980468825516,
    0.3751098298622657,
    0.08091932392558016,
    -0.058600640180070135,
    -0.32548988822849273,
    0.6665116752085514,
    -2.0110277318129315,
    3.6426044548153875,
    -3.50588734620295,
    1.8539800227668817,
    -0.507375311167912,
    0.054769677945460914,
)
"""Coefficients of `erfc_parts`, least squares at 400 Chebyshev nodes."""


@njit(cache=True, nogil=True)
def erfc_parts(x: float) -> tuple[float, float, float]:
    """Return a and b with erfc(x) = b exp(a - [x > 0] x²), and exp(-x²) / erfc(x); relative errors below 1e-8.

    With t = 1 / (1 + x/2), log(exp(x²) erfc(x) / t) of x ≥ 0 is smooth in 0 ≤ t ≤ 1: a Chebyshev fit, here in powers of t.
    """
    t = 1.0 / (1.0 + 0.5 * abs(x))
    a = SMOOTH[12]
    for power in range(11, -1, -1):
        a = a * t + SMOOTH[power]
    if x >= 0.0:
        return a, t, math.exp(-a) / t
    if x < ALL:
        return 0.0, 2.0, 0.0
    gauss = math.exp(-x * x)
    b = 2.0 - t * math.exp(a) * gauss
    return 0.0, b, gauss / b


@njit(cache=True, nogil=True)
def wilson_parts(intensity: float, sigma: float, mu: float) -> tuple[float, float, float]:
    """Return a and b of the negative log-likelihood a - log(b) of an observation, and minus its derivative with μ.

    Beyond 15 μ + 6 σ it counts as if it were there.
    """
    faint = mu < FAINT * sigma
    if faint:
        mu = FAINT * sigma
    ratio = sigma / mu
    seen = min(intensity, LIKELY * mu + 6.0 * sigma)
    away = seen / sigma
    x = (ratio - away) * INV_SQRT_2
    a, b, hazard = erfc_parts(x)
    # σ²/2μ² - I/μ - x² = -I²/2σ²
    exponent = -0.5 * away * away if x >= 0.0 else 0.5 * ratio * ratio - away * ratio
    # d log erfc(x) / dx = -2 exp(-x²) / (√π erfc(x))
    slope = (-ratio * sigma + seen + 2.0 * INV_SQRT_PI * INV_SQRT_2 * hazard * sigma) / (mu * mu) - 1.0 / mu
    return -exponent - a, 0.5 * b / mu, 0.0 if faint else slope


@njit(cache=True, nogil=True)
def _equations(
    observed: Observed,
    inverse_d2: Singles,
    typical: Floats,
    sigma: Floats,
    shift: float,
    p: Floats,
    prior: Floats,
    priors: Priors,
    kind: int,
    full: Floats,
    partiality: Floats,
    columns: Floats,
    normal: Floats,
    right: Floats,
) -> float:
    """Return the target and write the normal equations of a step by Fisher's scoring, the information of μ being 1/(μ² + σ²).

    ``full`` and ``partiality`` are the factors under p; ``columns`` (p, n) is room for the derivatives.
    """
    total = restraints(p, prior, priors.precision, normal, right)
    write_columns(observed, inverse_d2, shift, p, kind, priors.free, full, partiality, columns)
    m = sigma.shape[0]
    weight, weighted, product = np.zeros(m), np.zeros(m), 1.0
    for i in range(m):
        s2, t = inverse_d2[i], typical[i]
        if not (sigma[i] > 0.0 and t > 0.0):
            continue
        least = FLOOR * math.exp(p[0] - 0.5 * p[1] * s2)
        if columns[0, i] < least:
            columns[:, i] = 0.0
            columns[0, i], columns[1, i] = least, -0.5 * s2 * least
        mu = columns[0, i] * t
        a, b, slope = wilson_parts(observed.intensity[i], sigma[i], mu)
        total, product = total + a, product * b
        if not 1.0 / MUCH < product < MUCH:
            total, product = total - math.log(product), 1.0
        weight[i], weighted[i] = t * t / (mu * mu + sigma[i] * sigma[i]), slope * t
    add_products(columns, weight, weighted, priors.free, normal, right)
    return total - math.log(product)


@njit(cache=True, nogil=True)
def _target(
    observed: Observed,
    inverse_d2: Singles,
    typical: Floats,
    sigma: Floats,
    p: Floats,
    prior: Floats,
    precision: Floats,
    full: Floats,
    partiality: Floats,
) -> float:
    """Return the target of `_equations` where the factors are known."""
    total, product = 0.0, 1.0
    for u in range(p.shape[0]):
        total += 0.5 * precision[u] * (p[u] - prior[u]) ** 2
    for i in range(sigma.shape[0]):
        if not (sigma[i] > 0.0 and typical[i] > 0.0):
            continue
        k = max(np.float64(full[i]) * partiality[i], FLOOR * math.exp(p[0] - 0.5 * p[1] * inverse_d2[i]))
        a, b, _ = wilson_parts(observed.intensity[i], sigma[i], k * typical[i])
        total, product = total + a, product * b
        if not 1.0 / MUCH < product < MUCH:
            total, product = total - math.log(product), 1.0
    return total - math.log(product)


@njit(cache=True, nogil=True)
def _log_ratio(observed: Observed, typical: Floats, sigma: Floats, full: Floats, partiality: Floats) -> float:
    """Return the log of the sum of all intensities, at least its standard deviation, over what is expected."""
    total = expected = noise = 0.0
    for i in range(sigma.shape[0]):
        total += observed.intensity[i]
        expected += full[i] * partiality[i] * typical[i]
        noise += sigma[i] * sigma[i]
    return math.log(max(total, math.sqrt(noise)) / expected) if expected > 0.0 and noise > 0.0 else 0.0


@njit(cache=True, nogil=True)
def _fit_lattice(
    observed: Observed,
    inverse_d2: Singles,
    typical: Floats,
    shift: float,
    parameters: Floats,
    prior: Floats,
    priors: Priors,
    kind: int,
    rounds: int,
) -> None:
    """Fit the free parameters of one lattice in place."""
    n, m = parameters.shape[0], typical.shape[0]
    normal, right, step, columns = np.zeros((n, n)), np.zeros(n), np.zeros(n), np.empty((n, m))
    full, part = np.empty(m), np.empty(m)
    sigma = np.empty(m)
    for i in range(m):
        sigma[i] = math.sqrt(observed.fixed[i] + observed.gain[i] * max(observed.intensity[i], 0.0))
    lattice_factors(observed, inverse_d2, shift, parameters, kind, full, part)
    parameters[0] += _log_ratio(observed, typical, sigma, full, part)
    lattice_factors(observed, inverse_d2, shift, parameters, kind, full, part)
    damping = 1e-3
    for _ in range(rounds):
        before = _equations(
            observed, inverse_d2, typical, sigma, shift, parameters, prior, priors, kind, full, part, columns, normal, right
        )
        after, trial = math.inf, parameters
        for _trial in range(TRIALS):
            if not damped_step(normal, right, priors.free, damping, step):
                break
            bounded(step)
            trial = parameters + step
            lattice_factors(observed, inverse_d2, shift, trial, kind, full, part)
            after = _target(observed, inverse_d2, typical, sigma, trial, prior, priors.precision, full, part)
            if after < before:
                break
            damping *= 10.0
        if not after < before:
            break
        parameters[:] = trial
        damping = max(0.1 * damping, 1e-6)
        if before - after < GAIN_ENOUGH:
            break


@njit(cache=True, nogil=True)
def fit_block(
    starts: Ints,
    observed: Observed,
    inverse_d2: Floats,
    typical: Floats,
    shift: Floats,
    parameters: Floats,
    priors: Priors,
    kind: int,
    rounds: int,
) -> Floats:
    """Return the parameters (m, p) that make each lattice's observations likeliest.

    ``inverse_d2`` and ``typical`` (the mean intensity of the resolution) are by unique reflection.
    """
    out = parameters.copy()
    for j in range(starts.shape[0] - 1):
        own = part_of(observed, starts[j], starts[j + 1])
        size = starts[j + 1] - starts[j]
        s2, level = np.empty(size, dtype=np.float32), np.empty(size)
        for i in range(size):
            s2[i], level[i] = inverse_d2[own.group[i]], typical[own.group[i]]
        if size:
            _fit_lattice(own, s2, level, shift[j], out[j], priors.value[j], priors, kind, rounds)
    return out

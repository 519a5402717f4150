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

from xfelproc.kernels.partiality import Observed, lattice_factors, model_derivatives, part_of
from xfelproc.kernels.postrefinement import GAIN_ENOUGH, TRIALS, Priors, add_equation, damped_step, restraints
from xfelproc.kernels.scaling import INV_SQRT_2, INV_SQRT_PI, LIKELY, log_erfc

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]

FLOOR = 3e-3
"""Partiality that none falls below in the likelihood: tails beyond the profile must not rule the width."""
FAINT = 1e-4
"""Mean over noise below which it makes no difference how faint a reflection is: shells beyond the limit have no mean."""


@njit(cache=True, nogil=True)
def wilson_term(intensity: float, sigma: float, mu: float) -> float:
    """Return the negative log-likelihood of an observation; beyond 15 μ + 6 σ it counts as if it were there."""
    mu = max(mu, FAINT * sigma)
    ratio = sigma / mu
    seen = min(intensity, LIKELY * mu + 6.0 * sigma)
    return -(0.5 * ratio * ratio - seen / mu + log_erfc((ratio - seen / sigma) * INV_SQRT_2) - math.log(2.0 * mu))


@njit(cache=True, nogil=True)
def wilson_slope(intensity: float, sigma: float, mu: float) -> float:
    """Return minus the derivative of `wilson_term` with μ."""
    if mu < FAINT * sigma:
        return 0.0
    seen = min(intensity, LIKELY * mu + 6.0 * sigma)
    x = (sigma / mu - seen / sigma) * INV_SQRT_2
    # d log erfc(x) / dx = -2 exp(-x²) / (√π erfc(x))
    hazard = 2.0 * INV_SQRT_PI * math.exp(-x * x - log_erfc(x))
    return (-(sigma * sigma) / mu + seen + hazard * sigma * INV_SQRT_2) / (mu * mu) - 1.0 / mu


@njit(cache=True, nogil=True)
def _equations(
    observed: Observed,
    inverse_d2: Singles,
    typical: Floats,
    sigma: Floats,
    shift: float,
    p: Floats,
    prior: Floats,
    precision: Floats,
    kind: int,
    normal: Floats,
    right: Floats,
) -> float:
    """Return the target and write the normal equations of a step by Fisher's scoring, the information of μ being 1/(μ² + σ²)."""
    total = restraints(p, prior, precision, normal, right)
    d = np.empty(p.shape[0])
    for i in range(sigma.shape[0]):
        s2, t = inverse_d2[i], typical[i]
        if not (sigma[i] > 0.0 and t > 0.0):
            continue
        k = model_derivatives(observed, i, s2, shift, p, kind, d)
        least = FLOOR * math.exp(p[0] - 0.5 * p[1] * s2)
        if k < least:
            d[:] = 0.0
            d[0], d[1] = least, -0.5 * s2 * least
            k = least
        mu = k * t
        total += wilson_term(observed.intensity[i], sigma[i], mu)
        weight = 1.0 / (mu * mu + sigma[i] * sigma[i])
        slope = wilson_slope(observed.intensity[i], sigma[i], mu)
        add_equation(d, weight * t * t, slope / (weight * t), normal, right)
    for u in range(p.shape[0]):
        for v in range(u):
            normal[v, u] = normal[u, v]
    return total


@njit(cache=True, nogil=True)
def _target(
    observed: Observed,
    inverse_d2: Singles,
    typical: Floats,
    sigma: Floats,
    shift: float,
    p: Floats,
    prior: Floats,
    precision: Floats,
    kind: int,
    full: Singles,
    partiality: Singles,
) -> float:
    lattice_factors(observed, inverse_d2, shift, p, kind, full, partiality)
    total = 0.0
    for u in range(p.shape[0]):
        total += 0.5 * precision[u] * (p[u] - prior[u]) ** 2
    for i in range(sigma.shape[0]):
        if not (sigma[i] > 0.0 and typical[i] > 0.0):
            continue
        k = max(full[i] * partiality[i], FLOOR * math.exp(p[0] - 0.5 * p[1] * inverse_d2[i]))
        total += wilson_term(observed.intensity[i], sigma[i], k * typical[i])
    return total


@njit(cache=True, nogil=True)
def _log_ratio(
    observed: Observed,
    inverse_d2: Singles,
    typical: Floats,
    sigma: Floats,
    shift: float,
    p: Floats,
    kind: int,
    full: Singles,
    partiality: Singles,
) -> float:
    """Return the log of the sum of all intensities, at least its standard deviation, over what is expected."""
    lattice_factors(observed, inverse_d2, shift, p, kind, full, partiality)
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
    normal, right, step = np.zeros((n, n)), np.zeros(n), np.zeros(n)
    full, part = np.empty(m, dtype=np.float32), np.empty(m, dtype=np.float32)
    sigma = np.empty(m)
    for i in range(m):
        sigma[i] = math.sqrt(observed.fixed[i] + observed.gain[i] * max(observed.intensity[i], 0.0))
    parameters[0] += _log_ratio(observed, inverse_d2, typical, sigma, shift, parameters, kind, full, part)
    damping = 1e-3
    for _ in range(rounds):
        before = _equations(observed, inverse_d2, typical, sigma, shift, parameters, prior, priors.precision, kind, normal, right)
        after, trial = math.inf, parameters
        for _trial in range(TRIALS):
            if not damped_step(normal, right, priors.free, damping, step):
                break
            trial = parameters + step
            after = _target(observed, inverse_d2, typical, sigma, shift, trial, prior, priors.precision, kind, full, part)
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

"""Kernels of scaling: the Wilson likelihood of partial observations."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

INV_SQRT_2 = 1.0 / math.sqrt(2.0)
INV_SQRT_PI = 1.0 / math.sqrt(math.pi)
LIKELY = 15.0
"""Times its mean an intensity may be by Wilson's law (chance e^-15); with 6 σ of noise on top it is taken for an outlier."""


@njit(cache=True, nogil=True)
def log_erfc(x: float) -> float:
    """Return log erfc(x), also where erfc(x) underflows (asymptotic series; relative error of erfc below 1e-7)."""
    if x < 8.0:
        return math.log(math.erfc(x))
    r = 1.0 / (2.0 * x * x)
    series = 1.0 - r * (1.0 - 3.0 * r * (1.0 - 5.0 * r * (1.0 - 7.0 * r)))
    return -x * x + math.log(INV_SQRT_PI / x * series)


@njit(cache=True, nogil=True)
def wilson_log_likelihood(intensity: Floats, sigma: Floats, expected: Floats) -> float:
    """Return the log-likelihood of observations of acentric intensities with Gaussian noise.

    The intensity itself follows Wilson's exponential law of mean μ = ``expected`` (Wilson 1949, Acta Cryst. 2, 318); with
    Gaussian noise σ the observation has the density ``exp(σ²/2μ² - I/μ) erfc((σ/μ - I/σ)/√2) / 2μ``. What is beyond 15 μ + 6 σ
    counts as if it were there: an outlier has a bounded say.
    """
    total = 0.0
    for i in range(intensity.shape[0]):
        s, mu = sigma[i], expected[i]
        ratio = s / mu
        observed = min(intensity[i], LIKELY * mu + 6.0 * s)
        total += 0.5 * ratio * ratio - observed / mu + log_erfc((ratio - observed / s) * INV_SQRT_2) - math.log(2.0 * mu)
    return total


@njit(cache=True, nogil=True)
def _wilson_sums(
    intensity: Floats,
    variance: Floats,
    partiality: Floats,
    lattice: Ints,
    shell: Ints,
    scale: Floats,
    mean: Floats,
    by_shell: bool,
    trim: bool,
) -> tuple[Floats, Floats]:
    """Return numerators and denominators of the scales of the lattices, or of the means of the shells."""
    size = mean.shape[0] if by_shell else scale.shape[0]
    numerator = np.zeros(size)
    denominator = np.zeros(size)
    for i in range(intensity.shape[0]):
        known = (scale[lattice[i]] if by_shell else mean[shell[i]]) * partiality[i]
        expected = scale[lattice[i]] * mean[shell[i]] * partiality[i]
        if trim and intensity[i] > LIKELY * expected + 6.0 * math.sqrt(variance[i]):
            continue
        w = known / (variance[i] + expected * expected)
        index = shell[i] if by_shell else lattice[i]
        numerator[index] += w * intensity[i]
        denominator[index] += w * known
    return numerator, denominator


@njit(cache=True, nogil=True)
def _settle(numerator: Floats, denominator: Floats, typical: float, out: Floats) -> None:
    """Put the ratios into ``out``; those without observations get the typical value."""
    for j in range(out.shape[0]):
        if denominator[j] > 0.0:
            out[j] = max(numerator[j] / denominator[j], 1e-3 * typical)
        else:
            out[j] = typical


@njit(cache=True, nogil=True)
def wilson_history(
    intensity: Floats,
    variance: Floats,
    partiality: Floats,
    lattice: Ints,
    shell: Ints,
    n_lattices: int,
    n_shells: int,
    rounds: int,
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return scales of the lattices, means of the shells, and what each round of `replay_scales` needs.

    These are (rounds, n_shells) means from which the scales of the round were taken, and (rounds,) typical scales. Alternating
    weighted least squares for I ≈ scale · shell mean · partiality; the weights 1 / (σ² + expected²) hold noise and Wilson's
    spread of intensities, so that strong reflections do not rule; from the second round what is beyond 15 times the expected plus
    6 σ stays out. Lattices and shells without observations get the typical value.
    """
    scale = np.ones(n_lattices)
    mean = np.ones(n_shells)
    start = 0.0
    weight = 0.0
    for i in range(intensity.shape[0]):
        start += partiality[i] * intensity[i]
        weight += partiality[i] * partiality[i]
    mean[:] = max(start / max(weight, 1e-300), 1e-12)
    means = np.empty((rounds, n_shells))
    typicals = np.empty(rounds)
    for turn in range(rounds):
        means[turn] = mean
        for by_shell in range(2):
            numerator, denominator = _wilson_sums(
                intensity, variance, partiality, lattice, shell, scale, mean, by_shell == 1, turn > 0
            )
            typical = max(numerator.sum() / max(denominator.sum(), 1e-300), 1e-12)
            if by_shell == 0:
                typicals[turn] = typical
                _settle(numerator, denominator, typical, scale)
            else:
                _settle(numerator, denominator, typical, mean)
    return scale, mean, means, typicals


@njit(cache=True, nogil=True)
def wilson_scales(
    intensity: Floats,
    variance: Floats,
    partiality: Floats,
    lattice: Ints,
    shell: Ints,
    n_lattices: int,
    n_shells: int,
    rounds: int,
) -> tuple[Floats, Floats]:
    """Return a scale for each lattice and a mean full intensity for each shell, see `wilson_history`."""
    scale, mean, _, _ = wilson_history(intensity, variance, partiality, lattice, shell, n_lattices, n_shells, rounds)
    return scale, mean


@njit(cache=True, nogil=True)
def replay_scales(
    intensity: Floats,
    variance: Floats,
    partiality: Floats,
    lattice: Ints,
    shell: Ints,
    n_lattices: int,
    means: Floats,
    typicals: Floats,
) -> Floats:
    """Return the scales that `wilson_history` would give these lattices, were they among those it was made from.

    Each lattice's scale depends on the others through ``means`` and ``typicals`` alone, so that lattices can be taken by parts.
    """
    scale = np.ones(n_lattices)
    for turn in range(means.shape[0]):
        numerator, denominator = _wilson_sums(intensity, variance, partiality, lattice, shell, scale, means[turn], False, turn > 0)
        _settle(numerator, denominator, typicals[turn], scale)
    return scale

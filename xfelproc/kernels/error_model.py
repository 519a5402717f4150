"""Kernels of the error model: the variance of an observation, a hashed sample of observations, the likelihood of their pairs.

The variance of an observation of the full intensity J at the partiality p in a lattice of scale f (B included) is

``t0 (fixed + gain x) + q (t1 x² + t2 (f J)² + t3 x² L + t4 x² L²)`` with ``x = f p J`` and ``L = -2 log p``:

counting; a relative error; an error of the partiality whatever it is; what an error of the excitation error and one of the width
do to a Gaussian partiality, as ``∂p/∂ε = -p √L / w`` and ``∂p/∂log w = p L``. ``q`` is the lattice's quality.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]

N_TERMS = 5
SAMPLE_COLUMNS = 7
"""Of a slot: observations in it, intensity, fixed, gain, full, partiality, quality."""
LEAST_P = 1e-6


@njit(cache=True, nogil=True, inline="always")
def observation_variance(
    fixed: float, gain: float, full: float, partiality: float, expected: float, quality: float, terms: Floats
) -> float:
    """Return the variance of an observation, see the module; ``expected`` is J, negative ones count as 0."""
    whole = full * max(expected, 0.0)
    x = partiality * whole
    relative = terms[1]
    if partiality < 1.0 and terms[3] + terms[4] > 0.0:
        away = -2.0 * math.log(max(partiality, LEAST_P))
        relative += away * (terms[3] + away * terms[4])
    variance: float = terms[0] * (fixed + gain * x) + quality * (relative * x * x + terms[2] * whole * whole)
    return variance


@njit(cache=True, nogil=True)
def observation_variances(
    fixed: Floats, gain: Floats, full: Floats, partiality: Floats, expected: Floats, quality: Floats, terms: Floats
) -> Floats:
    """Return `observation_variance` of each observation, (n,); ``quality`` (n,) is that of its lattice."""
    out = np.empty(fixed.shape[0])
    for i in range(fixed.shape[0]):
        out[i] = observation_variance(fixed[i], gain[i], full[i], partiality[i], expected[i], quality[i], terms)
    return out


@njit(cache=True, nogil=True)
def mixed(value: np.uint64) -> np.uint64:
    """Return 64 well-mixed bits (the finaliser of SplitMix64, Steele, Lea & Flood 2014, OOPSLA)."""
    x = value + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def add_sample(
    starts: Ints,
    identity: Ints,
    group: NDArray[np.int32],
    intensity: Singles,
    fixed: Singles,
    gain: Singles,
    full: Singles,
    partiality: Singles,
    quality: Floats,
    used: NDArray[np.bool_],
    offered: NDArray[np.bool_],
    min_partiality: float,
    row: NDArray[np.int32],
    share: Floats,
    out: Singles,
) -> None:
    """Add some observations to the slots ``out`` (rows, slots, SAMPLE_COLUMNS) of their reflections.

    Parameters
    ----------
    starts, group, intensity, fixed, gain, full, partiality
        Observations by lattice; full and partiality under the lattices' models.
    identity
        (m,) number of each lattice in the run: slot and choice are a hash of it and the reflection.
    quality, used, offered
        (m,) of the lattices; (n,) observations that may be taken.
    min_partiality
        Less partial ones stay out.
    row, share
        (n_unique,) row of ``out`` of each unique reflection, -1: none; and the share of its observations that is taken.
    """
    slots = np.uint64(out.shape[1])
    for j in range(starts.shape[0] - 1):
        if not used[j]:
            continue
        for i in range(starts[j], starts[j + 1]):
            g = group[i]
            if row[g] < 0 or not offered[i] or not partiality[i] >= min_partiality:
                continue
            bits = mixed(mixed(np.uint64(identity[j])) + np.uint64(g))
            if float(bits >> np.uint64(11)) * 2.0**-53 >= share[g]:
                continue
            place = out[row[g], mixed(bits) % slots]
            place[0] += 1.0
            place[1] += intensity[i]
            place[2] += fixed[i]
            place[3] += gain[i]
            place[4] += full[i]
            place[5] += partiality[i]
            place[6] += quality[j]


@njit(cache=True, nogil=True)
def components(columns: Floats, expected: Floats, out: Floats) -> None:
    """Write what each term of the variance of J = I / k counts, (n, N_TERMS), of samples (n, SAMPLE_COLUMNS)."""
    for i in range(columns.shape[0]):
        fixed, gain, full, p, quality = columns[i, 2], columns[i, 3], columns[i, 4], columns[i, 5], columns[i, 6]
        j = max(expected[i], 0.0)
        k = full * p
        away = -2.0 * math.log(min(max(p, LEAST_P), 1.0))
        out[i, 0] = (fixed + gain * k * j) / (k * k)
        out[i, 1] = quality * j * j
        out[i, 2] = quality * (j / p) ** 2
        out[i, 3] = out[i, 1] * away
        out[i, 4] = out[i, 1] * away * away


@njit(cache=True, nogil=True)
def pair_likelihood(starts: Ints, value: Floats, parts: Floats, terms: Floats, nu: float, gradient: Floats) -> tuple[float, float]:
    """Return -log likelihood of the differences of pairs of each group, without constants, and its derivative with ν.

    A difference over its standard deviation follows Student's distribution of ν degrees of freedom (Mittan-Moreau et al. 2025,
    Acta Cryst. D81). Each observation of a group of n is paired with the next and the one after that, in a ring; the pairs
    weigh n - 1 together, the number of independent differences.

    Parameters
    ----------
    starts
        Bounds of the groups.
    value, parts
        (n,) full intensities; (n, N_TERMS) of `components`.
    terms
        The terms.
    nu
        ν.
    gradient
        (N_TERMS,) derivatives are written here.
    """
    total, by_nu = 0.0, 0.0
    gradient[:] = 0.0
    variance = np.zeros(value.shape[0])
    for i in range(value.shape[0]):
        for t in range(terms.shape[0]):
            variance[i] += terms[t] * parts[i, t]
    for g in range(starts.shape[0] - 1):
        n = starts[g + 1] - starts[g]
        if n < 2:
            continue
        pairs = min(n * (n - 1) // 2, 2 * n)
        weight = (n - 1.0) / pairs
        for pair in range(pairs):
            i = starts[g] + pair % n
            j = starts[g] + (pair + 1 + pair // n) % n
            v = variance[i] + variance[j]
            z = (value[i] - value[j]) ** 2 / v
            tail = 1.0 + z / nu
            total += weight * 0.5 * (math.log(v) + (nu + 1.0) * math.log(tail))
            by_nu += weight * 0.5 * (math.log(tail) - (nu + 1.0) * z / (nu * nu * tail))
            slope = weight * 0.5 / v * (1.0 - (nu + 1.0) * z / (nu * tail))
            for t in range(terms.shape[0]):
                gradient[t] += slope * (parts[i, t] + parts[j, t])
    return total, by_nu

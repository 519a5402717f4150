"""Kernels of indexing ambiguity: lattices choose among settings against the mean of the others.

Lattices are sorted; ``starts`` (n + 1,) bounds their observations. ``unique`` is the row of ``table`` (n_numbers, k), whose entries
are the reflection that the observation is in each of k settings. ``value`` is E² - 1 of the observation and ``variance`` that of
its noise. ``sums`` (n_reflections, 2) hold Σw and Σw·value over lattices in the settings that they are believed to be in.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]
Numbers = NDArray[np.int32]

HALF_RANGE = 1 << 20
FREEDOM = 5.0
"""Degrees of freedom of the law of residuals (Student's t), whose powers below are written out."""
SCALE = (FREEDOM - 2.0) / FREEDOM
WEAKEST = 0.2
"""Relative errors are of no smaller an E²."""


@njit(cache=True, nogil=True)
def canonical_keys(hkl: NDArray[np.int32], rotations: Ints) -> Ints:
    """Return one integer for each index (n, 3), the same for all that rotations (m, 3, 3) or inversion make equivalent."""
    n = hkl.shape[0]
    out = np.empty(n, np.int64)
    for i in range(n):
        best = np.int64(-1)
        for m in range(rotations.shape[0]):
            r = rotations[m]
            h = hkl[i, 0] * r[0, 0] + hkl[i, 1] * r[1, 0] + hkl[i, 2] * r[2, 0]
            k = hkl[i, 0] * r[0, 1] + hkl[i, 1] * r[1, 1] + hkl[i, 2] * r[2, 1]
            l = hkl[i, 0] * r[0, 2] + hkl[i, 1] * r[1, 2] + hkl[i, 2] * r[2, 2]  # noqa: E741  (the index's own name)
            plus = ((h + HALF_RANGE) << 42) | ((k + HALF_RANGE) << 21) | (l + HALF_RANGE)
            minus = ((HALF_RANGE - h) << 42) | ((HALF_RANGE - k) << 21) | (HALF_RANGE - l)
            best = max(best, plus, minus)
        out[i] = best
    return out


@njit(cache=True, nogil=True)
def add_lattice(
    first: int, last: int, unique: Numbers, value: Singles, variance: Singles, table: Numbers, share: Floats, spread: float,
    sums: Floats, sign: float,
) -> None:  # fmt: skip
    """Add a lattice's observations ``first`` ... ``last`` - 1 to ``sums`` by its ``share`` (k,) in each setting (sign -1: off)."""
    for i in range(first, last):
        w = sign / (variance[i] + spread)
        for c in range(share.shape[0]):
            g = table[unique[i], c]
            sums[g, 0] += share[c] * w
            sums[g, 1] += share[c] * w * value[i]


@njit(cache=True, nogil=True)
def lattice_likelihoods(
    first: int, last: int, unique: Numbers, value: Singles, variance: Singles, table: Numbers, spread: float, prior: float,
    sums: Floats, out: Floats,
) -> None:  # fmt: skip
    """Put the log-likelihood of a lattice's observations in each setting into ``out`` (k + 1,); the last: of others.

    A reflection's E² - 1 has the mean 0 and variance 1 / ``prior`` where nothing was observed, else what ``sums`` make of that;
    residuals follow Student's t with 5 degrees of freedom, with the variance of observation and mean together.
    """
    k = table.shape[1]
    for c in range(k + 1):
        total = 0.0
        product = 1.0
        for i in range(first, last):
            v = variance[i]
            if c < k:
                g = table[unique[i], c]
                rest = max(sums[g, 0], 0.0) + prior
                mean = sums[g, 1] / rest
                v += spread * max(1.0 + mean, WEAKEST) ** 2 + 1.0 / rest
                r = value[i] - mean
            else:
                v += 2.0 * spread + 1.0 / prior
                r = value[i]
            v *= SCALE
            t = 1.0 + r * r / (FREEDOM * v)
            product *= v * t * t * t * t * t * t
            if product > 1e150 or product < 1e-150:
                total -= 0.5 * math.log(product)
                product = 1.0
        out[c] = total - 0.5 * math.log(product)


@njit(cache=True, nogil=True)
def shares_of(likelihood: Floats, outlier: float, out: Floats) -> float:
    """Put the probability of each setting into ``out`` (k,); return the log-evidence.

    ``likelihood`` (k + 1,) is from `lattice_likelihoods`; intensities are unrelated with the prior chance ``outlier``.
    """
    k = out.shape[0]
    top = likelihood[k] + math.log(outlier)
    level = math.log((1.0 - outlier) / k)
    for c in range(k):
        top = max(top, likelihood[c] + level)
    total = math.exp(likelihood[k] + math.log(outlier) - top)
    for c in range(k):
        out[c] = math.exp(likelihood[c] + level - top)
        total += out[c]
    for c in range(k):
        out[c] /= total
    return float(top + math.log(total))


@njit(cache=True, nogil=True)
def sums_of(
    starts: Ints, unique: Numbers, value: Singles, variance: Singles, table: Numbers, share: Floats, spread: float, n: int
) -> Floats:
    """Return the sums (n, 2) over all lattices, by their shares (n_lattices, k)."""
    sums = np.zeros((n, 2))
    for i in range(starts.shape[0] - 1):
        add_lattice(starts[i], starts[i + 1], unique, value, variance, table, share[i], spread, sums, 1.0)
    return sums


@njit(cache=True, nogil=True)
def settle(
    order: Ints,
    starts: Ints,
    unique: Numbers,
    value: Singles,
    variance: Singles,
    table: Numbers,
    spread: float,
    prior: float,
    outlier: float,
    share: Floats,
    sums: Floats,
    likelihood: Floats,
) -> float:
    """Let lattices choose one after the other, in ``order``, each against all others as they stand; return the sum of log-evidence.

    One round of expectation and maximisation in its incremental form (Neal & Hinton 1998, Learning in Graphical Models, 355).
    ``share`` (n_lattices, k), ``sums`` and ``likelihood`` (n_lattices, k + 1) are changed.
    """
    total = 0.0
    for i in order:
        first, last = starts[i], starts[i + 1]
        add_lattice(first, last, unique, value, variance, table, share[i], spread, sums, -1.0)
        lattice_likelihoods(first, last, unique, value, variance, table, spread, prior, sums, likelihood[i])
        total += shares_of(likelihood[i], outlier, share[i])
        add_lattice(first, last, unique, value, variance, table, share[i], spread, sums, 1.0)
    return total


@njit(cache=True, nogil=True)
def judge(
    starts: Ints,
    unique: Numbers,
    value: Singles,
    variance: Singles,
    table: Numbers,
    spread: float,
    own_spread: float,
    prior: float,
    share: Floats,
    sums: Floats,
    likelihood: Floats,
    moments: Floats,
) -> None:
    """Compare each lattice to all others as they stand; ``share`` is what each lattice has in ``sums``, 0 if it is not in them.
    ``own_spread`` is the spread of its observations if it is another than that which it is in ``sums`` with.

    ``likelihood`` (n_lattices, k + 1) is filled, and ``moments`` (n_lattices, k, 6): Σw, Σwx, Σwy, Σwxx, Σwxy, Σwyy of the
    observations x and the means y of the others in each setting, of those that others have observed too.
    """
    for i in range(starts.shape[0] - 1):
        first, last = starts[i], starts[i + 1]
        add_lattice(first, last, unique, value, variance, table, share[i], spread, sums, -1.0)
        lattice_likelihoods(first, last, unique, value, variance, table, own_spread, prior, sums, likelihood[i])
        for j in range(first, last):
            for c in range(table.shape[1]):
                g = table[unique[j], c]
                rest = sums[g, 0]
                if rest < 1e-9:
                    continue
                w = 1.0 / (variance[j] + spread + 1.0 / (rest + prior))
                x, y = value[j], sums[g, 1] / (rest + prior)
                m = moments[i, c]
                m[0] += w
                m[1] += w * x
                m[2] += w * y
                m[3] += w * x * x
                m[4] += w * x * y
                m[5] += w * y * y
        add_lattice(first, last, unique, value, variance, table, share[i], spread, sums, 1.0)

"""Target and normal equations of a lattice's post-refinement: columns of derivatives first, then their products.

The factors of the observations under the parameters (`partiality.lattice_factors`) are known: nothing transcendental is left
here but one logarithm for many observations.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.partiality import FULL, GIVEN, N_FIXED, Observed, moved_excitation, profile_slopes, squared_width
from xfelproc.kernels.reference_sums import Compared

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Bools = NDArray[np.bool_]

MUCH = 1e100
"""A product of terms of a logarithm that is not carried further."""


@njit(cache=True, nogil=True)
def restraints(p: Floats, prior: Floats, precision: Floats, normal: Floats, right: Floats) -> float:
    """Return ½ Σ precision (p - prior)²; start the normal equations with it."""
    total = 0.0
    for u in range(p.shape[0]):
        away = prior[u] - p[u]
        total += 0.5 * precision[u] * away * away
        right[u] = precision[u] * away
        for v in range(p.shape[0]):
            normal[u, v] = 0.0
        normal[u, u] = precision[u]
    return total


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _dot(a: Floats, b: Floats) -> float:
    total = 0.0
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@njit(cache=True, nogil=True)
def add_products(columns: Floats, weight: Floats, weighted: Floats, free: Bools, normal: Floats, right: Floats) -> None:
    """Add Σ weight d dᵀ to the normal matrix and Σ weighted d to the right side, of the free parameters.

    ``columns`` (p, n) are the derivatives; ``weighted`` (n,) are weights times residuals.
    """
    row = np.empty(weight.shape[0])
    for u in range(columns.shape[0]):
        if not free[u]:
            continue
        right[u] += _dot(weighted, columns[u])
        for i in range(row.shape[0]):
            row[i] = weight[i] * columns[u, i]
        for v in range(u + 1):
            if free[v]:
                normal[u, v] += _dot(row, columns[v])
                normal[v, u] = normal[u, v]


@njit(cache=True, nogil=True)
def write_columns(
    observed: Observed,
    inverse_d2: Singles,
    shift: float,
    p: Floats,
    kind: int,
    free: Bools,
    full: Floats,
    partiality: Floats,
    columns: Floats,
) -> None:
    """Write the derivatives (p, n) of k = full · partiality with the parameters; only those of free ones mean anything."""
    w0, w1 = math.exp(p[4]), math.exp(p[5])
    shaped = False
    for u in range(2, p.shape[0]):
        shaped = shaped or free[u]
    shaped = shaped and kind != GIVEN and kind != FULL
    if not shaped:
        columns[2:] = 0.0
    for i in range(full.shape[0]):
        s2 = np.float64(inverse_d2[i])
        f, part = full[i], partiality[i]
        columns[0, i] = f * part
        columns[1, i] = -0.5 * s2 * f * part
        if not shaped:
            continue
        w2 = squared_width(kind, w0, w1, s2, shift * s2)
        with_e, with_w = profile_slopes(kind, moved_excitation(observed, i, p), math.sqrt(w2), shift * s2, part)
        a, b = w0 * w0 / w2, w1 * w1 * s2 / w2
        columns[2, i] = f * with_e * observed.derivatives[i, 0]
        columns[3, i] = f * with_e * observed.derivatives[i, 1]
        # log(w0 / w) grows with log w0 by 1 - a, with log w1 by -b
        columns[4, i] = f * (with_w * a + part * (1.0 - a))
        columns[5, i] = f * (with_w - part) * b
        for s in range(N_FIXED, p.shape[0]):
            columns[s, i] = f * with_e * observed.derivatives[i, s - N_FIXED + 2]


@njit(cache=True, nogil=True)
def equations(
    observed: Observed,
    compared: Compared,
    shift: float,
    p: Floats,
    prior: Floats,
    precision: Floats,
    kind: int,
    robust: float,
    free: Bools,
    full: Floats,
    partiality: Floats,
    columns: Floats,
    normal: Floats,
    right: Floats,
) -> float:
    """Return the target Σ ½ c² log(1 + z²/c²) + ½ Σ precision (p - prior)²; write the normal equations of a step.

    z = (I - k J) / σ, c = ``robust``: the negative log-likelihood of Cauchy's law, whose weight is 1 / (1 + z²/c²). ``full`` and
    ``partiality`` are the factors under p; ``columns`` (p, n) is room for the derivatives.
    """
    total = restraints(p, prior, precision, normal, right)
    write_columns(observed, compared.inverse_d2, shift, p, kind, free, full, partiality, columns)
    m = full.shape[0]
    weight, weighted = np.empty(m), np.empty(m)
    c2, logs, product = robust * robust, 0.0, 1.0
    for i in range(m):
        # an infinite variance makes all of this 0
        j, inverse = compared.mean[i], 1.0 / compared.variance[i]
        y = observed.intensity[i] - full[i] * partiality[i] * j
        x = 1.0 + y * y * inverse / c2
        product *= x
        if product > MUCH:
            logs, product = logs + math.log(product), 1.0
        w = inverse / x
        weight[i], weighted[i] = w * j * j, w * j * y
    add_products(columns, weight, weighted, free, normal, right)
    return total + 0.5 * c2 * (logs + math.log(product))


@njit(cache=True, nogil=True)
def target(
    observed: Observed,
    compared: Compared,
    full: Floats,
    partiality: Floats,
    p: Floats,
    prior: Floats,
    precision: Floats,
    robust: float,
) -> float:
    """Return the target of `equations` where the factors are known."""
    total = 0.0
    for u in range(p.shape[0]):
        total += 0.5 * precision[u] * (p[u] - prior[u]) ** 2
    c2, logs, product = robust * robust, 0.0, 1.0
    for i in range(full.shape[0]):
        y = observed.intensity[i] - full[i] * partiality[i] * compared.mean[i]
        product *= 1.0 + y * y / (compared.variance[i] * c2)
        if product > MUCH:
            logs, product = logs + math.log(product), 1.0
    return total + 0.5 * c2 * (logs + math.log(product))

"""What CC1/2 of a merging would be without some of its observations (Assmann et al. 2016, J. Appl. Cryst. 49, 1021).

By variances: CC1/2 = (σy² - σm²) / (σy² + σm²) in a shell of resolution, with σy² the variance of the merged intensities and σm²
the mean variance of such an intensity, from the scatter of its observations. All of it is sums over reflections, of which some
observations change those of their own reflections alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.partiality import Observed, part_of
from xfelproc.kernels.reference_sums import own_variance

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]

SUMS = 4
"""Of a shell: number, Σ J, Σ J² and Σ var(J) of the reflections with two observations or more; J from the shell's mean."""
OWN = 3
"""Of observations by reflection: Σw, ΣwI/k, Σw(I/k)²."""
FEWEST = 3
"""Reflections that a shell needs to have a correlation."""


class Merged(NamedTuple):
    """A merging by unique reflection: mean, weight, χ² about the mean, number; what weights were formed with; the shell, and the
    mean's distance from that of the shell; and the sums of the shells (n_shells, SUMS).
    """

    mean: Floats
    weight: Floats
    chi2: Floats
    multiplicity: NDArray[np.int32]
    expected: Floats
    limit: Floats
    shell: NDArray[np.int32]
    centred: Floats
    sums: Floats


@njit(cache=True, nogil=True)
def half_correlation(sums: Floats) -> float:
    """Return CC1/2 of shells (n_shells, SUMS), the mean by numbers of reflections; NaN if no shell has one."""
    total, weight = 0.0, 0.0
    for s in range(sums.shape[0]):
        n = sums[s, 0]
        if n < FEWEST:
            continue
        spread = (sums[s, 2] - sums[s, 1] * sums[s, 1] / n) / (n - 1.0)
        error = sums[s, 3] / n
        if spread + error > 0.0:
            total += n * (spread - error) / (spread + error)
            weight += n
    return total / weight if weight > 0.0 else math.nan


@njit(cache=True, nogil=True)
def add_own(
    observed: Observed,
    full: Singles,
    partiality: Singles,
    merged: Merged,
    quality: float,
    errors: Floats,
    min_partiality: float,
    own: Floats,
    number: NDArray[np.int32],
    touched: Ints,
    n: int,
) -> int:
    """Add one lattice's observations to ``own`` (n_unique, OWN) and ``number`` (n_unique,); list their reflections.

    ``touched`` holds ``n`` of them before; their number then is returned.
    """
    for i in range(full.shape[0]):
        if not partiality[i] >= min_partiality:
            continue
        g = observed.group[i]
        v = own_variance(
            observed.intensity[i],
            observed.fixed[i],
            observed.gain[i],
            full[i],
            partiality[i],
            merged.expected[g],
            merged.limit[g],
            quality,
            errors,
        )
        if math.isinf(v):
            continue
        k = np.float64(full[i]) * partiality[i]
        if number[g] == 0:
            touched[n] = g
            n += 1
        number[g] += 1
        own[g, 0] += k * k / v
        own[g, 1] += k * observed.intensity[i] / v
        own[g, 2] += np.float64(observed.intensity[i]) * observed.intensity[i] / v
    return n


@njit(cache=True, nogil=True)
def without(merged: Merged, own: Floats, number: NDArray[np.int32], touched: Ints, n: int, sums: Floats) -> float:
    """Return CC1/2 without what was added by `add_own`, and forget that; ``sums`` is room for sums of the shells."""
    sums[:] = merged.sums
    for j in range(n):
        g = touched[j]
        s, count, w, mean = merged.shell[g], merged.multiplicity[g], merged.weight[g], merged.mean[g]
        if count >= 2:
            sums[s, 0] -= 1.0
            sums[s, 1] -= merged.centred[g]
            sums[s, 2] -= merged.centred[g] ** 2
            sums[s, 3] -= merged.chi2[g] / ((count - 1) * w)
        left, w_left = count - number[g], w - own[g, 0]
        if left >= 2 and w_left > 1e-9 * w:
            mean_left = (w * mean - own[g, 1]) / w_left
            chi2 = merged.chi2[g] + w * mean * mean - own[g, 2] - w_left * mean_left * mean_left
            centred = mean_left - mean + merged.centred[g]
            sums[s, 0] += 1.0
            sums[s, 1] += centred
            sums[s, 2] += centred * centred
            sums[s, 3] += max(chi2, 0.0) / ((left - 1) * w_left)
        own[g] = 0.0
        number[g] = 0
    return half_correlation(sums)


@njit(cache=True, nogil=True)
def lattice_influences(
    starts: Ints,
    observed: Observed,
    full: Singles,
    partiality: Singles,
    merged: Merged,
    used: NDArray[np.bool_],
    quality: Floats,
    errors: Floats,
    min_partiality: float,
) -> Floats:
    """Return CC1/2 less that without it of each lattice of a block, (m,); NaN for those that are not used."""
    m, n_unique, most = starts.shape[0] - 1, merged.mean.shape[0], 0
    for j in range(m):
        most = max(most, starts[j + 1] - starts[j])
    own, number, touched = np.zeros((n_unique, OWN)), np.zeros(n_unique, dtype=np.int32), np.empty(most, dtype=np.int64)
    sums, influences = np.empty_like(merged.sums), np.full(m, math.nan)
    whole = half_correlation(merged.sums)
    for j in range(m):
        if used[j]:
            a, b = starts[j], starts[j + 1]
            part = part_of(observed, a, b)
            n = add_own(part, full[a:b], partiality[a:b], merged, quality[j], errors, min_partiality, own, number, touched, 0)
            influences[j] = whole - without(merged, own, number, touched, n, sums)
    return influences


@njit(cache=True, nogil=True)
def add_lattices(
    first: int,
    end: int,
    starts: Ints,
    observed: Observed,
    full: Singles,
    partiality: Singles,
    merged: Merged,
    used: NDArray[np.bool_],
    quality: Floats,
    errors: Floats,
    min_partiality: float,
    own: Floats,
    number: NDArray[np.int32],
    touched: Ints,
    n: int,
) -> int:
    """Do what `add_own` does for the used ones of some lattices of a block; ``touched`` has room for all reflections."""
    for j in range(first, end):
        if used[j]:
            a, b = starts[j], starts[j + 1]
            part = part_of(observed, a, b)
            n = add_own(part, full[a:b], partiality[a:b], merged, quality[j], errors, min_partiality, own, number, touched, n)
    return n

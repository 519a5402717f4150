"""From the sums of the last pass to merged intensities whose standard deviations are true.

The weights are those of the error model. What the observations say of it in the end is put on the standard deviations: in each bin
of resolution and intensity the mean of Σw²r² of the reflections over what it should be, with r the residuals (the variance of a
weighted mean whose weights are not quite right; White 1980, Econometrica 48, 817).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.cycle import CycleState, factors
from xfelproc.algorithms.merging.lattice_block import LatticeBlock
from xfelproc.algorithms.merging.lattice_models import LatticeModels
from xfelproc.algorithms.merging.reference import Arrays, Floats, Sums
from xfelproc.algorithms.merging.sample import SMALLEST_PARTIALITY
from xfelproc.kernels.final_sums import MOMENTS, SQUARES, Z_BINS, Z_WIDTH, add_final

SHELLS, CLASSES = 20, 5
"""Bins of resolution, of equal number of reflections, and of intensity in each, for the spread."""
PRIOR_DEGREES = 100.0
"""Independent differences that the spread of a shell counts for in its bins, that of all in a shell's, and 1 in that of all."""
LEAST_SPREAD = 0.1
"""Factors on variances below this are chance: few observations that agree too well."""


def final_sums(block: LatticeBlock, models: LatticeModels, state: CycleState) -> tuple[Sums, NDArray[np.bool_]]:
    """Return the sums of a block's observations by unique reflection, and which observations (n,) are in them.

    See `xfelproc.kernels.final_sums.add_final` for what they are; those of all blocks add up.
    """
    n, reference = len(state.unique), state.reference
    full, partiality = factors(block, models, state)
    minus = (block.isym % 2 == 0) & ~state.unique.centric[block.group]
    weight, weighted = np.zeros((n, 4)), np.zeros((n, 4))
    count, rejected = np.zeros((n, 4), dtype=np.int64), np.zeros(n, dtype=np.int64)
    moments, squares, deviations = np.zeros((n, MOMENTS)), np.zeros((n, 2, SQUARES)), np.zeros(Z_BINS, dtype=np.int64)
    control_weight, control_weighted = np.zeros((n, 2)), np.zeros((n, 2))
    merged = np.zeros(len(block), dtype=bool)
    add_final(
        block.starts,
        (block.unit.astype(np.int64) << 32) + block.number,
        block.group,
        block.intensity,
        block.variance_fixed,
        block.variance_gain,
        full,
        partiality,
        state.unique.inverse_d2,
        reference.intensity,
        reference.weight,
        reference.expected,
        reference.limit,
        (2 * minus + block.half[block.lattice]).astype(np.uint8),
        models.used,
        models.quality,
        state.errors.terms,
        max(state.settings.min_partiality, SMALLEST_PARTIALITY),
        weight,
        weighted,
        count,
        moments,
        squares,
        rejected,
        deviations,
        control_weight,
        control_weighted,
        merged,
    )
    return {
        "weight": weight,
        "weighted": weighted,
        "count": count,
        "moments": moments,
        "squares": squares,
        "rejected": rejected,
        "deviations": deviations,
        "control_weight": control_weight,
        "control_weighted": control_weighted,
    }, merged


@dataclass(frozen=True)
class Means:
    """Weighted means, NaN where there is none, their standard deviations by the weights alone, and numbers."""

    value: Floats
    sigma: Floats
    count: NDArray[np.int64]

    @classmethod
    def of(cls, sums: Sums, columns: tuple[int, ...]) -> Means:
        """Return the means over some of the columns of the final sums."""
        weight, weighted = (sums[name][:, columns].sum(axis=1) for name in ("weight", "weighted"))
        with np.errstate(divide="ignore", invalid="ignore"):
            sigma = np.where(weight > 0.0, 1.0 / np.sqrt(weight), np.nan)
            return cls(weighted / weight, sigma, sums["count"][:, columns].sum(axis=1))


def merged_rows(sums: Sums, state: CycleState) -> Arrays:
    """Return what `tables.merged_table` and the statistics want, by name, one row a reflection that was measured.

    The intensities are on the scale on which the mean lattice has the scale 1 and no B.
    """
    every, plus, minus = Means.of(sums, (0, 1, 2, 3)), Means.of(sums, (0, 1)), Means.of(sums, (2, 3))
    halves = Means.of(sums, (0, 2)), Means.of(sums, (1, 3))
    quarters = [Means.of(sums, (column,)).value for column in range(4)]
    # standard deviations that were given whole may be too small, not too large
    least = LEAST_SPREAD if state.errors.degrees else 1.0
    spread, spread_apart = (spread_of_means(sums, state.unique.inverse_d2, signs, least) for signs in ((ALL,), (PLUS, MINUS)))
    # intensities have this factor on the common scale
    factor = np.exp(state.gauge[0] - 0.5 * state.gauge[1] * state.unique.inverse_d2)
    rows: Arrays = {
        "hkl": state.unique.hkl,
        "centric": state.unique.centric,
        "multiplicity": every.count,
        "n_plus": plus.count,
        "n_minus": minus.count,
        "n_half1": halves[0].count,
        "n_half2": halves[1].count,
        "residual": sums["moments"][:, 1],
        "total": sums["moments"][:, 2],
        "n_rejected": sums["rejected"],
        "chi2": chi_squared(sums),
        "anomalous": np.stack([quarters[half] - quarters[2 + half] for half in (0, 1)], axis=1) * factor[:, None],
        "control": _control(sums) * factor[:, None],
    }
    for name, means, wider in (("", every, spread), ("_plus", plus, spread_apart), ("_minus", minus, spread_apart)):
        rows |= {f"intensity{name}": means.value * factor, f"sigma{name}": means.sigma * factor * np.sqrt(wider)}
    for i, means in enumerate(halves, start=1):
        rows |= {f"half{i}": means.value * factor, f"sigma_half{i}": means.sigma * factor * np.sqrt(spread)}
    measured = every.count > 0
    return {name: values[measured] for name, values in rows.items()}


def _control(sums: Sums) -> Floats:
    """Return the means of the halves (n, 2) of the shuffled observations."""
    with np.errstate(divide="ignore", invalid="ignore"):
        means: Floats = sums["control_weighted"] / sums["control_weight"]
    return means


ALL, PLUS, MINUS = slice(0, 4), slice(0, 2), slice(2, 4)


def spread_of_means(sums: Sums, inverse_d2: Floats, signs: Sequence[slice], least: float = LEAST_SPREAD) -> Floats:
    """Return the factor (at least ``least``) on the variance of each mean, (n,).

    ``signs`` are the columns of observations with a mean of their own: (ALL,), or (PLUS, MINUS) where Friedel differences are no
    errors.
    """
    found, due, degrees = (np.zeros(len(inverse_d2)) for _ in range(3))
    for columns in signs:
        weight, weighted, count = (sums[name][:, columns].sum(axis=1) for name in ("weight", "weighted", "count"))
        mean = np.divide(weighted, weight, out=np.zeros(len(weight)), where=weight > 0)
        square, with_value, with_square = sums["squares"][:, columns.start // 2 : columns.stop // 2].sum(axis=1).T
        found += np.maximum(with_square - 2.0 * mean * with_value + mean**2 * square, 0.0)
        # as the residuals of right weights would give: Σw² (1/w - 1/W) = W - Σw²/W
        due += weight - np.divide(square, weight, out=np.zeros(len(weight)), where=weight > 0)
        degrees += np.maximum(count - 1, 0)
    weight, weighted = sums["weight"].sum(axis=1), sums["weighted"].sum(axis=1)
    mean = np.divide(weighted, weight, out=np.zeros(len(weight)), where=weight > 0)
    many = (degrees > 0) & (due > 1e-9 * weight)
    ratio = np.divide(found, due, out=np.ones(len(weight)), where=many)
    degrees *= many
    factor = np.ones(len(weight))
    whole = (ratio @ degrees + PRIOR_DEGREES) / (degrees.sum() + PRIOR_DEGREES)
    for rows in _shells(np.flatnonzero(weight > 0), inverse_d2):
        shell = (ratio[rows] @ degrees[rows] + PRIOR_DEGREES * whole) / (degrees[rows].sum() + PRIOR_DEGREES)
        for own in np.array_split(rows[np.argsort(mean[rows], kind="stable")], CLASSES):
            factor[own] = (ratio[own] @ degrees[own] + PRIOR_DEGREES * shell) / (degrees[own].sum() + PRIOR_DEGREES)
    bounded: Floats = np.maximum(factor, least)
    return bounded


def chi_squared(sums: Sums) -> Floats:
    """Return χ² of the observations about their mean (n,), under the weights."""
    weight, weighted = sums["weight"].sum(axis=1), sums["weighted"].sum(axis=1)
    mean = np.divide(weighted, weight, out=np.zeros(len(weight)), where=weight > 0)
    chi2: Floats = np.maximum(sums["moments"][:, 0] - mean * weighted, 0.0)
    return chi2


def _shells(rows: NDArray[np.int64], inverse_d2: Floats) -> list[NDArray[np.int64]]:
    return np.array_split(rows[np.argsort(inverse_d2[rows], kind="stable")], SHELLS)


def normal_probability(deviations: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return the quantiles of a normal distribution, and those found, of counts (Z_BINS,) of deviations (Abrahams & Keve 1971).

    One pair an edge between bins that has observations on both sides: Acta Cryst. A27, 157.
    """
    from scipy.special import ndtri  # a second to import: not at every start

    total = int(deviations.sum())
    below = np.cumsum(deviations)[:-1]
    edges: Floats = Z_WIDTH * (np.arange(1.0, Z_BINS) - Z_BINS // 2)
    inside = (below > 0) & (below < total)
    return np.asarray(ndtri(below[inside] / max(total, 1)), dtype=np.float64), edges[inside]

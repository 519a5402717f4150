"""Scale and relative B of each lattice against the mean of all others, by iteration.

Fox & Holmes (1966, Acta Cryst. 20, 886) scaled batches to the mean that they form; here each observation is compared to the
mean of the *other* observations of its reflection, so that a lattice does not pull itself. The means of a reflection need its
own observations alone, and the equations of the lattices are sums over reflections: a cycle is a fold over buckets of reflections
and a step of all lattices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.partiality import resolution_bins
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.kernels.merging import group_means, observation_variances
from xfelproc.kernels.scaling import lattice_correlations, lattice_equations

Floats = NDArray[np.float64]

ROBUST = 3.0
"""Residual, in standard deviations, at which the Cauchy weight of an observation is halved."""
TOLERANCE = 1e-3
"""Largest change of a log scale at which the cycles end."""
FIRST_B_CYCLE = 2
MAX_STEP = 1.0
DAMPING = 0.7
"""Share of a step that is taken: two lattices that see each other alone would exchange their scales for ever."""
SCALE_RESTRAINT = 0.3
"""Standard deviation of the log scales by Wilson's statistics: it holds lattices that share few reflections with others."""
CORRELATION_SHELLS = 20


@dataclass(frozen=True)
class Columns:
    """Observations of whole unique reflections (all of them, or one bucket), sorted by reflection, then lattice."""

    starts: NDArray[np.int64]
    group: NDArray[np.int64]
    lattice: NDArray[np.int64]
    intensity: Floats
    fixed: Floats
    gain: Floats
    partiality: Floats
    inverse_d2: Floats
    active: NDArray[np.bool_]
    n_lattices: int

    @property
    def n_groups(self) -> int:
        """Number of unique reflections."""
        return len(self.starts) - 1

    def without(self, keep: NDArray[np.bool_]) -> Columns:
        """Return the columns with fewer active observations."""
        return replace(self, active=self.active & keep)


@dataclass(frozen=True)
class Means:
    """Means of the groups under given scales, with what they were formed from."""

    scale: Floats
    full: Floats
    variance: Floats
    numerator: Floats
    denominator: Floats
    count: NDArray[np.int64]

    @property
    def value(self) -> Floats:
        """Mean full intensity of each group, 0 where there is none."""
        return np.divide(self.numerator, self.denominator, out=np.zeros_like(self.numerator), where=self.denominator > 0)


@dataclass(frozen=True)
class LatticeScales:
    """Scale and B (Å²) of each lattice, (n_lattices,)."""

    scale: Floats
    b_factor: Floats

    def full(self, columns: Columns) -> Floats:
        """Return scale · exp(-B / 2d²) of each observation."""
        out: Floats = self.scale[columns.lattice] * np.exp(-0.5 * self.b_factor[columns.lattice] * columns.inverse_d2)
        return out


def form_means(columns: Columns, scales: LatticeScales, previous: Floats, settings: Merge) -> Means:
    """Return the weighted means of the groups; ``previous`` means (n_groups,) set the variances."""
    full = scales.full(columns)
    scale = full * columns.partiality
    variance = observation_variances(columns.starts, previous, scale, full, columns.fixed, columns.gain, *settings.first_errors)
    numerator, denominator, count = group_means(columns.starts, columns.intensity, variance, scale, columns.active)
    return Means(scale, full, variance, numerator, denominator, count)


def equations(columns: Columns, formed: Means) -> Floats:
    """Return the sums (n_lattices, 6) of `kernels.scaling.lattice_equations` over these observations."""
    sums: Floats = lattice_equations(
        columns.starts,
        columns.intensity,
        formed.variance,
        formed.scale,
        columns.active,
        columns.lattice,
        columns.inverse_d2,
        formed.numerator,
        formed.denominator,
        ROBUST,
        columns.n_lattices,
    )
    return sums


def step(
    scales: LatticeScales, sums: Floats, weights: Floats, expected: Floats, restraint: float | None
) -> tuple[LatticeScales, float]:
    """Return scales after one step and its largest change of a log scale.

    Parameters
    ----------
    scales
        Before the step.
    sums
        `equations`, added over all observations.
    weights
        (n_lattices,) observations of each lattice.
    expected
        (n_lattices,) log scales to restrain to.
    restraint
        Standard deviation of B in Å²; None leaves B alone.
    """
    uu, ub, bb, u, b, _ = sums.T
    seen = uu > 0
    uu = uu + 1.0 / SCALE_RESTRAINT**2
    u = u + (expected - np.log(scales.scale)) / SCALE_RESTRAINT**2
    safe = np.where(seen, uu, 1.0)
    if restraint is None:
        step_u, step_b = np.where(seen, u / safe, 0.0), np.zeros(len(uu))
    else:
        bb = bb + 1.0 / restraint**2
        b = b - scales.b_factor / restraint**2
        determinant = np.where(seen, uu * bb - ub * ub, 1.0)
        step_u = np.where(seen, (bb * u - ub * b) / determinant, 0.0)
        step_b = np.where(seen, (uu * b - ub * u) / determinant, 0.0)
    # u is the relative change of the scale: as a logarithm large steps stay positive
    log_step = DAMPING * np.clip(np.log1p(np.maximum(step_u, -0.6)), -MAX_STEP, MAX_STEP)
    log_scale = np.log(scales.scale) + log_step
    b_factor = scales.b_factor + DAMPING * np.clip(step_b, -20.0, 20.0)
    share = weights * seen
    total = max(float(share.sum()), 1e-300)
    centred = log_scale - float(share @ log_scale) / total
    b_factor = b_factor - float(share @ b_factor) / total
    change = np.abs(centred - np.log(scales.scale))[seen]
    return LatticeScales(np.exp(centred), b_factor), float(change.max(initial=0.0))


def typical_intensities(values: Floats, inverse_d2: Floats, limits: tuple[float, float]) -> Floats:
    """Return the typical mean (CORRELATION_SHELLS,) of the groups of each resolution bin, by which correlations are normalised."""
    bins = resolution_bins(inverse_d2, CORRELATION_SHELLS, limits)
    typical = np.ones(CORRELATION_SHELLS)
    for b in range(CORRELATION_SHELLS):
        rows = bins == b
        if rows.any():
            typical[b] = max(float(np.median(values[rows])), 1e-3 * float(np.mean(np.abs(values[rows]))), 1e-12)
    return typical


def correlation_sums(columns: Columns, means: Means, typical: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Return the moments (n_lattices, 6) of `kernels.scaling.lattice_correlations`, and the number of pairs of each lattice.

    ``typical`` is the intensity (n_groups,) by which each group is normalised.
    """
    sums: Floats = lattice_correlations(
        columns.starts,
        columns.intensity,
        means.variance,
        means.scale,
        columns.active,
        columns.lattice,
        means.numerator,
        means.denominator,
        typical,
        columns.n_lattices,
    )
    shared = columns.active & (means.count[columns.group] > 1)
    return sums, np.bincount(columns.lattice[shared], minlength=columns.n_lattices)


def correlations(sums: Floats, pairs: NDArray[np.int64]) -> Floats:
    """Return the CC of each lattice's observations to the means of the others (NaN: fewer than 3 to compare).

    Weighted, of intensities normalised by resolution and compressed by asinh: a wrong lattice has 0, whatever outliers it has.
    """
    w, x, y, xx, xy, yy = sums.T
    with np.errstate(all="ignore"):
        covariance = xy / w - x * y / w**2
        cc: Floats = covariance / np.sqrt((xx / w - x**2 / w**2) * (yy / w - y**2 / w**2))
    return np.where(pairs >= 3, cc, np.nan)

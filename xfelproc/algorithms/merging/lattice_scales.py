"""Scale and relative B of each lattice against the mean of all others, by iteration.

Fox & Holmes (1966, Acta Cryst. 20, 886) scaled batches to the mean that they form; here each observation is compared to the
mean of the *other* observations of its reflection, so that a lattice does not pull itself. One cycle is a fold over the
observations (means) and an update of the lattices (normal equations): both run bucket by bucket if they must.
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
    """Scale and B (Å²) of each lattice, (n_lattices,), and the cycles they took."""

    scale: Floats
    b_factor: Floats
    cycles: int = 0
    converged: bool = True

    def full(self, columns: Columns) -> Floats:
        """Return scale · exp(-B / 2d²) of each observation."""
        out: Floats = self.scale[columns.lattice] * np.exp(-0.5 * self.b_factor[columns.lattice] * columns.inverse_d2)
        return out


def form_means(columns: Columns, scales: LatticeScales, previous: Floats, settings: Merge) -> Means:
    """Return the weighted means of the groups; ``previous`` means (n_groups,) set the variances."""
    full = scales.full(columns)
    scale = full * columns.partiality
    variance = observation_variances(
        columns.starts, previous, scale, full, columns.fixed, columns.gain, settings.error_intensity, settings.error_partiality
    )
    numerator, denominator, count = group_means(columns.starts, columns.intensity, variance, scale, columns.active)
    return Means(scale, full, variance, numerator, denominator, count)


def refine_scales(columns: Columns, start: LatticeScales, first_means: Floats, settings: Merge) -> tuple[LatticeScales, Floats]:
    """Return refined scales and the means of the groups under them.

    Parameters
    ----------
    columns
        All observations.
    start
        Scales to begin with.
    first_means
        (n_groups,) expected intensities for the first weights.
    settings
        Cycles, restraint of B, error terms.
    """
    scales, means = start, first_means
    weights = np.bincount(columns.lattice[columns.active], minlength=columns.n_lattices).astype(np.float64)
    means = form_means(columns, scales, means, settings).value
    for cycle in range(settings.max_cycles):
        formed = form_means(columns, scales, means, settings)
        means = formed.value
        with_b = settings.b_factor and cycle >= FIRST_B_CYCLE
        sums = lattice_equations(
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
        scales, largest = _update(scales, sums, weights, np.log(start.scale), settings.b_restraint if with_b else None)
        if largest < TOLERANCE and (with_b or not settings.b_factor):
            return replace(scales, cycles=cycle + 1), form_means(columns, scales, means, settings).value
    return replace(scales, cycles=settings.max_cycles, converged=False), form_means(columns, scales, means, settings).value


def _update(
    scales: LatticeScales, sums: Floats, weights: Floats, expected: Floats, restraint: float | None
) -> tuple[LatticeScales, float]:
    """Return scales after one step and its largest change of a log scale.

    ``expected`` are log scales to restrain to; ``restraint`` (Å²) None leaves B alone.
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


def correlations(columns: Columns, means: Means) -> Floats:
    """Return the CC of each lattice's observations to the means of the others (NaN: fewer than 3 to compare).

    Weighted, of intensities normalised by resolution and compressed by asinh: a wrong lattice has 0, whatever outliers it has.
    """
    bins = resolution_bins(columns.inverse_d2[columns.starts[:-1]], CORRELATION_SHELLS)
    typical = np.ones(columns.n_groups)
    for b in range(CORRELATION_SHELLS):
        rows = bins == b
        if rows.any():
            typical[rows] = max(float(np.median(means.value[rows])), 1e-3 * float(np.mean(np.abs(means.value[rows]))), 1e-12)
    sums = lattice_correlations(
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
    pairs = np.bincount(columns.lattice[shared], minlength=columns.n_lattices)
    w, x, y, xx, xy, yy = sums.T
    with np.errstate(all="ignore"):
        covariance = xy / w - x * y / w**2
        cc: Floats = covariance / np.sqrt((xx / w - x**2 / w**2) * (yy / w - y**2 / w**2))
    return np.where(pairs >= 3, cc, np.nan)

"""The error model of observations, fitted to the differences of observations of the same reflection.

Its form is that of Evans (2011, Acta Cryst. D67, 282) and Brewster et al. (2019, Acta Cryst. D75, 959), counting times a factor
plus a part proportional to the intensity, with terms for the errors of partiality. It is fitted by the likelihood of pairs
(Mittan-Moreau et al. 2025, Acta Cryst. D81, "Robust error calibration for serial crystallography"): no mean enters, so that few
observations a reflection do no harm. The pairs come from a sample of fixed size, taken by a hash, that is added up over blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.reduction import mix
from xfelproc.kernels.error_model import N_TERMS, SAMPLE_COLUMNS, add_sample, components, pair_likelihood

Floats = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]

TERMS = ("counting", "relative", "partiality", "position", "width")
GAUSSIAN = 1000.0
"""ν beyond which Student's distribution is taken for the normal one."""
USUAL = np.log([1.0, 0.03**2, 0.03**2, 0.03**2, 0.03**2, 30.0])
"""Logarithms of terms and ν where pairs say nothing, and their standard deviations about these."""
SPREAD = np.array([1.0, 3.0, 3.0, 3.0, 3.0, 2.0])
LIMITS = [(np.log(1e-8), np.log(1e4))] * N_TERMS + [(np.log(1.5), np.log(GAUSSIAN))]
START = 0.01**2
"""No term begins below this: from 0 none grows."""
SAMPLED_REFLECTIONS = 2048
SLOTS = 32
SAMPLED_EACH = 12.0
"""Observations of a sampled reflection that are offered to its slots; those that share a slot are lost."""
MIN_DEGREES = 100
"""Independent differences that a fit needs."""


@dataclass(frozen=True)
class ErrorModel:
    """Variances of the terms of `xfelproc.kernels.error_model`, and how the lattices differ.

    ``terms`` (5,) are a factor on counting variances, and the squares of the relative errors: of the intensity; of the full
    intensity; by an error of the excitation error in widths; by a relative error of the width. ``nu`` are the degrees of freedom
    of the deviations' distribution. ``slope`` makes the errors beside counting of a lattice of correlation cc grow as
    ``((1 - cc) / (1 - median cc))^slope``. ``degrees`` are the independent differences that it was fitted to, 0: not fitted.
    """

    terms: Floats
    nu: float = GAUSSIAN
    degrees: int = 0

    @classmethod
    def initial(cls, relative: float, partiality: float) -> ErrorModel:
        """Return counting as it is, a relative error of the observation, and one of its full intensity."""
        return cls(np.array([1.0, relative**2, partiality**2, 0.0, 0.0]))

    @property
    def named(self) -> dict[str, float]:
        """The terms as standard deviations by name (counting: the factor on σ), with ``nu`` and ``degrees``."""
        return dict(zip(TERMS, np.sqrt(self.terms).tolist(), strict=True)) | {"nu": self.nu, "degrees": self.degrees}

    def arrays(self) -> Arrays:
        """Return it as named arrays; `from_arrays` takes them back."""
        return {"terms": self.terms, "nu": np.array(self.nu), "degrees": np.array(self.degrees)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ErrorModel:
        """Return the model that `arrays` came from."""
        return cls(np.asarray(arrays["terms"]), float(arrays["nu"]), int(arrays["degrees"]))


NO_ERRORS = ErrorModel.initial(0.0, 0.0)
"""Counting alone."""


@dataclass(frozen=True)
class SamplePlan:
    """Which observations are sampled: row of each unique reflection (-1: none), and the share of its observations of I(+)."""

    row: NDArray[np.int32]
    share: Floats

    @classmethod
    def of(cls, count: NDArray[np.int32], centric: NDArray[np.bool_]) -> SamplePlan:
        """Return the plan for unique reflections of which there are ``count`` (n,) observations, I(+) and I(-) together."""
        twice = np.flatnonzero(count > 1)
        order = np.argsort(mix(twice.astype(np.uint64)), kind="stable")
        chosen = twice[order[:SAMPLED_REFLECTIONS]]
        row = np.full(len(count), -1, dtype=np.int32)
        row[chosen] = np.arange(len(chosen))
        plus = np.where(centric, 1.0, 0.5) * np.maximum(count, 1)
        return cls(row, np.minimum(SAMPLED_EACH / plus, 1.0))

    @property
    def n_rows(self) -> int:
        """Reflections that are sampled."""
        return int(self.row.max(initial=-1)) + 1


def sample_sums(
    plan: SamplePlan,
    identity: NDArray[np.int64],
    starts: NDArray[np.int64],
    group: NDArray[np.int32],
    columns: tuple[NDArray[np.float32], ...],
    quality: Floats,
    used: NDArray[np.bool_],
    plus: NDArray[np.bool_],
    min_partiality: float,
) -> Arrays:
    """Return the sample of a block of lattices; those of all blocks add up.

    Parameters
    ----------
    plan
        What to take.
    identity, quality, used
        (m,) number of each lattice in the run, factor on its errors beside counting, whether it is merged.
    starts, group
        Observations of each lattice (m + 1,); unique reflection of each observation (n,).
    columns
        Intensity, fixed variance, gain of the variance, scale with B, partiality, each (n,).
    plus
        (n,) of I(+) or centric: the others stay out, lest Friedel differences be taken for errors.
    min_partiality
        Less partial observations are not merged.
    """
    out = np.zeros((plan.n_rows, SLOTS, SAMPLE_COLUMNS), dtype=np.float32)
    intensity, fixed, gain, full, partiality = columns
    add_sample(
        starts,
        identity,
        group,
        intensity,
        fixed,
        gain,
        full,
        partiality,
        quality,
        used,
        plus,
        min_partiality,
        plan.row,
        plan.share,
        out,
    )
    return {"sample": out}


def fit_errors(sample: NDArray[np.float32], plan: SamplePlan, expected: Floats, start: ErrorModel, cut: float) -> ErrorModel:
    """Return the model under which the pairs of the sample are likeliest; ``start`` where there are too few.

    Parameters
    ----------
    sample
        (rows, SLOTS, SAMPLE_COLUMNS) of `sample_sums` over all blocks.
    plan
        What was sampled.
    expected
        (n_unique,) full intensities.
    start
        Terms to begin with.
    cut
        Standard deviations from the expected beyond which an observation is an outlier, and no part of the model; 0: none is.
    """
    pairs = _Pairs.of(sample, plan, expected)
    if pairs.degrees < MIN_DEGREES:
        return start
    model = _likeliest(pairs, start)
    inside = pairs.within(model, cut)
    if cut == 0 or np.all(inside):
        return model
    return _likeliest(pairs.select(inside), model)


@dataclass(frozen=True)
class _Pairs:
    """Sampled observations by reflection, bounded by ``starts``: what is formed once for all steps of a fit."""

    starts: NDArray[np.int64]
    value: Floats
    parts: Floats
    expected: Floats

    @classmethod
    def of(cls, sample: NDArray[np.float32], plan: SamplePlan, expected: Floats) -> _Pairs:
        """Return those that are alone in their slot."""
        alone = sample[:, :, 0] == 1.0
        columns = sample[alone].astype(np.float64)
        reflection = np.empty(plan.n_rows, dtype=np.int64)
        chosen = np.flatnonzero(plan.row >= 0)
        reflection[plan.row[chosen]] = chosen
        count = np.count_nonzero(alone, axis=1)
        full = expected[np.repeat(reflection, count)]
        parts = np.empty((len(columns), N_TERMS))
        components(columns, full, parts)
        value = columns[:, 1] / (columns[:, 4] * columns[:, 5])
        return cls(np.concatenate([[0], np.cumsum(count)]), value, parts, full)

    @property
    def degrees(self) -> int:
        """Independent differences."""
        return int(np.sum(np.maximum(np.diff(self.starts) - 1, 0)))

    def within(self, model: ErrorModel, cut: float) -> NDArray[np.bool_]:
        """Return which are within ``cut`` standard deviations of what is expected."""
        near: NDArray[np.bool_] = (self.value - self.expected) ** 2 <= cut**2 * (self.parts @ model.terms)
        return near

    def select(self, keep: NDArray[np.bool_]) -> _Pairs:
        """Return some observations."""
        starts = np.concatenate([[0], np.cumsum(keep)])[self.starts]
        return _Pairs(starts, self.value[keep], self.parts[keep], self.expected[keep])


def _likeliest(pairs: _Pairs, start: ErrorModel) -> ErrorModel:
    """Return the likeliest terms and ν of pairs, from ``start``; their logarithms are held to what is usual."""
    first = np.log(np.append(np.maximum(start.terms, START), min(start.nu, 30.0)))
    weight = float(np.sum(np.maximum(np.diff(pairs.starts) - 1, 0)))

    def negative(logs: Floats) -> tuple[float, Floats]:
        terms, nu = np.exp(logs[:-1]), float(np.exp(logs[-1]))
        gradient = np.empty(N_TERMS)
        total, by_nu = pair_likelihood(pairs.starts, pairs.value, pairs.parts, terms, nu, gradient)
        constant, slope = _student_constant(nu)
        away = (logs - USUAL) / SPREAD
        slopes = np.append(gradient * terms, (by_nu - weight * slope) * nu) + away / SPREAD
        return total - weight * constant + 0.5 * float(away @ away), slopes

    from scipy.optimize import minimize  # a second to import: not at every start

    found = minimize(negative, first, jac=True, method="L-BFGS-B", bounds=LIMITS, options={"maxiter": 60, "ftol": 1e-6})
    return ErrorModel(np.exp(found.x[:-1]), float(np.exp(found.x[-1])), pairs.degrees)


def _student_constant(nu: float) -> tuple[float, float]:
    """Return the logarithm of the factor of Student's density, and its derivative with ν."""
    from scipy.special import digamma, gammaln  # as above

    value = gammaln(0.5 * (nu + 1.0)) - gammaln(0.5 * nu) - 0.5 * np.log(np.pi * nu)
    return float(value), float(0.5 * (digamma(0.5 * (nu + 1.0)) - digamma(0.5 * nu) - 1.0 / nu))

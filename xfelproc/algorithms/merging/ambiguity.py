"""Indexing ambiguity resolved: each lattice is put into the setting in which it agrees with the others, or with a reference.

The agreement of all pairs of lattices is not needed (Brehm & Diederichs 2014, Acta Cryst. D70, 101; Gildea & Winter 2018, Acta
Cryst. D74, 405): each is compared to the mean of the others in the settings that they are believed to be in, and moves, so that
time and memory grow with the number of observations. Beliefs are probabilities, and the mean of few observations is drawn to
Wilson's, so that a beginning at random is no harm: order grows from any chance majority. Some starts on the best lattices are
compared by their evidence; then all lattices join (`ambiguity_solve`).

Whether anything was resolved is judged by reflections that had no say: three quarters of them settle the lattices alone, and the
last quarter must agree better in these settings than in any others. Noise does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.ambiguity_data import Choices, Normalized
from xfelproc.algorithms.merging.ambiguity_operators import Settings
from xfelproc.algorithms.merging.ambiguity_settings import Ambiguity
from xfelproc.algorithms.merging.ambiguity_solve import (
    FIRST_SPREAD,
    Floats,
    Judged,
    Mean,
    judged,
    judged_apart,
    likeliest_spread,
    solve,
)
from xfelproc.algorithms.merging.reduction import mix

SIGNIFICANT = 5.0
"""Standard deviations by which reflections that had no say must favour the settings found."""
UNANIMOUS = 0.8
"""Where lattices are so few that they could not get so far: the share of √n that they must reach, all agreeing being √n."""
HELD_BACK = 4
"""One in so many orbits of reflections has no say in the test; it is judged in as many parts twice over."""
LARGEST_GAIN = 20.0
"""Log-likelihood that a lattice, or a part of it, contributes to the test at most."""


class Doubt(IntEnum):
    """Why a lattice's setting is not known."""

    NONE = 0
    EMPTY = 1
    """It has no usable reflection that settings exchange."""
    UNDECIDED = 2
    """Settings are nearly as likely as each other."""
    UNRELATED = 3
    """It agrees with the others in no setting."""


@dataclass(frozen=True, eq=False)
class Placed:
    """Settings of lattices.

    Parameters
    ----------
    setting, probability
        (n,) of each lattice; 0 and NaN of a lattice without observations.
    margin
        (n,) difference of the correlations (Fisher's z) in the best and in the next setting, in standard deviations.
    correlation
        (n,) to the mean of the others in the setting.
    count
        (n,) observations that had a say.
    doubt
        (n,) `Doubt`.
    """

    setting: NDArray[np.int64]
    probability: Floats
    margin: Floats
    correlation: Floats
    count: NDArray[np.int64]
    doubt: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Resolution:
    """What was found of an ambiguity.

    Parameters
    ----------
    settings
        Those among which was chosen; fewer than were asked for where some cannot be told apart.
    same
        Names of operators that the intensities do not tell apart.
    placed
        The lattices. If nothing was resolved, all are in the first setting.
    significance
        Standard deviations by which reflections that had no say favour the settings found over others.
    resolved
        Whether that is enough.
    mean
        Mean of the lattices, for others to be compared to.
    """

    settings: Settings
    same: tuple[str, ...]
    placed: Placed
    significance: float
    resolved: bool
    mean: Mean


def resolve(data: Normalized, settings: Settings, knobs: Ambiguity, reference: Mean | None = None, seed: int = 0) -> Resolution:
    """Return the settings of lattices that agree best with each other, or with a reference.

    Parameters
    ----------
    data
        E² of the lattices, from `ambiguity_data.normalized`.
    settings
        What the lattices choose among, two or more.
    knobs
        Section ``[merge.ambiguity]``.
    reference
        From `ambiguity_reference.reference_mean`.
    seed
        Of the starts.
    """
    choices = Choices.of(data, settings)
    scores = [0.0] * len(settings.differences())
    if len(choices.unique):
        scores = _test(choices, settings, _solver(knobs, reference, seed), reference)
    operators = [int(rows[0, 0]) for rows in settings.differences()]
    doubtful = [number for number, score in zip(operators, scores, strict=True) if score < SIGNIFICANT]
    fewer = settings.merged(doubtful) if doubtful else settings
    if len(fewer) == 1:
        return _unresolved(choices, settings, max(scores))
    if doubtful:
        found = resolve(data, fewer, knobs, reference, seed)
        return replace(found, same=(*(settings.names[n] for n in doubtful), *found.same))
    share, mean = _solver(knobs, reference, seed)(choices)
    if reference is None:
        share, mean = _named_by_majority(choices, settings, share, mean)
    placed = _placed(judged_apart(choices, mean, share if reference is None else None), knobs)
    return Resolution(settings, (), placed, min(scores), True, mean)


def place(data: Normalized, found: Resolution, knobs: Ambiguity) -> Placed:
    """Return the settings of lattices that are not among those which an ambiguity was resolved with."""
    choices = Choices.of(data, found.settings)
    if not found.resolved:
        return _nowhere(choices)
    return _placed(judged_apart(choices, found.mean.at(choices.keys)), knobs)


Solver = Callable[[Choices], tuple[Floats, Mean]]


def _solver(knobs: Ambiguity, reference: Mean | None, seed: int) -> Solver:
    """Return what finds shares (n, k) of lattices in settings and the mean that they are to be compared to."""

    if reference is None:
        return lambda choices: solve(choices, knobs.starts, seed)

    def against(choices: Choices) -> tuple[Floats, Mean]:
        mean = reference.at(choices.keys)
        mean = replace(mean, spread=likeliest_spread(choices, None, mean))
        found = judged(choices, mean)
        usable = (found.count > 0) & ~found.unrelated
        return np.where(usable[:, None], found.probability, 0.0), mean

    return against


def _test(choices: Choices, settings: Settings, solver: Solver, reference: Mean | None) -> list[float]:
    """Return, for each difference of settings, by how many σ reflections that had no say are in favour of those found."""
    ticket = mix(choices.orbit.astype(np.uint64)) % np.uint64(2 * HELD_BACK * HELD_BACK)
    ticket = ticket[choices.unique]
    say = ticket >= 2 * HELD_BACK
    differences = settings.differences()
    if not say.any() or say.all():
        return [0.0] * len(differences)
    share, mean = solver(choices.part(say))
    chosen, taken = share.argmax(axis=1), share.max(axis=1) > 0
    gains = np.zeros((len(differences), 2 * HELD_BACK, choices.n_lattices))
    for part in range(2 * HELD_BACK):
        others = choices.part(ticket == part)
        found = (
            judged(others, Mean.of(others, share, mean.spread), share)
            if reference is None
            else judged(others, replace(reference.at(others.keys), spread=mean.spread))
        )
        own = np.take_along_axis(found.likelihood, chosen[:, None], axis=1)[:, 0]
        for number, alternatives in enumerate(differences):
            other = np.take_along_axis(found.likelihood, alternatives[chosen], axis=1).mean(axis=1)
            gains[number, part] = np.where(taken & (found.count > 0), own - other, 0.0)
    return [_significance(gain) for gain in gains]


def _significance(gains: Floats) -> float:
    """Return by how many σ gains (parts, lattices) of log-likelihood are above 0, by their signs and scatter alone.

    The scatter of parts and that of whole lattices both must bear it out, where n lattices that all agree (√n σ) are enough.
    """
    parts, lattices = _in_sigma(gains), _in_sigma(gains.sum(axis=0))
    n = int(np.count_nonzero(np.any(gains != 0.0, axis=0)))
    return min(parts, lattices * max(1.0, SIGNIFICANT / (UNANIMOUS * math.sqrt(max(n, 1)))))


def _in_sigma(gains: Floats) -> float:
    limited = np.clip(gains, -LARGEST_GAIN, LARGEST_GAIN)
    return float(np.sum(limited)) / math.sqrt(max(float(np.sum(limited**2)), 1e-12))


def _named_by_majority(choices: Choices, settings: Settings, share: Floats, mean: Mean) -> tuple[Floats, Mean]:
    """Rename the settings, as nothing tells these names apart, so that most lattices stay as they were indexed."""
    names = settings.relabelings()
    stay = [share[:, int(np.flatnonzero(row == 0)[0])].sum() for row in names]
    row = names[int(np.argmax(stay))]
    renamed = np.zeros_like(share)
    renamed[:, row] = share
    return renamed, Mean.of(choices, renamed, mean.spread)


def _placed(found: Judged, knobs: Ambiguity) -> Placed:
    probability = found.probability
    setting, best = probability.argmax(axis=1), probability.max(axis=1)
    empty = found.count == 0
    doubt = np.select(
        [empty, found.unrelated, best < knobs.min_probability], [Doubt.EMPTY, Doubt.UNRELATED, Doubt.UNDECIDED], Doubt.NONE
    )
    own = np.take_along_axis(found.correlation, setting[:, None], axis=1)[:, 0]
    return Placed(
        setting=np.where(empty, 0, setting),
        probability=np.where(empty, np.nan, best),
        margin=_margin(found, setting),
        correlation=own,
        count=found.count,
        doubt=doubt.astype(np.uint8),
    )


def _margin(found: Judged, setting: NDArray[np.int64]) -> Floats:
    """Return by how many σ the correlation in the chosen setting is above that in the next best (Fisher's transformation)."""
    z = np.arctanh(np.clip(found.correlation, -0.999999, 0.999999))
    own = np.take_along_axis(z, setting[:, None], axis=1)[:, 0]
    others = np.where(np.arange(z.shape[1]) == setting[:, None], -np.inf, np.nan_to_num(z, nan=-np.inf))
    with np.errstate(invalid="ignore"):
        margin: Floats = (own - others.max(axis=1)) * np.sqrt(np.maximum(found.count - 3, 0) / 2.0)
    return np.where(np.isfinite(margin), margin, np.nan)


def _unresolved(choices: Choices, settings: Settings, significance: float) -> Resolution:
    mean = Mean(choices.keys, np.zeros((choices.n_reflections, 2)), FIRST_SPREAD)
    return Resolution(settings, (), _nowhere(choices), significance, False, mean)


def _nowhere(choices: Choices) -> Placed:
    n, count = choices.n_lattices, np.diff(choices.data.starts)
    nothing = np.full(n, np.nan)
    doubt = np.where(count == 0, Doubt.EMPTY, Doubt.UNDECIDED).astype(np.uint8)
    return Placed(np.zeros(n, dtype=np.int64), nothing, nothing, nothing, count, doubt)


def agreement(settings: Settings, first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Return the share of lattices that are in the same setting in two resolutions, whatever the settings are called."""
    return max(float(np.mean(row[first] == second)) for row in settings.relabelings())

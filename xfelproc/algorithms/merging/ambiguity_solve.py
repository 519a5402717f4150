"""Lattices settled among each other: starts on the best of them, then rounds over all, each against the mean of the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.ambiguity_data import Choices
from xfelproc.kernels.ambiguity import judge, settle, sums_of

Floats = NDArray[np.float64]

PRIOR = 1.0
"""Inverse of the variance of E² of acentric reflections (Wilson 1949, Acta Cryst. 2, 318)."""
UNRELATED = 0.02
"""Share of lattices that are expected to have nothing to do with the others."""
SPREADS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Relative variances of E² beside the known ones among which is chosen: scales, partialities, all else that no model knows."""
FIRST_SPREAD = 0.4
OWN_SPREADS = (0.0625, 0.25, 1.0, 4.0)
"""Times the spread of all that of a lattice may be."""
KERNEL_OBSERVATIONS = 300_000
KERNEL_ROUNDS = 12
MOST_ROUNDS = 40
SETTLED = 1e-3
"""Share of lattices that may still move when a resolution is done."""


@dataclass(frozen=True, eq=False)
class Mean:
    """E² - 1 of reflections: ``sums`` (n, 2), see `kernels.ambiguity`, of the sorted ``keys``; ``spread`` is what lattices had."""

    keys: NDArray[np.int64]
    sums: Floats
    spread: float

    @classmethod
    def of(cls, choices: Choices, share: Floats, spread: float) -> Mean:
        """Return the mean of lattices by their shares (n_lattices, k) in the settings."""
        return cls(choices.keys, sums_of(*choices.columns, share, spread, choices.n_reflections), spread)

    def at(self, keys: NDArray[np.int64]) -> Mean:
        """Return the mean at other reflections; nothing is known of those that are not here."""
        sums = np.zeros((len(keys), 2))
        if len(self.keys):
            place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
            known = self.keys[place] == keys
            sums[known] = self.sums[place[known]]
        return Mean(keys, sums, self.spread)


@dataclass(frozen=True, eq=False)
class Judged:
    """Lattices against the mean of the others.

    ``likelihood`` (n, k + 1) is the logarithm of it in each setting, and for unrelated intensities; ``correlation`` (n, k) that
    of E² to the mean of the others; ``count`` (n,) observations.
    """

    likelihood: Floats
    correlation: Floats
    count: NDArray[np.int64]

    @property
    def probability(self) -> Floats:
        """(n, k) probability of each setting, given that it is one of them."""
        k = self.correlation.shape[1]
        chance = np.exp(self.likelihood[:, :k] - self.likelihood[:, :k].max(axis=1, keepdims=True))
        shares: Floats = chance / chance.sum(axis=1, keepdims=True)
        return shares

    @property
    def unrelated(self) -> NDArray[np.bool_]:
        """(n,) whether a lattice agrees with the others in no setting better than by chance."""
        related = self.likelihood[:, :-1].max(axis=1) + np.log1p(-UNRELATED)
        found: NDArray[np.bool_] = self.likelihood[:, -1] + np.log(UNRELATED) > related
        return found


def judged(choices: Choices, mean: Mean, share: Floats | None = None, wider: float = 1.0) -> Judged:
    """Compare lattices to a mean, without what they have in it themselves by their ``share`` (n, k); None: nothing.

    ``wider``: times the spread of all their own may be.
    """
    n, k = choices.n_lattices, choices.n_settings
    own = np.zeros((n, k)) if share is None else share
    likelihood, moments = np.zeros((n, k + 1)), np.zeros((n, k, 6))
    judge(*choices.columns, mean.spread, wider * mean.spread, PRIOR, own, mean.sums.copy(), likelihood, moments)
    w, x, y, xx, xy, yy = np.moveaxis(moments, 2, 0)
    scatter = (w * xx - x**2) * (w * yy - y**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.where(scatter > 0, (w * xy - x * y) / np.sqrt(np.maximum(scatter, 1e-300)), np.nan)
    return Judged(likelihood, correlation, np.diff(choices.data.starts))


def judged_apart(choices: Choices, mean: Mean, share: Floats | None = None) -> Judged:
    """Compare lattices to a mean as `judged` does, each with the spread that is likeliest for it: not all are measured as well."""
    found = [judged(choices, mean, share, wider) for wider in OWN_SPREADS]
    related = np.array([np.logaddexp.reduce(one.likelihood[:, :-1], axis=1) for one in found])
    likeliest = np.array([one.likelihood for one in found])[related.argmax(axis=0), np.arange(choices.n_lattices)]
    likeliest[:, -1] = np.max([one.likelihood[:, -1] for one in found], axis=0)
    return Judged(likeliest, found[0].correlation, found[0].count)


def solve(choices: Choices, n_starts: int, seed: int) -> tuple[Floats, Mean]:
    """Return the shares (n, k) of lattices in the settings, and their mean.

    Parameters
    ----------
    choices
        What the lattices choose among.
    n_starts
        The first from the lattices as they are, others from settings drawn by ``seed``.
    """
    rng = np.random.default_rng(seed)
    best = _best_lattices(choices)
    kernel = choices.first(best)
    _, share = max((_start(kernel, number, rng) for number in range(n_starts)), key=lambda found: found[0])
    spread = likeliest_spread(kernel, share)
    n, k = choices.n_lattices, choices.n_settings
    shares, likelihood = np.zeros((n, k)), np.zeros((n, k + 1))
    shares[best] = share
    mean = Mean.of(choices, shares, spread)
    waiting = np.setdiff1d(np.flatnonzero(np.diff(choices.data.starts) > 0), best)
    everyone = np.concatenate([best, waiting])
    for _ in range(MOST_ROUNDS):
        before = shares.argmax(axis=1)
        settle(everyone, *choices.columns, spread, PRIOR, UNRELATED, shares, mean.sums, likelihood)
        if np.mean(shares.argmax(axis=1) != before) <= SETTLED:
            break
    return shares, Mean.of(choices, shares, spread)


def likeliest_spread(choices: Choices, share: Floats | None, mean: Mean | None = None) -> float:
    """Return the likeliest of the spreads; lattices are compared to the mean of their ``share``, or to one given."""

    def evidence(spread: float) -> float:
        if mean is None:
            found = judged(choices, Mean.of(choices, np.asarray(share), spread), share)
        else:
            found = judged(choices, Mean(mean.keys, mean.sums, spread))
        # lattices that have nothing to do with the others must not widen the spread of those that have
        related = np.logaddexp.reduce(found.likelihood[:, :-1], axis=1) + np.log((1.0 - UNRELATED) / choices.n_settings)
        return float(np.sum(np.logaddexp(related, found.likelihood[:, -1] + np.log(UNRELATED))))

    return max(SPREADS, key=evidence)


def _best_lattices(choices: Choices) -> NDArray[np.int64]:
    """Return the lattices that know most, the best first, of no more than 300 000 observations."""
    starts = choices.data.starts
    known = np.concatenate([[0.0], np.cumsum(1.0 / (choices.data.variance.astype(np.float64) + FIRST_SPREAD))])
    order = np.argsort(-(known[starts[1:]] - known[starts[:-1]]), kind="stable")
    counts = np.diff(starts)[order]
    chosen: NDArray[np.int64] = order[(np.cumsum(counts) - counts < KERNEL_OBSERVATIONS) & (counts > 0)]
    return chosen


def _start(kernel: Choices, number: int, rng: np.random.Generator) -> tuple[float, Floats]:
    """Return evidence and shares of the lattices after a start."""
    n, k = kernel.n_lattices, kernel.n_settings
    share, likelihood = np.zeros((n, k)), np.zeros((n, k + 1))
    share[np.arange(n), 0 if number == 0 else rng.integers(k, size=n)] = 1.0
    sums = Mean.of(kernel, share, FIRST_SPREAD).sums
    evidence = -np.inf
    for _ in range(KERNEL_ROUNDS):
        before = share.argmax(axis=1)
        evidence = settle(rng.permutation(n), *kernel.columns, FIRST_SPREAD, PRIOR, UNRELATED, share, sums, likelihood)
        if np.mean(share.argmax(axis=1) != before) <= SETTLED:
            break
    return evidence, share

"""The intensities that lattices are compared to: the merged mean of the cycle before, or given ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]
Sums = dict[str, NDArray[Any]]
"""Arrays by name that are added over blocks."""

SHARE = 1.2
"""Times the mean χ² of its reflection that an outlier has at least: of many that deviate the worst go, not the others with them."""
FEWEST = 3
"""Observations of a reflection that tell which of them is wrong."""


def add_sums(first: Sums, second: Sums) -> Sums:
    """Return the sums of both."""
    return {name: first[name] + second[name] for name in first}


@dataclass(frozen=True)
class Reference:
    """Full intensities of the unique reflections, (n,).

    ``weight`` is the sum of the weights of the observations in ``intensity``, 0 where there is none; ``count`` is their number.
    ``expected`` (never negative) gives the variances of the next weights, ``limit`` the squared deviations beyond which the
    next observations are outliers (negative: the reflection was never measured). ``last_expected`` and ``last_limit`` are those
    with which ``weight`` was formed, so that a lattice's own part can be taken out exactly.
    """

    intensity: Floats
    weight: Floats
    count: NDArray[np.int32]
    expected: Floats
    limit: Floats
    last_expected: Floats
    last_limit: Floats
    chi2: Floats
    """Σw(J - mean)² of the observations in ``intensity``."""
    factor: Floats
    """Brings the intensities to the scale on which the lattices began: scales are compared to noisy means, and would all
    shrink a little from cycle to cycle."""

    def __len__(self) -> int:
        return len(self.intensity)

    @property
    def variance(self) -> Floats:
        """Variance of the intensities, infinite where there is none."""
        inverse: Floats = np.divide(1.0, self.weight, out=np.full(len(self), np.inf), where=self.weight > 0)
        return inverse

    @classmethod
    def nothing(cls, typical: Floats, cut: float) -> Reference:
        """Return what is known before anything was merged: the ``typical`` intensity at the resolution of each (n,)."""
        zeros, limit = np.zeros(len(typical)), np.full(len(typical), -_square(cut))
        return cls(zeros, zeros, zeros.astype(np.int32), typical, limit, typical, limit, zeros, np.ones(len(typical)))

    def next(self, sums: Sums, typical: Floats, cut: float, factor: Floats) -> Reference:
        """Return the reference of the sums over all blocks that were formed with this one (`cycle.accumulate_block`)."""
        weight, count = sums["weight"], sums["count"]
        intensity = np.divide(sums["weighted"], weight, out=np.zeros(len(self)), where=weight > 0)
        chi2 = np.maximum(sums["squared"] - weight * intensity**2, 0.0)
        # by Wilson's law the intensity is typical ± typical: of few observations that says something
        wilson = 1.0 / np.maximum(typical, 1e-300) ** 2
        expected = np.maximum((weight * intensity + wilson * typical) / (weight + wilson), 0.0)
        limit = np.maximum(_square(cut), SHARE * chi2 / np.maximum(count, 1))
        limit = np.where(count >= FEWEST, limit, -_square(cut))
        return Reference(intensity, weight, count.astype(np.int32), expected, limit, self.expected, self.limit, chi2, factor)

    def arrays(self) -> Arrays:
        """Return it as named arrays; `from_arrays` takes them back."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Reference:
        """Return what `arrays` came from."""
        return cls(**{f.name: arrays[f.name] for f in fields(cls)})


def _square(cut: float) -> float:
    return cut * cut if cut > 0 else np.inf

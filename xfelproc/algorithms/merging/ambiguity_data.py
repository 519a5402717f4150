"""What the resolution of an indexing ambiguity needs of each lattice: E² of its reflections, with the variance of its noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.ambiguity_operators import Settings
from xfelproc.algorithms.merging.observations import Observations
from xfelproc.algorithms.merging.sample import Beginning, peak_height, starting_scales, with_partiality
from xfelproc.algorithms.merging.settings import Merge

LARGEST = 8.0
"""E² of an acentric reflection is larger with a chance of e^-8: what is beyond counts as this."""
NOISIEST = 16.0
"""Variance of E² beyond which an observation says nothing."""


@dataclass(frozen=True, eq=False)
class Normalized:
    """E² of the observations of lattices, sorted by lattice.

    ``starts`` (n_lattices + 1,) bounds the lattices; ``hkl`` (n, 3) is as indexed; ``value`` is E² - 1, ``variance`` that of its
    noise without what the common `spread` adds.
    """

    starts: NDArray[np.int64]
    hkl: NDArray[np.int32]
    value: NDArray[np.float32]
    variance: NDArray[np.float32]

    @property
    def n_lattices(self) -> int:
        """Number of lattices, also those without observations."""
        return len(self.starts) - 1

    @property
    def lattice(self) -> NDArray[np.int64]:
        """(n,) lattice of each observation."""
        return np.repeat(np.arange(self.n_lattices), np.diff(self.starts))

    def select(self, keep: NDArray[np.bool_]) -> Normalized:
        """Return some observations; the lattices stay as they are."""
        before = np.concatenate([[0], np.cumsum(keep)])
        rows = {f.name: getattr(self, f.name)[keep] for f in fields(self) if f.name != "starts"}
        return Normalized(before[self.starts], **rows)


def normalized(observations: Observations, beginning: Beginning, settings: Merge, d_min: float | None = None) -> Normalized:
    """Return E² of observations in lattice order: over the partiality, Wilson's scale of the lattice and the mean of the shell."""
    kept, partiality = with_partiality(observations, beginning.widths, settings)
    scale = starting_scales(kept, partiality, beginning)
    height = peak_height(kept.inverse_d2, beginning.widths)
    expected = scale[kept.lattice] * partiality * height * beginning.shell_means[beginning.shells(kept.inverse_d2)]
    variance = (kept.variance_fixed + kept.variance_gain * expected) / expected**2
    relative, whole = settings.first_errors
    variance += relative**2 + (whole / partiality) ** 2
    good = variance < NOISIEST
    if d_min is not None:
        good &= kept.inverse_d2 <= d_min**-2
    value = np.clip(kept.intensity / expected, 1.0 - LARGEST, LARGEST) - 1.0
    ends = np.searchsorted(kept.lattice[good], np.arange(kept.n_lattices + 1))
    return Normalized(ends, kept.hkl[good], value[good].astype(np.float32), variance[good].astype(np.float32))


@dataclass(frozen=True, eq=False)
class Choices:
    """Normalised observations with what they are in each setting.

    ``unique`` (n,) is the row of ``table`` (n_numbers, k) of an observation; the table's entries are reflections, of which there
    have the ``keys``. ``orbit`` (n_numbers,) is the same for reflections that settings exchange.
    """

    data: Normalized
    unique: NDArray[np.int32]
    table: NDArray[np.int32]
    orbit: NDArray[np.int64]
    keys: NDArray[np.int64]

    @classmethod
    def of(cls, data: Normalized, settings: Settings) -> Choices:
        """Return the observations that differ from setting to setting."""
        unique, table, keys = settings.unique(data.hkl)
        if not len(table):
            return cls(data, unique, table, np.zeros(0, dtype=np.int64), keys)
        telling = np.any(table != table[:, :1], axis=1)
        keep = telling[unique]
        # reflections of an orbit share the smallest number among their settings, as the settings of one are those of another
        orbit = table.min(axis=1).astype(np.int64)
        return cls(data.select(keep), unique[keep], table, orbit, keys)

    def part(self, keep: NDArray[np.bool_]) -> Choices:
        """Return some observations."""
        return replace(self, data=self.data.select(keep), unique=self.unique[keep])

    def first(self, lattices: NDArray[np.int64]) -> Choices:
        """Return the observations of some lattices alone, which are numbered anew in the order given."""
        data = self.data
        counts = np.diff(data.starts)[lattices]
        rows = _ranges(data.starts[lattices], counts)
        chosen = Normalized(np.concatenate([[0], np.cumsum(counts)]), data.hkl[rows], data.value[rows], data.variance[rows])
        return replace(self, data=chosen, unique=self.unique[rows])

    @property
    def n_lattices(self) -> int:
        """Number of lattices."""
        return self.data.n_lattices

    @property
    def n_reflections(self) -> int:
        """Number of reflections."""
        return len(self.keys)

    @property
    def n_settings(self) -> int:
        """Number of settings."""
        return int(self.table.shape[1])

    @property
    def columns(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
        """What kernels take."""
        return self.data.starts, self.unique, self.data.value, self.data.variance, self.table


def _ranges(first: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return first[0], first[0] + 1 ... (counts[0] of them), first[1] ..."""
    offsets = np.repeat(first - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    return offsets + np.arange(len(offsets))


def concatenated(parts: Sequence[Normalized]) -> Normalized:
    """Return the observations of consecutive lattices as one."""
    ends = np.concatenate([[0], *(np.diff(p.starts) for p in parts)])
    names = [f.name for f in fields(Normalized) if f.name != "starts"]
    return Normalized(np.cumsum(ends), **{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})

"""Lattices among which an ambiguity is resolved: all of a run, or enough of a large one to compare the others to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.observations import Observations

MOST_OBSERVATIONS = 1_000_000
MOST_EACH = 1000
"""Observations of a lattice: those nearest to the Ewald sphere, which are fullest."""

COLUMNS: dict[str, str] = {
    "hkl": "i4",
    "intensity": "f4",
    "variance_fixed": "f4",
    "variance_gain": "f4",
    "excitation": "f4",
    "partiality": "f4",
    "inverse_d2": "f4",
}


@dataclass(frozen=True, eq=False)
class LatticeSample:
    """Observations of the lattices of smallest priority, in the order of the run.

    ``priority`` (n,) is a hash of where each lattice stands in the run, all different; ``counts`` (n,) are its observations, and
    ``columns`` those of `COLUMNS` for all observations.
    """

    priority: NDArray[np.uint64]
    counts: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]

    @classmethod
    def of(cls, observations: Observations, priority: NDArray[np.uint64], most: int = MOST_OBSERVATIONS) -> LatticeSample:
        """Return the sample of some lattices: whole ones by priority, until there are ``most`` observations."""
        kept = nearest(observations)
        counts = np.bincount(kept.lattice, minlength=kept.n_lattices)
        columns = {name: getattr(kept, name).astype(kind) for name, kind in COLUMNS.items()}
        return cls(priority, counts, columns)._limited(most)

    def with_more(self, other: LatticeSample, most: int = MOST_OBSERVATIONS) -> LatticeSample:
        """Return the sample of the lattices of both."""
        priority, counts = np.concatenate([self.priority, other.priority]), np.concatenate([self.counts, other.counts])
        columns = {name: np.concatenate([self.columns[name], other.columns[name]]) for name in COLUMNS}
        return LatticeSample(priority, counts, columns)._limited(most)

    def _limited(self, most: int) -> LatticeSample:
        order = np.argsort(self.priority, kind="stable")
        before = np.cumsum(self.counts[order]) - self.counts[order]
        chosen = np.zeros(len(order), dtype=bool)
        chosen[order[before < most]] = True
        rows = np.repeat(chosen, self.counts)
        return LatticeSample(self.priority[chosen], self.counts[chosen], {n: v[rows] for n, v in self.columns.items()})

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return it as named arrays; `from_arrays` takes them back."""
        return {"sample_priority": self.priority, "sample_counts": self.counts} | {
            f"sample_{n}": v for n, v in self.columns.items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> LatticeSample:
        """Return the sample that `arrays` came from."""
        columns = {name: arrays[f"sample_{name}"] for name in COLUMNS}
        return cls(arrays["sample_priority"].astype(np.uint64), arrays["sample_counts"].astype(np.int64), columns)

    def observations(self) -> Observations:
        """Return the observations, lattices numbered from 0; where they were recorded is not known any more."""
        n, columns = int(self.counts.sum()), {name: v.astype(np.float64) for name, v in self.columns.items() if name != "hkl"}
        return Observations(
            lattice=np.repeat(np.arange(len(self.counts)), self.counts),
            hkl=np.ascontiguousarray(self.columns["hkl"]),
            **columns,
            polarization=np.ones(n),
            panel=np.zeros(n, dtype=np.int32),
            fast=np.zeros(n, dtype=np.float32),
            slow=np.zeros(n, dtype=np.float32),
            flags=np.zeros(n, dtype=np.uint16),
            half=np.zeros(len(self.counts), dtype=np.uint8),
            n_lattices=len(self.counts),
        )


def nearest(observations: Observations, most: int = MOST_EACH) -> Observations:
    """Return, of lattices in order, their ``most`` observations that are nearest to the Ewald sphere."""
    counts = np.bincount(observations.lattice, minlength=observations.n_lattices)
    if not len(counts) or counts.max() <= most:
        return observations
    order = np.lexsort((np.abs(observations.excitation), observations.lattice))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return observations.select(rank < most)

"""ΔCC1/2: by how much a lattice, or a stretch of the run, raises or lowers CC1/2, and which of them to leave out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.cell_spread import NORMAL
from xfelproc.algorithms.merging.cycle_state import CycleState
from xfelproc.algorithms.merging.lattice_block import LatticeBlock
from xfelproc.algorithms.merging.lattice_models import LatticeModels, Reason
from xfelproc.algorithms.merging.lattice_refinement import factors, observed_of, smallest_partiality
from xfelproc.algorithms.merging.reference import Floats
from xfelproc.kernels.influence import OWN, SUMS, Merged, add_lattices, half_correlation, lattice_influences, without

SHELLS = 10
"""Shells of resolution, of equally many reflections with two observations or more."""
FEWEST_STRETCHES = 4
"""Stretches of a run that are compared to each other: of fewer none stands out."""


def merged_by_variances(state: CycleState) -> Merged:
    """Return the reference of a state that is formed of all observations, as the kernels take it."""
    reference = state.reference
    twice = reference.count >= 2
    edges = np.quantile(state.unique.inverse_d2[twice], np.linspace(0.0, 1.0, SHELLS + 1)[1:-1]) if twice.any() else np.zeros(0)
    shell = np.searchsorted(edges, state.unique.inverse_d2, side="right").astype(np.int32)
    number = np.bincount(shell[twice], minlength=SHELLS)
    mean = np.bincount(shell[twice], reference.intensity[twice], minlength=SHELLS) / np.maximum(number, 1)
    centred = reference.intensity - mean[shell]
    sums = np.zeros((SHELLS, SUMS))
    degrees = np.maximum(reference.count - 1, 1) * np.maximum(reference.weight, 1e-300)
    for column, values in enumerate((np.ones(len(shell)), centred, centred**2, reference.chi2 / degrees)):
        sums[:, column] = np.bincount(shell[twice], values[twice], minlength=SHELLS)
    return Merged(
        reference.intensity,
        reference.weight,
        reference.chi2,
        reference.count,
        reference.last_expected,
        reference.last_limit,
        shell,
        centred,
        sums,
    )


def influences(block: LatticeBlock, models: LatticeModels, state: CycleState, merged: Merged | None = None) -> Floats:
    """Return CC1/2 less that without it of each lattice, (m,): below 0 where the merged data would be better without.

    ``models`` are those with which the block went into the state's reference; ``merged`` is that of `merged_by_variances`, where it
    is known already. NaN for lattices that are not merged.
    """
    full, partiality = factors(block, models, state)
    found: Floats = lattice_influences(
        block.starts,
        observed_of(block, models, state),
        full,
        partiality,
        merged or merged_by_variances(state),
        models.used,
        models.quality,
        state.last_errors.terms,
        smallest_partiality(state.settings),
    )
    return found


ROUNDS = 3
"""Times that lattices are left out and all others scaled again, at most."""


class Stretch:
    """Lattices that may lie in several blocks, added one block after the other: what CC1/2 would be without all of them."""

    def __init__(self, state: CycleState) -> None:
        self.state, self.merged = state, merged_by_variances(state)
        n = len(state.unique)
        self._own, self._number = np.zeros((n, OWN)), np.zeros(n, dtype=np.int32)
        self._touched, self._n = np.empty(n, dtype=np.int64), 0
        self._whole = float(half_correlation(self.merged.sums))

    def add(self, block: LatticeBlock, models: LatticeModels, first: int, end: int) -> None:
        """Add the lattices ``first`` to ``end`` of a block that are merged."""
        own = block.select_lattices(np.arange(first, end))
        kept = models.select(np.arange(first, end))
        full, partiality = factors(own, kept, self.state)
        self._n = add_lattices(
            0,
            end - first,
            own.starts,
            observed_of(own, kept, self.state),
            full,
            partiality,
            self.merged,
            kept.used,
            kept.quality,
            self.state.last_errors.terms,
            smallest_partiality(self.state.settings),
            self._own,
            self._number,
            self._touched,
            self._n,
        )

    def influence(self) -> float:
        """Return CC1/2 less that without all that was added (NaN: nothing was), and begin anew."""
        if not self._n:
            return float("nan")
        room = np.empty_like(self.merged.sums)
        found = self._whole - float(without(self.merged, self._own, self._number, self._touched, self._n, room))
        self._n = 0
        return found


def low_limit(values: Floats, cut: float | None) -> float:
    """Return the value below which one is left out: ``cut`` robust standard deviations below the median, and below 0.

    -inf where nothing is to be left out: there is no cut, or no value that is known.
    """
    known = values[np.isfinite(values)]
    if cut is None or not len(known):
        return float("-inf")
    middle = float(np.median(known))
    return min(0.0, middle - cut * NORMAL * float(np.median(np.abs(known - middle))))


@dataclass(frozen=True)
class Cut:
    """What is left out for its ΔCC1/2: lattices below ``limit``, and those of units in ``stretches`` (first, last + 1)."""

    limit: float = float("-inf")
    stretches: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of_stretches(cls, limit: float, bounds: NDArray[np.int64], values: Floats, cut: float | None) -> Self:
        """Return the cut at a limit for lattices; stretches have ``bounds`` (n, 2) in units and a ΔCC1/2 a lattice (n,)."""
        if np.count_nonzero(np.isfinite(values)) < FEWEST_STRETCHES:
            return cls(limit)
        with np.errstate(invalid="ignore"):
            gone = bounds[values < low_limit(values, cut)].tolist()
        return cls(limit, tuple((int(a), int(b)) for a, b in gone))

    def __bool__(self) -> bool:
        return self.limit > float("-inf") or bool(self.stretches)

    def takes(self, values: Floats) -> bool:
        """Return whether a lattice with one of these ΔCC1/2 is left out, or any stretch."""
        return bool(self.stretches) or bool(np.any(values < self.limit))

    def applied(self, block: LatticeBlock, models: LatticeModels, values: Floats) -> LatticeModels:
        """Return the models of a block without those cut; ``values`` (m,) are the ΔCC1/2 of its lattices."""
        models = models.with_influences(values)
        for first, end in self.stretches:
            models = models.without((block.unit >= first) & (block.unit < end), Reason.STRETCH)
        with np.errstate(invalid="ignore"):
            return models.without(values < self.limit, Reason.DELTA_CC)

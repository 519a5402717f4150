"""Metrology of a detector: see `docs/explanation/metrology.md`."""

from __future__ import annotations

from collections.abc import Iterable

from xfelproc.algorithms.metrology import accumulate, advance
from xfelproc.algorithms.metrology.accumulate import Partial
from xfelproc.algorithms.metrology.settings import MetrologySettings
from xfelproc.algorithms.metrology.spots import CrystalSpots
from xfelproc.algorithms.metrology.state import MetrologyState
from xfelproc.models.experiment import Beam, Detector


class Metrology(MetrologySettings):
    """Section ``[metrology]``: the panels' places, refined on the spots of all lattices at once, level by level of the tree.

    ``begin``, then a pass over all lattices (``accumulate`` on parts of them, ``combine``) and ``advance``, until the state is
    ``finished``: its ``detector`` is the result, and ``why`` says what went wrong, if anything.
    """

    def begin(self, detector: Detector, beam: Beam, origin: Detector | None = None) -> MetrologyState:
        """Return the state before the first pass; ``origin`` has the panels where they were before an earlier refinement.

        Raises
        ------
        ConfigError
            If a level is asked for that the detector has not, or the levels do not ascend.
        """
        return advance.begin(self, detector, beam, origin)

    def accumulate(self, state: MetrologyState, crystals: Iterable[CrystalSpots]) -> Partial:
        """Return the sums over some lattices, each brought to its optimum for the detector of ``state``.

        Raises
        ------
        ConfigError
            If a space group is not known.
        """
        return accumulate.accumulate(self, state, crystals)

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return the sums over the lattices of both."""
        return accumulate.combine(first, second)

    def advance(self, state: MetrologyState, partial: Partial) -> MetrologyState:
        """Return the state after a pass over all lattices."""
        return advance.advance(self, state, partial)

    def refine(self, detector: Detector, beam: Beam, crystals: Iterable[CrystalSpots]) -> MetrologyState:
        """Return the final state, with all lattices in memory."""
        chosen = list(crystals)
        state = self.begin(detector, beam)
        while not state.finished:
            state = self.advance(state, self.accumulate(state, chosen))
        return state

"""Metrology: where the panels of a detector are, from the indexed spots of all lattices."""

from xfelproc.algorithms.metrology.accumulate import Partial
from xfelproc.algorithms.metrology.metrology import Metrology
from xfelproc.algorithms.metrology.spots import CrystalSpots
from xfelproc.algorithms.metrology.state import LevelOutcome, MetrologyState, Step

__all__ = ["CrystalSpots", "LevelOutcome", "Metrology", "MetrologyState", "Partial", "Step"]

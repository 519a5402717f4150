"""Refinement of stills."""

from xfelproc.algorithms.refinement.mosaicity import Mosaicity
from xfelproc.algorithms.refinement.stills import Refine

__all__ = ["Mosaicity", "Refine"]

"""Spot finding: strong pixels by one of several methods, then one measurement and one set of filters for all."""

from xfelproc.algorithms.spotfinding.find import FindSpots, SpotSearch

__all__ = ["FindSpots", "SpotSearch"]

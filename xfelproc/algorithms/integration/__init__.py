"""Integration of stills."""

from xfelproc.algorithms.integration.summation import Integrate

__all__ = ["Integrate"]

"""Indexing: which lattices explain the spots of a frame."""

from __future__ import annotations

from xfelproc.algorithms.indexing.cell_search import CellSearch
from xfelproc.algorithms.indexing.fft1d import Fft1d
from xfelproc.algorithms.indexing.index import Automatic, Index

__all__ = ["Automatic", "CellSearch", "Fft1d", "Index"]

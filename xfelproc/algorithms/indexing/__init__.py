"""Indexing: which lattices explain the spots of a frame."""

from __future__ import annotations

from xfelproc.algorithms.indexing.cell_search import CellSearch
from xfelproc.algorithms.indexing.index import Index

__all__ = ["CellSearch", "Index"]

"""Shards of a run with their lattices in the settings that its merging found."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.store import get_table, opened
from xfelproc.models.tables import SettingTable
from xfelproc.stages.ambiguity import ReindexedReader
from xfelproc.stages.fold import Shards


@dataclass(frozen=True)
class ResolvedShards(Shards):
    """Shards of one run; ``table`` is the file of settings, ``stamp`` a hash that tells it from others."""

    table: Path
    stamp: str

    def lineage(self, block: int) -> str:
        """Return the hash of the shard's lineage and of the settings."""
        return hashlib.sha256(f"{Shards.lineage(self, block)} {self.stamp}".encode()).hexdigest()

    def open(self, block: int) -> ReindexedReader:
        """Return the shard's reader; every lattice keeps its reflections."""
        units, operators = _operators(self.table, self.stamp)
        run, unit, _, path = self.path(block)
        own = operators[units == unit]
        return ReindexedReader(run, unit, path, block, own, np.zeros(len(own), dtype=bool))


@lru_cache(maxsize=2)
def _operators(path: Path, stamp: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return of each lattice the unit, and the operator (3, 3) in units of 1/24."""
    with opened(path) as file:
        table = get_table(file, "lattices", SettingTable, ("unit", "setting"))
        matrices = np.asarray(file.attrs["matrices"], dtype=np.int64)
    if len(table) and table["setting"].max() >= len(matrices):
        raise DataError(f"has {len(matrices)} settings, but a lattice is in number {table['setting'].max()}", path)
    return table["unit"], matrices[table["setting"]]

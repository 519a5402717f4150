"""Folds for tests, importable by workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xfelproc.io.nodes import Partial
from xfelproc.stages.fold import UnitReader


@dataclass(frozen=True)
class Numbers:
    """Blocks that are numbers; with a folder it notes which are opened."""

    values: tuple[float, ...]
    notes: Path | None = None

    def lineage(self, block: int) -> str:
        return f"number {self.values[block]!r}"

    def open(self, block: int) -> float:
        if self.notes is not None:
            with (self.notes / f"{block}").open("a") as stream:
                stream.write(f"{os.getpid()}\n")
        return self.values[block]


@dataclass(frozen=True)
class Sum:
    """A sum that depends on the order it is formed in, and a concatenation."""

    lineage: str = "sum"

    def accumulate(self, blocks: Iterable[float]) -> Partial:
        total, seen = np.float32(0), []
        for value in blocks:
            total += np.float32(value)
            seen.append(value)
        return {"total": np.array(total), "seen": np.array(seen)}

    def combine(self, first: Partial, second: Partial) -> Partial:
        return {"total": first["total"] + second["total"], "seen": np.concatenate([first["seen"], second["seen"]])}


@dataclass(frozen=True)
class Deadly(Sum):
    """Kills its worker at one value, once or always."""

    at: float = -1.0
    mark: Path | None = None

    def accumulate(self, blocks: Iterable[float]) -> Partial:
        values = list(blocks)
        if self.at in values and not (self.mark is not None and self.mark.exists()):
            if self.mark is not None:
                self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().accumulate(values)


@dataclass(frozen=True)
class Raises(Sum):
    """Fails at one value, until a file is there."""

    at: float = -1.0
    mark: Path = Path()

    def accumulate(self, blocks: Iterable[float]) -> Partial:
        values = list(blocks)
        if self.at in values and not self.mark.exists():
            raise OSError(28, "No space left on device")
        return super().accumulate(values)


@dataclass(frozen=True)
class Intensities:
    """Sum of the integrated intensities of shards."""

    lineage: str = "intensities"

    def accumulate(self, blocks: Iterable[UnitReader]) -> Partial:
        rows: list[Any] = [[block.unit, block.result().reflections["intensity"].sum()] for block in blocks]
        return {"rows": np.array(rows, dtype=np.float64).reshape(-1, 2)}

    def combine(self, first: Partial, second: Partial) -> Partial:
        return {"rows": np.concatenate([first["rows"], second["rows"]])}

"""Small stand-ins of a reader and of the algorithms: what they do is arithmetic on the frame's number."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.sources.base import FrameSource, SourceSummary
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.experiment import Beam, Crystal, Detector, Experiment, Panel
from xfelproc.models.frames import CellTarget, Frame, FrameRef, IndexedLattice, IndexingResult, IntegrationResult, RefinedLattice
from xfelproc.models.parameters import Algorithm, Parameters
from xfelproc.models.tables import IndexedTable, ReflectionTable, SpotTable

SIZE = 32
PANEL = Panel("p", (1, 0, 0), (0, -1, 0), (-1.6, 1.6, -100), (0.1, 0.1), (SIZE, SIZE), (-1, 60000))


class FakeSource(FrameSource):
    """A text file: number of frames, then one word a frame that says what happens to it."""

    def __init__(self, path: str, settings: SourceSettings) -> None:
        self.path = path
        words = Path(path).read_text().split()
        if not words:
            raise DataError("is empty", path)
        self.words = words
        self.n_frames = len(words)
        self._experiment = Experiment(Beam(settings.wavelength or 1.0), Detector((PANEL,)))
        self._mask = np.zeros((1, SIZE, SIZE), np.uint8)

    def summary(self) -> SourceSummary:
        return SourceSummary(self.path, "fake", self.n_frames, "uint16", self._experiment)

    def experiment(self, index: int) -> Experiment:
        return self._experiment

    def static_mask(self) -> NDArray[np.uint8]:
        return self._mask

    def read(self, index: int, source: int = 0) -> Frame:
        word = self.words[index]
        if word == "truncated":
            raise DataError("the frame is truncated", self.path, index)
        if word == "bug":
            raise ZeroDivisionError("a bug")
        if word == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "kill-once" and not (mark := Path(f"{self.path}.killed")).exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "hang":
            time.sleep(1000)
        if word == "slow":
            time.sleep(0.05)
        if word == "full":
            raise OSError(28, "No space left on device")
        pixels = np.full((1, SIZE, SIZE), 0 if word == "blank" else index % 7 + 3, np.uint16)
        models = self._experiment
        return Frame(FrameRef(source, index), pixels, self._mask, models.detector.trusted_ranges, models.detector, models.beam)


def open_fake(path: str, settings: SourceSettings) -> FrameSource:
    return FakeSource(path, settings)


class FakeCalibrate(Parameters):
    def constants(self, detector: Detector, static_mask: Any, dark: Any = None, gain: Any = None, calibration: Any = None) -> Any:
        return 1

    def apply(self, frame: Frame, constants: Any) -> Frame:
        return frame


class FakeMethod(Algorithm):
    method: Literal["fake"] = "fake"
    sigma: float = 1.0


class FakeSpots(Parameters):
    method: FakeMethod = FakeMethod()
    min_snr: float = 1.0

    def find(self, frame: Frame) -> SpotTable:
        n = int(frame.pixels[0, 0, 0])
        where = np.random.default_rng(frame.ref.index).uniform(1, SIZE - 1, (2, n))
        return SpotTable(n, fast=where[0], slow=where[1], intensity=np.full(n, self.min_snr))

    def judge(self, spots: SpotTable) -> tuple[bool, str]:
        return len(spots) > 0, "" if len(spots) else "no spots"


class FakeIndex(Parameters):
    cell: tuple[float, float, float, float, float, float] | None = None
    space_group: str | None = None

    max_penalty: float = 1.5
    log10_chance: float = -3.0

    def quick(self) -> FakeIndex:
        return self

    def target(self) -> CellTarget:
        return CellTarget(self.cell, self.space_group)

    def index(self, spots: SpotTable, detector: Detector, beam: Beam, target: CellTarget) -> IndexingResult:
        if len(spots) == 4:
            return IndexingResult((), "4 spots fit no lattice")
        cell = target.cell or (10.0, 20.0, 30.0, 90.0, 90.0, 90.0)
        crystal = Crystal(((1 / cell[0], 0, 0), (0, 1 / cell[1], 0), (0, 0, 1 / cell[2])), target.space_group or "P 2 2 2")
        hkl = np.zeros((len(spots), 3), np.int32)
        return IndexingResult((IndexedLattice(crystal, np.arange(len(spots)), hkl, -20.0),))


class FakeRefine(Parameters):
    def refine(self, lattice: IndexedLattice, spots: SpotTable, detector: Detector, beam: Beam) -> RefinedLattice:
        n = len(lattice.spots)
        table = IndexedTable(n, spot=lattice.spots, hkl=lattice.hkl)
        return RefinedLattice(lattice.crystal, detector, (0, 0, 0), table, 0.1, 0.1, True, log10_p=lattice.log10_p)

    def separate(
        self, lattices: Sequence[RefinedLattice], spots: SpotTable, detector: Detector, beam: Beam
    ) -> tuple[RefinedLattice, ...]:
        return tuple(lattices)


class FakeIntegrate(Parameters):
    def integrate(self, frame: Frame, lattices: Sequence[RefinedLattice], spots: SpotTable) -> IntegrationResult:
        n = len(spots)
        table = ReflectionTable(n, intensity=np.arange(n) + frame.ref.index, sigma=np.ones(n))
        return IntegrationResult(tuple(x.crystal for x in lattices), (2.0,) * len(lattices), table)


class NoMetrology(Parameters):
    enabled: bool = False


class FakeMerge(Parameters):
    d_min: float = 2.0


SECTIONS: dict[str, type[Parameters]] = {
    "calibrate": FakeCalibrate,
    "spots": FakeSpots,
    "index": FakeIndex,
    "refine": FakeRefine,
    "integrate": FakeIntegrate,
    "metrology": NoMetrology,
    "merge": FakeMerge,
}


class Quiet:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.frames = 0

    def stage(self, name: str, done: int, total: int) -> None:
        self.lines.append(f"{name} {done}/{total}")

    def unit(self, frames: int, counts: dict[str, int]) -> None:
        self.frames += frames

    def say(self, text: str) -> None:
        self.lines.append(text)

"""Runs over lists of spots: the real stages, index and refinement, on frames whose pixels nobody has."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.stages.fakes import FakeCalibrate, FakeIntegrate, FakeMerge, NoMetrology, Quiet
from xfelproc.algorithms.indexing import Index
from xfelproc.algorithms.refinement import Refine
from xfelproc.io.manifest import read_manifest
from xfelproc.io.shards import read_shard, shard_path
from xfelproc.io.sources.base import FrameSource, SourceSummary
from xfelproc.io.sources.overrides import apply_settings
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.experiment import Beam, Detector, Experiment
from xfelproc.models.frames import CellTarget, Frame, FrameRef, UnitResult
from xfelproc.models.parameters import Parameters
from xfelproc.models.tables import SpotTable
from xfelproc.run.config import config_class, make_config
from xfelproc.run.directory import RunDirectory
from xfelproc.run.geometry import result_stage
from xfelproc.run.recipes import run_job


@lru_cache(maxsize=4)
def _load(path: str) -> tuple[list[SpotTable], Experiment]:
    content: tuple[list[SpotTable], Experiment] = pickle.loads(Path(path).read_bytes())
    return content


class SpotListSource(FrameSource):
    """Frames of blank pixels, one a list of spots."""

    def __init__(self, path: str, settings: SourceSettings) -> None:
        lists, models = _load(path)
        self.path, self.n_frames = path, len(lists)
        self._models = apply_settings(models, settings)
        self._pixels = np.zeros(models.detector.stack_shape, np.uint16)
        self._mask = np.zeros(models.detector.stack_shape, np.uint8)

    def summary(self) -> SourceSummary:
        return SourceSummary(self.path, "spots", self.n_frames, "uint16", self._models)

    def experiment(self, index: int) -> Experiment:
        return self._models

    def static_mask(self) -> NDArray[np.uint8]:
        return self._mask

    def read(self, index: int, source: int = 0) -> Frame:
        detector = self._models.detector
        return Frame(FrameRef(source, index), self._pixels, self._mask, detector.trusted_ranges, detector, self._models.beam)


def open_spot_lists(path: str, settings: SourceSettings) -> FrameSource:
    return SpotListSource(path, settings)


class ListedSpots(Parameters):
    """Finds on a frame what its list says."""

    file: str = ""

    def find(self, frame: Frame) -> SpotTable:
        return _load(self.file)[0][frame.ref.index]

    def judge(self, spots: SpotTable) -> tuple[bool, str]:
        return len(spots) > 0, ""


SECTIONS: dict[str, type[Parameters]] = {
    "calibrate": FakeCalibrate,
    "spots": ListedSpots,
    "index": Index,
    "refine": Refine,
    "integrate": FakeIntegrate,
    "metrology": NoMetrology,
    "merge": FakeMerge,
}


@dataclass(frozen=True)
class SpotRun:
    """What a run left: its units, what it says of the distance (None: nothing), and the lines it printed."""

    units: tuple[UnitResult, ...]
    record: dict[str, Any] | None
    lines: tuple[str, ...]

    @property
    def n_indexed(self) -> int:
        return sum(len(np.unique(unit.lattices["frame"])) for unit in self.units)

    @property
    def distance(self) -> float | None:
        found: float | None = (self.record or {}).get("distance")
        return found


def run_spots(
    lists: Sequence[SpotTable],
    detector: Detector,
    beam: Beam,
    target: CellTarget,
    folder: Path,
    only: str = "process",
    models: dict[str, type[Parameters]] | None = None,
    **sections: dict[str, Any],
) -> SpotRun:
    """Run stages over lists of spots, in a new or used folder; ``models`` take the place of sections."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "spots.pickle"
    if not file.exists():
        file.write_bytes(pickle.dumps((list(lists), Experiment(beam, detector))))
    document: dict[str, Any] = {
        "input": {"files": str(file)},
        "spots": {"file": str(file)},
        "index": {"cell": target.cell, "space_group": target.space_group},
        "execution": {"driver": "inline"},
    }
    for name, keys in sections.items():
        document.setdefault(name, {}).update(keys)
    reporter = Quiet()
    config = make_config(document, folder, config_class({**SECTIONS, **(models or {})}))
    run_job(config, folder / "run", reporter, only=only, opener=open_spot_lists)
    directory = RunDirectory(folder / "run")
    n_units, stage = read_manifest(directory.manifest).n_units, result_stage(config, directory)
    units = tuple(read_shard(shard_path(directory.path, stage, unit)) for unit in range(n_units))
    return SpotRun(units, directory.read_json("distance.json"), tuple(reporter.lines))

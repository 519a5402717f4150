"""The geometry that a run ends with, and which of its shards are its result: those of stage ``process``, unless the detector was
refined and frames were processed again with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from xfelproc.geometry.placement import transferred, with_placement
from xfelproc.models.experiment import Detector, Experiment
from xfelproc.run.config import JobConfig, load_document
from xfelproc.run.directory import RunDirectory

RECORD = "metrology.json"
"""In ``gather``: what became of the detector's refinement."""
PROCESS = "process"
RESULT = "reprocess"


def metrology_record(config: JobConfig, directory: RunDirectory) -> dict[str, Any] | None:
    """Return what became of the detector's refinement; None if there was none, or the job does not ask for it any more."""
    return directory.read_json(RECORD) if config.section("metrology").enabled else None


def result_stage(config: JobConfig, directory: RunDirectory) -> str:
    """Return the stage whose shards are the run's result."""
    record = metrology_record(config, directory)
    return PROCESS if record is None else str(record["stage"])


def recorded_stage(directory: RunDirectory) -> str:
    """Return what `result_stage` does, from what is written in the run alone: plug-ins of its job may not be there."""
    record = directory.read_json(RECORD)
    section = load_document(directory.job).get("metrology", {}) if record is not None else {}
    return PROCESS if record is None or not section.get("enabled", True) else str(record["stage"])


@dataclass(frozen=True)
class FinalGeometry:
    """Where the panels of a run's first frame were recorded, and where they are (`placement_of` values)."""

    before: Mapping[str, Any]
    after: Mapping[str, Any]
    _known: list[tuple[Detector, Detector]] = field(default_factory=list, repr=False, compare=False)

    def place(self, detector: Detector) -> Detector:
        """Return the detector of a frame with the refined geometry; another detector stays as it is."""
        for seen, placed in self._known:
            if seen is detector:
                return placed
        found = None
        if len(self.before["panels"]) == len(detector):
            found = transferred(detector, with_placement(detector, self.before), with_placement(detector, self.after))
        self._known[:] = [(detector, found or detector)]
        return found or detector


def final_geometry(config: JobConfig, directory: RunDirectory) -> FinalGeometry | None:
    """Return the refined geometry of a run; None if frames keep theirs."""
    record = metrology_record(config, directory)
    if record is None or record["stage"] == PROCESS:
        return None
    return FinalGeometry(record["before"], record["after"])


def final_experiment(models: Experiment, geometry: FinalGeometry | None) -> Experiment:
    """Return a frame's models with the refined geometry."""
    return models if geometry is None else replace(models, detector=geometry.place(models.detector))


def metrology_warnings(config: JobConfig, directory: RunDirectory) -> list[str]:
    """Return what the user must know of the detector's refinement."""
    return list((metrology_record(config, directory) or {}).get("warnings", ()))

"""The report of a group: that of a run, over the shards of all its runs, without pictures of single frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xfelproc.errors import DataError
from xfelproc.io.atomic import write_atomic
from xfelproc.models.experiment import Detector
from xfelproc.report.fold import ReportFold
from xfelproc.report.page import ReportData, build_report
from xfelproc.report.summary import RunSummary
from xfelproc.run.config import JobConfig
from xfelproc.run.directory import RunDirectory
from xfelproc.run.distance import source_settings
from xfelproc.run.folding import Gathering, read_partial
from xfelproc.run.geometry import final_experiment, final_geometry
from xfelproc.run.merging import FoundShards
from xfelproc.run.stage_report import NODES, images_of
from xfelproc.stages.fold import cut_leaves
from xfelproc.stages.unit_sources import Opener


@dataclass(frozen=True)
class GroupOfRuns:
    """What a group's report is of: its title, the runs' directories and jobs, their shards, and what merging found."""

    title: str
    runs: Sequence[RunDirectory]
    configs: Sequence[JobConfig]
    shards: FoundShards
    merged: Mapping[str, Any]

    @property
    def wanted(self) -> bool:
        """Whether a run's job asks for reports."""
        return any(config.report.enabled for config in self.configs)


def write_group_report(gathering: Gathering, group: GroupOfRuns, opener: Opener) -> Path:
    """Write the report of a group into its folder; return where it is.

    Raises
    ------
    DataError
        If the runs' detectors differ in number or size of panels, or a first file cannot be read.
    """
    detectors = [detector_of(run, config, opener) for run, config in zip(group.runs, group.configs, strict=True)]
    for run, detector in zip(group.runs, detectors, strict=True):
        if not np.array_equal(detector.image_sizes, detectors[0].image_sizes):
            raise DataError(f"its panels are others than those of {group.runs[0].path.name}: no report of both", run.path)
    frames = group.shards.frames
    fold = ReportFold(detectors[0], len(frames))
    leaves = cut_leaves(frames, gathering.execution.fold_size)
    partial = read_partial(gathering.fold(fold, NODES, 0, group.shards.blocks, leaves))
    summary = RunSummary(fold, partial, np.concatenate([[0], np.cumsum(frames)]))
    write_atomic(gathering.directory.report, build_report(_data(group, summary, images_of(partial))).encode())
    return gathering.directory.report


def detector_of(run: RunDirectory, config: JobConfig, opener: Opener) -> Detector:
    """Return the detector of a run's first frame."""
    sources = run.read_manifest().sources
    number = next(number for number in range(len(sources)) if number not in sources.errors)
    with opener(sources.path(number), source_settings(config, run)) as source:
        return final_experiment(source.experiment(0), final_geometry(config, run)).detector


def _data(group: GroupOfRuns, summary: RunSummary, images: Any) -> ReportData:
    merged = group.merged
    names = ", ".join(run.path.name for run in group.runs)
    note = f"Runs {names}; geometry of {group.runs[0].path.name}"
    if images is not None:
        note += f"; {images.n_frames} frames, binned {images.binning} x {images.binning}"
    return ReportData(
        title=group.title,
        summary=summary,
        target_cell=tuple(merged["cell"]),
        cell_origin="median of the merged lattices",
        space_group=str(merged["space_group"]),
        shells=merged["shells"],
        overall=merged["overall"],
        indexing=merged.get("settings", {}),
        quality=merged.get("quality", {}),
        intensities=merged.get("downstream", {}),
        table_one=merged.get("table_one", ()),
        lattices=merged.get("lattices", {}),
        groups=merged.get("groups", ()),
        differences=merged.get("differences", ()),
        warnings=merged["warnings"],
        maximum=None if images is None else images.maximum.astype(np.float64),
        mean=None if images is None else images.total.astype(np.float64) / max(1, images.n_frames),
        image_note=note,
        left_out=[_left_out(group, *place) for place in summary.left_out],
    )


def _left_out(group: GroupOfRuns, block: int, row: int, reason: str) -> tuple[str, int, str]:
    number, unit = group.shards.blocks.place(block)
    manifest = group.runs[number].read_manifest()
    ref = manifest.unit(unit).frames[row]
    return manifest.sources.path(ref.source), ref.index, reason

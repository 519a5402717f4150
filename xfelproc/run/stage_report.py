"""Stage ``report``: a fold over the shards, a few frames read again for their pictures, one HTML file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.atomic import write_atomic
from xfelproc.io.nodes import Partial
from xfelproc.io.shards import UnitImages, read_shard, shard_path
from xfelproc.models.experiment import Detector, Experiment
from xfelproc.models.frames import FrameRef, UnitResult
from xfelproc.report.fold import ReportFold
from xfelproc.report.metrology import MetrologyData
from xfelproc.report.page import FrameView, ReportData, build_report
from xfelproc.report.residuals import ResidualFold
from xfelproc.report.summary import RunSummary
from xfelproc.run.detector_tables import metrology_data
from xfelproc.run.distance import corrected_experiment, distance_warnings, source_settings
from xfelproc.run.geometry import PROCESS, final_experiment, final_geometry, metrology_warnings
from xfelproc.run.session import Session
from xfelproc.run.stage_merge import RECORD
from xfelproc.run.target import CONSENSUS, run_target, user_target
from xfelproc.stages.fold import Shards, cut_leaves

NODES, BEFORE = "report", "residuals"
"""Folders of the folds' nodes in ``gather``: over the result's shards, and over those before the detector was refined."""


def run_stage(session: Session) -> None:
    """Write ``report.html``."""
    if not session.config.report.enabled:
        return
    models = _models(session)
    fold = ReportFold(models.detector, session.manifest.n_units, models.beam.direction)
    partial = session.fold(fold, NODES)
    html = build_report(_data(session, RunSummary(fold, partial, session.manifest.offsets), images_of(partial)))
    write_atomic(session.directory.report, html.encode())


def _models(session: Session) -> Experiment:
    """Return the models of the run's first frame, with the geometry that the run ended with."""
    return final_experiment(corrected_experiment(session), final_geometry(session.config, session.directory))


def images_of(partial: Partial) -> UnitImages | None:
    """Return the sum and the maximum of the pixels of all units that kept them."""
    if "image_total" not in partial:
        return None
    n_frames, binning = (int(v) for v in partial["image_facts"])
    return UnitImages(partial["image_total"], partial["image_maximum"], n_frames, binning)


def _data(session: Session, summary: RunSummary, images: UnitImages | None) -> ReportData:
    target, given = run_target(session), user_target(session)
    consensus = session.directory.read_json(CONSENSUS) if given.cell is None else None
    merged = session.directory.read_json(RECORD) or {}
    origin = "given" if given.cell is not None else "consensus of the run" if target.cell is not None else "not known"
    note = "" if images is None else f"{images.n_frames} frames, binned {images.binning} x {images.binning}"
    return ReportData(
        title=session.config.report.title or session.directory.path.absolute().name,
        summary=summary,
        target_cell=target.cell,
        cell_origin=origin,
        space_group=str(merged.get("space_group") or target.space_group or "not known"),
        clusters=consensus["clusters"] if consensus else (),
        shells=merged.get("shells", []),
        overall=merged.get("overall", {}),
        indexing=merged.get("settings", {}),
        quality=merged.get("quality", {}),
        intensities=merged.get("downstream", {}),
        table_one=merged.get("table_one", ()),
        lattices=merged.get("lattices", {}),
        groups=merged.get("groups", ()),
        differences=merged.get("differences", ()),
        warnings=tuple(dict.fromkeys([*session.warnings, *_known_warnings(session), *merged.get("warnings", [])])),
        frames=_views(session, summary),
        maximum=None if images is None else images.maximum.astype(np.float64),
        mean=None if images is None else images.total.astype(np.float64) / max(1, images.n_frames),
        image_note=note,
        left_out=_left_out(session, summary),
        metrology=_metrology(session, summary),
        times=dict(session.times),
    )


def _metrology(session: Session, summary: RunSummary) -> MetrologyData:
    models = _models(session)
    shards = Shards(PROCESS, ((session.directory.path.absolute(), session.manifest.n_units),))
    leaves = cut_leaves(np.diff(session.manifest.offsets), session.config.execution.fold_size)

    def before(detector: Detector) -> NDArray[np.float64]:
        return session.fold(ResidualFold(detector, models.beam.direction), BEFORE, 0, shards, leaves)["residuals"]

    return metrology_data(session.config, session.directory, models, summary.residual_sum, before)


def _known_warnings(session: Session) -> list[str]:
    return [*distance_warnings(session.directory), *metrology_warnings(session.config, session.directory)]


def _left_out(session: Session, summary: RunSummary) -> list[tuple[str, int, str]]:
    found = []
    for unit, row, reason in summary.left_out:
        ref = session.manifest.unit(unit).frames[row]
        found.append((session.manifest.sources.path(ref.source), ref.index, reason))
    return found


def _views(session: Session, summary: RunSummary) -> list[FrameView]:
    """Return pictures of the frames the summary chose; one that cannot be read again is left out."""
    views = []
    for label, unit, row in summary.chosen_frames():
        result = read_shard(shard_path(session.directory.path, session.result_stage, unit))
        ref = session.manifest.unit(unit).frames[row]
        try:
            views.append(_view(session, label, ref, result, row))
        except DataError as error:
            session.warn(f"no picture of a frame: {error}")
    return views


def _view(session: Session, label: str, ref: FrameRef, result: UnitResult, row: int) -> FrameView:
    path = session.manifest.sources.path(ref.source)
    with session.opener(path, source_settings(session.config, session.directory)) as source:
        frame = source.read(ref.index, ref.source)
        pixels, good = np.array(frame.pixels), frame.mask == 0
    geometry = final_geometry(session.config, session.directory)
    detector = frame.detector if geometry is None else geometry.place(frame.detector)
    spots = result.spots.select(result.spots["frame"] == row)
    lattices = np.flatnonzero(result.lattices["frame"] == row)
    predictions = result.reflections.select(np.isin(result.reflections["lattice"], lattices))
    title = f"{label}: frame {ref.index} of {path.rpartition('/')[2]}, {len(spots)} spots, {len(lattices)} lattices"
    return FrameView(title, detector, pixels, good, _places(spots), _places(predictions))


def _places(table: Any) -> NDArray[np.float64]:
    return np.column_stack([table["panel"], table["fast"], table["slow"]]).astype(np.float64)

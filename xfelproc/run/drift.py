"""Where the detector is along a run: refined in blocks of frames, each for itself, about the geometry of the whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from xfelproc.geometry.placement import displacements
from xfelproc.io.nodes import Partial
from xfelproc.io.sources.overrides import detector_distance
from xfelproc.models.experiment import Detector
from xfelproc.run.folding import block_leaves, read_partial
from xfelproc.run.lineage import digest
from xfelproc.run.merging import FoundShards, MergeInput
from xfelproc.run.refining import FOLDER, Refining
from xfelproc.run.session import Session
from xfelproc.stages.fold import Nodes, Shards, cut_leaves
from xfelproc.stages.metrology import DriftUpdate, SpotExtract, unpacked_state

RECORD = "metrology_drift.json"


def follow_drift(session: Session, refining: Refining, stage: str, detector: Detector) -> None:
    """Publish ``gather/metrology_drift.json``: distance and panels of each block of frames, unless it is there."""
    settings, directory = refining.settings, session.directory
    shards = FoundShards.of([MergeInput(directory.path, session.manifest.n_units, stage)])
    keys = settings.model_dump(mode="json", exclude={"enabled", "max_move", "iterate"})
    lineage = digest({"shards": shards.lineage, "metrology": keys, "geometry": refining.lineage})
    known = directory.read_json(RECORD)
    if known is not None and known["lineage"] == lineage:
        return
    leaves = cut_leaves(np.diff(session.manifest.offsets), settings.block_frames)
    blocks = Shards(stage, ((directory.path.absolute(), session.manifest.n_units),))
    extract = SpotExtract(refining.opening, refining.before, detector, detector, refining.individual)
    spots = Nodes(session.update(extract, f"{FOLDER}/drift_spots", 0, blocks, leaves))
    update = DriftUpdate(settings, detector, refining.beam, lineage)
    found = session.update(update, f"{FOLDER}/drift", 0, spots, block_leaves(len(spots), len(spots)))
    starts = session.manifest.offsets[np.array(leaves)].tolist()
    rows = [_row(path, begin, end, detector, refining) for path, begin, end in zip(found, starts[:-1], starts[1:], strict=True)]
    directory.write_json(RECORD, {"lineage": lineage, "panels": [panel.name for panel in detector.panels], "blocks": rows})
    session.reporter.say(f"metrology: the detector along the run, in {len(rows)} blocks of frames: gather/{RECORD}")


def _row(path: Path, begin: int, end: int, detector: Detector, refining: Refining) -> dict[str, Any]:
    """Return what a block of frames says, in plain values: mm, and px for the panels."""
    partial: Partial = read_partial(path)
    state = unpacked_state(partial["state"])
    row: dict[str, Any] = {"frames": [begin, end], "lattices": int(partial["frames"][1]), "why": str(state.why)}
    if not state.usable:
        return row
    moved = displacements(detector, state.detector)
    return row | {
        "distance": detector_distance(state.detector, refining.beam),
        "centre": [float(v) for v in state.detector.centre - detector.centre],
        "panels": (moved / np.column_stack([detector.pixel_sizes, np.ones(len(detector))])).tolist(),
        "significance": float(state.significance),
    }

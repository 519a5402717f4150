"""Stage ``cell``: where no cell is given, index a sample of frames without one and take the consensus."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.io.manifest import Manifest, write_manifest
from xfelproc.io.shards import read_lattices, shard_path
from xfelproc.run.lineage import digest
from xfelproc.run.session import Session
from xfelproc.run.target import CONSENSUS, user_target

STAGE = "sample"
FRAMES_A_UNIT = 8
FIRST_ROUND = 256
"""Frames of the first round; each further round doubles what was tried before."""


def sampling_order(n_frames: int) -> NDArray[np.int64]:
    """Return all frames in an order whose every beginning is spread over the run (multiples of the golden ratio, modulo 1)."""
    golden = (np.sqrt(5.0) - 1.0) / 2.0
    return np.argsort(np.mod(np.arange(n_frames) * golden, 1.0), kind="stable").astype(np.int64)


def run_stage(session: Session) -> None:
    """Publish ``gather/consensus.json``, unless the cell is given or the consensus is there."""
    if user_target(session).cell is not None:
        return
    sample = session.config.sample
    order = sampling_order(session.manifest.n_frames)[: sample.max_frames]
    manifest = session.manifest.with_frames(order, FRAMES_A_UNIT)
    path = session.directory.gather / "sample.h5"
    job = session.stage_job(STAGE, manifest, path, user_target(session), integrate=False)
    lineage = digest({"stage": job.lineage, "manifest": manifest.stamp, "sample": sample.model_dump(mode="json")})
    known = session.directory.read_json(CONSENSUS)
    if known is not None and known["lineage"] == lineage:
        return
    write_manifest(path, manifest)
    tried, cells = 0, np.zeros((0, 6))
    while tried < manifest.n_units and len(cells) < sample.min_lattices:
        tried = min(manifest.n_units, max(FIRST_ROUND // FRAMES_A_UNIT, 2 * tried))
        session.run_units(job, manifest, range(tried))
        cells = _cells(session, tried)
    session.directory.write_json(CONSENSUS, _record(session, lineage, cells, manifest, tried))


def _cells(session: Session, units: int) -> NDArray[np.float64]:
    tables = [read_lattices(shard_path(session.directory.path, STAGE, unit))["cell"] for unit in range(units)]
    return np.concatenate(tables) if tables else np.zeros((0, 6))


def _record(session: Session, lineage: str, cells: NDArray[np.float64], manifest: Manifest, tried: int) -> dict[str, Any]:
    frames = int(manifest.offsets[tried])
    record: dict[str, Any] = {"lineage": lineage, "frames": frames, "lattices": len(cells)}
    record |= {"cell": None, "space_group": None, "clusters": []}
    consensus: Any = import_module("xfelproc.algorithms.symmetry.consensus").find_consensus(cells) if len(cells) else None
    if consensus is None:
        session.warn(
            f"no cell was given and none was found: {len(cells)} of {frames} frames could be indexed; every frame is indexed by "
            "itself. Give index.cell if it is known, or check distance, beam centre and wavelength"
        )
    return record

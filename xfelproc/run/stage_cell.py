"""Stage ``cell``: where no cell is given, index a sample of frames without one and take the consensus."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.symmetry.consensus import CellCluster, find_consensus
from xfelproc.io.manifest import write_manifest
from xfelproc.io.shards import read_lattices, shard_path
from xfelproc.models.tables import LatticeTable
from xfelproc.run.lineage import digest
from xfelproc.run.session import Session
from xfelproc.run.target import CONSENSUS, user_target
from xfelproc.stages.published import files_digest

STAGE = "sample"
FRAMES_A_UNIT = 8
FIRST_ROUND = 256
"""Frames of the first round; each further round doubles what was tried before."""
FEW = 5
"""A consensus of fewer lattices is doubtful."""


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
    files = files_digest(manifest)
    lineage = digest({"stage": job.lineage, "manifest": manifest.stamp, "files": files, "sample": sample.model_dump(mode="json")})
    known = session.directory.read_json(CONSENSUS)
    if known is not None and known["lineage"] == lineage:
        session.warnings += known["warnings"]
        return
    write_manifest(path, manifest)
    tried, lattices = 0, LatticeTable(0)
    while tried < manifest.n_units and len(lattices) < sample.min_lattices:
        tried = min(manifest.n_units, max(FIRST_ROUND // FRAMES_A_UNIT, 2 * tried))
        session.run_units(job, manifest, range(tried))
        lattices = LatticeTable.concatenate(read_lattices(shard_path(session.directory.path, STAGE, unit)) for unit in range(tried))
    session.directory.write_json(CONSENSUS, {"lineage": lineage, **_record(session, lattices, int(manifest.offsets[tried]))})


def centring_of(space_group: str) -> str:
    """Return the centring of a lattice given in a space group's setting; rhombohedral axes are primitive."""
    return "P" if space_group.endswith(":R") else space_group[0]


def _record(session: Session, lattices: LatticeTable, frames: int) -> dict[str, Any]:
    record: dict[str, Any] = {"frames": frames, "lattices": len(lattices), "cell": None, "space_group": None, "clusters": []}
    record["warnings"] = []
    index = session.config.section("index")
    consensus = find_consensus(
        lattices["cell"],
        [centring_of(name) for name in lattices["space_group"]],
        space_group=index.space_group,
        max_penalty=100.0 * index.max_penalty,
    )
    if consensus is None:
        text = (
            f"no cell was given and none was found: none of {frames} frames could be indexed without one. Give index.cell if it is "
            "known, or check distance, beam centre and wavelength"
        )
        session.warn(text)
        return record | {"warnings": [text]}
    best = consensus.best
    record |= {"cell": list(best.cell), "space_group": best.space_group, "clusters": [_shown(c) for c in consensus.clusters]}
    cell = " ".join(f"{v:.2f}" for v in best.cell)
    found = f"{cell}, {best.space_group}, from {best.count} of {len(lattices)} lattices"
    session.reporter.say(f"cell found: {found} ({frames} frames tried)")
    if best.count < FEW or 2 * best.count < len(lattices):
        text = f"the cell is doubtful: {found} only. Look at the clusters in the report; give index.cell if it is known"
        session.warn(text)
        record["warnings"] = [text]
    return record


def _shown(cluster: CellCluster) -> dict[str, Any]:
    return {
        "count": cluster.count,
        "cell": list(cluster.cell),
        "spread": list(cluster.spread),
        "lattice": cluster.bravais,
        "space_group": cluster.space_group,
        "penalty": cluster.penalty,
    }

"""Stage ``process``: every frame, from pixels to integrated lattices."""

from __future__ import annotations

from collections import Counter

from xfelproc.run.distance import DistanceCheck
from xfelproc.run.session import Session
from xfelproc.run.target import run_target
from xfelproc.stages.execute import StageJob

STAGE = "process"


def run_stage(session: Session) -> Counter[str]:
    """Map the frames, again where another distance of the detector is found; return the counts of their states."""
    manifest, path, target = session.manifest, session.directory.manifest, run_target(session)
    units = range(manifest.n_units)

    def job(distance: float | None = None) -> StageJob:
        return session.stage_job(STAGE, manifest, path, target, integrate=True, distance=distance)

    check = DistanceCheck(session, target, job())
    counts = session.run_units(job(check.distance), manifest, units, check.see)
    while check.search():
        counts = session.run_units(job(check.distance), manifest, units, check.see)
    return counts

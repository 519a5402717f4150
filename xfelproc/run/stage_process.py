"""Stage ``process``: every frame, from pixels to integrated lattices."""

from __future__ import annotations

from collections import Counter

from xfelproc.run.session import Session
from xfelproc.run.target import run_target

STAGE = "process"


def run_stage(session: Session) -> Counter[str]:
    """Map the frames; return the counts of their states."""
    job = session.stage_job(STAGE, session.manifest, session.directory.manifest, run_target(session), integrate=True)
    return session.run_units(job, session.manifest, range(session.manifest.n_units))

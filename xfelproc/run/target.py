"""What is known of the lattice: by the user, or by the run's consensus."""

from __future__ import annotations

from xfelproc.models.frames import CellTarget
from xfelproc.run.session import Session

CONSENSUS = "consensus.json"


def user_target(session: Session) -> CellTarget:
    """Return what section ``[index]`` says."""
    index = session.config.section("index")
    return CellTarget(index.cell, index.space_group)


def run_target(session: Session) -> CellTarget:
    """Return what section ``[index]`` says, else the consensus, else nothing."""
    given = user_target(session)
    found = session.directory.read_json(CONSENSUS)
    if given.cell is not None or found is None or found["cell"] is None:
        return given
    a, b, c, alpha, beta, gamma = (float(v) for v in found["cell"])
    return CellTarget((a, b, c, alpha, beta, gamma), given.space_group or found["space_group"])

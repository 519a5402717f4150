"""What is known of the lattice: by the user, or by the run's consensus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xfelproc.geometry.cells import metric_tensor
from xfelproc.geometry.lattice_characters import GROUPS, HIGHEST_FIRST, distortion
from xfelproc.models.frames import CellTarget
from xfelproc.run.config import JobConfig
from xfelproc.run.directory import RunDirectory
from xfelproc.run.session import Session

CONSENSUS = "consensus.json"


def user_target(session: Session) -> CellTarget:
    """Return what section ``[index]`` says."""
    target: CellTarget = session.config.section("index").target()
    return target


def run_target(session: Session) -> CellTarget:
    """Return what section ``[index]`` says (a cell without a space group has its holohedry), else the consensus, else nothing."""
    return recorded_target(session.config, session.directory)


def recorded_target(config: JobConfig, directory: RunDirectory) -> CellTarget:
    """Return the same of a run that is not at work."""
    given: CellTarget = config.section("index").target()
    found = directory.read_json(CONSENSUS)
    if given.cell is not None and given.space_group is None:
        return CellTarget(given.cell, holohedry(given.cell))
    if given.cell is not None or found is None or found["cell"] is None:
        return given
    a, b, c, alpha, beta, gamma = (float(v) for v in found["cell"])
    return CellTarget((a, b, c, alpha, beta, gamma), given.space_group or found["space_group"])


def holohedry(cell: Sequence[float], max_penalty: float = 50.0) -> str:
    """Return the rotation group of the highest symmetry that a primitive cell has in the setting it is given in.

    ``max_penalty`` is 100 times the percent or degrees that the cell may be off.
    """
    metric = metric_tensor(cell)
    names = [name for name in HIGHEST_FIRST if name.endswith("P")]
    return next(GROUPS[name] for name in names if distortion(metric, GROUPS[name])[0] <= max_penalty)


@dataclass(frozen=True)
class MergingGroup:
    """The group to merge in, and whether it is only proposed."""

    space_group: str
    proposal: bool


def merging_group(session: Session) -> MergingGroup:
    """Return the group to merge in: the user's, else the holohedry of the lattice, as a proposal."""
    target = run_target(session)
    given = session.config.section("merge").space_group or user_target(session).space_group
    return MergingGroup(given or target.space_group or "P 1", given is None)

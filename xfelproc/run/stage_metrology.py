"""Stage ``metrology``: refine the detector with all lattices, and process again with it what that changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from typing import Any

from xfelproc.geometry.overlap import overlap_warning
from xfelproc.geometry.placement import placement_of, with_placement
from xfelproc.io.exchange.dials_write import write_expt
from xfelproc.io.exchange.geom_write import write_geom
from xfelproc.io.exchange.nexus_write import write_nexus_geometry
from xfelproc.models.experiment import Detector, Experiment
from xfelproc.run.drift import follow_drift
from xfelproc.run.geometry import PROCESS, RECORD, RESULT
from xfelproc.run.refining import Refining, Round
from xfelproc.run.session import Session

GEOMETRY = "geometry"
SUFFIXES = (".geom", ".expt", ".nxs")


def run_stage(session: Session) -> Counter[str] | None:
    """Refine the detector and process again; return the counts of the result's frames, None if they are the frames' as before."""
    directory, settings = session.directory, session.config.section("metrology")
    if not settings.enabled or (settings.enabled == "auto" and len(session.experiment.detector) == 1):
        if directory.read_json(RECORD) is not None:
            forget(session)
        return None
    refining = Refining(session)
    record = directory.read_json(RECORD)
    if record is None or record["lineage"] != refining.lineage:
        forget(session)
        record = _refined(session, refining)
        directory.write_json(RECORD, record)
        session.journal.write("metrology", stage=record["stage"], why=record["why"], rounds=record["rounds"])
        for text in record["warnings"]:
            session.warn(text)
    else:
        session.warnings += record["warnings"]
    counts = None
    detector = with_placement(refining.before, record["after"])
    if record["stage"] == RESULT:
        counts = refining.reprocess(detector)
        session.journal.write("result", stage=RESULT, counts=counts)
    refining.clear()
    if settings.block_frames:
        follow_drift(session, refining, record["stage"], detector)
    return counts


def forget(session: Session) -> None:
    """Remove what an earlier refinement said: its geometry is not that of the run."""
    session.directory.remove_json(RECORD)
    for suffix in SUFFIXES:
        session.directory.remove_json(f"{GEOMETRY}{suffix}")


def _refined(session: Session, refining: Refining) -> dict[str, Any]:
    """Refine; return the record of it, its files written."""
    detector, why, rounds = refining.refine()
    warnings, refused = [], overlap_warning(detector) if overlap_warning(refining.before) is None else None
    if refused is not None:
        detector, why = refining.before, f"the refined geometry is not taken: {refused}"
    changed = detector is not refining.before and placement_of(detector) != placement_of(refining.before)
    taken = [done for done in rounds if done.usable]
    for text in taken[-1].notes if taken and changed else ():
        warnings.append(f"metrology: {text}")
    asked = session.config.section("metrology").enabled is True
    if not changed and (refused is not None or (asked and not (rounds and rounds[0].usable))):
        warnings.append(f"metrology: the recorded geometry is kept: {why}")
    if changed:
        write_geometry(session, detector)
    session.reporter.say(_said(changed, why, rounds))
    return {
        "lineage": refining.lineage,
        "stage": RESULT if changed else PROCESS,
        "why": why,
        "rounds": [asdict(done) for done in rounds],
        "warnings": warnings,
        "before": placement_of(refining.before),
        "after": placement_of(detector),
    }


def _said(changed: bool, why: str, rounds: tuple[Round, ...]) -> str:
    if not changed:
        return f"metrology: the recorded geometry stays ({why})"
    moves = ", ".join(f"{done.shift_px:.2f}" for done in rounds if done.usable)
    return f"metrology: {rounds[0].lattices} lattices move the panels by {moves} px in {len(rounds)} rounds ({why})"


def write_geometry(session: Session, detector: Detector) -> None:
    """Write the refined geometry for this and other programs: ``gather/geometry.geom``, ``.expt`` and ``.nxs``."""
    models: Experiment = replace(session.experiment, detector=detector, crystal=None)
    path = session.directory.gather / GEOMETRY
    write_geom(models, path.with_suffix(".geom"))
    write_expt([models], path.with_suffix(".expt"))
    write_nexus_geometry(models, path.with_suffix(".nxs"))

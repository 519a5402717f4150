"""Stage ``merge``: observations of all shards, in unit order, to merged and unmerged MTZ files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from xfelproc.algorithms.merging import Merge
from xfelproc.errors import NothingLeftError
from xfelproc.run.distance import distance_warnings
from xfelproc.run.grouped import FOLDER
from xfelproc.run.merging import FoundShards, MergeInput, files_of, merge_inputs, merge_lineage, recorded_lineage
from xfelproc.run.session import Session
from xfelproc.run.target import merging_group

RECORD = "merge.json"
NO_LATTICE = "nothing to merge: no frame gave an integrated lattice; the report and 'xfelproc status' tell why frames failed"


def run_stage(session: Session) -> None:
    """Merge, unless the files here were merged from the same shards with the same parameters."""
    settings: Merge = session.config.section("merge")
    group, gathering = merging_group(session), session.gathering
    shards = FoundShards.of([MergeInput(session.directory.path, session.manifest.n_units, session.result_stage)])
    lineage = merge_lineage(gathering, shards, settings, group)
    record = session.directory.read_json(RECORD)
    files = [session.directory.merged / name for name in files_of(settings)]
    groups = [session.directory.merged / name for name in (record or {}).get("group_files", ())]
    if record is not None and record["lineage"] == lineage and (record["empty"] or all(f.is_file() for f in [*files, *groups])):
        session.warnings += record["warnings"]
        return
    notes, models = distance_warnings(session.directory), session.experiment
    output, bandwidth = session.directory.merged, models.beam.bandwidth
    try:
        found = merge_inputs(gathering, shards, settings, group, output, bandwidth, notes, models.detector)
    except NothingLeftError as error:
        _nothing(session, lineage, files, str(error))
        return
    if found is None:
        _nothing(session, lineage, files, NO_LATTICE)
        return
    session.directory.write_json(RECORD, {"lineage": recorded_lineage(lineage, found), "empty": False, **found})
    for text in found["warnings"]:
        session.warn(text)


def _nothing(session: Session, lineage: str, files: Sequence[Path], text: str) -> None:
    for file in files:
        file.unlink(missing_ok=True)
    shutil.rmtree(session.directory.merged / FOLDER, ignore_errors=True)
    session.warn(text)
    session.directory.write_json(RECORD, {"lineage": lineage, "empty": True, "warnings": [text], "shells": [], "overall": {}})

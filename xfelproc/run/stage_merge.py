"""Stage ``merge``: observations of all shards, in unit order, to merged and unmerged MTZ files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xfelproc.algorithms.merging import Merge
from xfelproc.run.distance import distance_warnings
from xfelproc.run.merging import FoundShards, MergeInput, merge_inputs, merge_lineage
from xfelproc.run.session import Session
from xfelproc.run.target import merging_group

RECORD = "merge.json"


def run_stage(session: Session) -> None:
    """Merge, unless the files here were merged from the same shards with the same parameters."""
    settings: Merge = session.config.section("merge")
    group, gathering = merging_group(session), session.gathering
    shards = FoundShards.of([MergeInput(session.directory.path, session.manifest.n_units, session.result_stage)])
    lineage = merge_lineage(gathering, shards, settings, group)
    record = session.directory.read_json(RECORD)
    files = [session.directory.merged / name for name in ("merged.mtz", "merged.h5", "table1.txt", "unmerged.mtz")]
    if record is not None and record["lineage"] == lineage and (record["empty"] or all(f.is_file() for f in files)):
        session.warnings += record["warnings"]
        return
    notes, bandwidth = distance_warnings(session.directory), session.experiment.beam.bandwidth
    found = merge_inputs(gathering, shards, settings, group, session.directory.merged, bandwidth, notes)
    if found is None:
        _nothing(session, lineage, files)
        return
    session.directory.write_json(RECORD, {"lineage": lineage, "empty": False, **found})
    for text in found["warnings"]:
        session.warn(text)


def _nothing(session: Session, lineage: str, files: Sequence[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
    text = "nothing to merge: no frame gave an integrated lattice; the report and 'xfelproc status' tell why frames failed"
    session.warn(text)
    session.directory.write_json(RECORD, {"lineage": lineage, "empty": True, "warnings": [text], "shells": [], "overall": {}})

"""Stage ``merge``: observations of all shards, in unit order, to merged and unmerged MTZ files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging import Merge, MergeResult, Observations, half_set, merge, prepare
from xfelproc.errors import ConfigError
from xfelproc.io.atomic import write_atomic
from xfelproc.io.exchange.mtz import BatchModel, MtzHeader, merged_mtz, unmerged_mtz
from xfelproc.io.shards import read_header, read_shard, shard_path
from xfelproc.models.frames import UnitResult
from xfelproc.models.tables import ShellTable
from xfelproc.run.distance import distance_warnings
from xfelproc.run.lineage import digest, versions
from xfelproc.run.session import Session
from xfelproc.run.stage_process import STAGE
from xfelproc.run.target import MergingSymmetry, merging_symmetry

RECORD = "merge.json"


@dataclass
class _Gathered:
    """What merging needs of the shards, in unit order."""

    parts: list[Observations] = field(default_factory=list)
    matrices: list[NDArray[np.float64]] = field(default_factory=list)
    cells: list[NDArray[np.float64]] = field(default_factory=list)
    wavelengths: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, result: UnitResult, names: Sequence[str], settings: Merge) -> None:
        """Take a unit."""
        frames, row = result.frames, result.lattices["frame"]
        identity = zip(frames["source"][row], frames["index"][row], strict=True)
        half = np.array([half_set(names[source], int(index)) for source, index in identity], dtype=np.uint8)
        self.parts.append(prepare(result.reflections, half, settings))
        self.matrices.append(result.lattices["A"])
        self.cells.append(result.lattices["cell"])
        self.wavelengths.append(frames["wavelength"][row])


def run_stage(session: Session) -> None:
    """Merge, unless the files here were merged from the same shards with the same parameters."""
    settings: Merge = session.config.section("merge")
    lineage = _lineage(session)
    record = session.directory.read_json(RECORD)
    files = [session.directory.merged / name for name in ("merged.mtz", "unmerged.mtz")]
    if record is not None and record["lineage"] == lineage and (record["empty"] or all(f.is_file() for f in files)):
        session.warnings += record["warnings"]
        return
    gathered = _gather(session, settings)
    if not sum(map(len, gathered.parts)):
        _nothing(session, lineage, files)
        return
    cell = [float(v) for v in np.median(np.concatenate(gathered.cells), axis=0)]
    symmetry = merging_symmetry(session, cell)
    result = merge(gathered.parts, cell, symmetry.space_group, settings, proposal=symmetry.proposal, ambiguity=symmetry.ambiguity)
    _write(session, result, gathered, files)
    session.directory.write_json(RECORD, _record(lineage, result, symmetry))
    for text in result.warnings:
        session.warn(text)


def _lineage(session: Session) -> str:
    """Return the hash of the shards' lineages and the parameters.

    Raises
    ------
    ConfigError
        If a unit is missing.
    """
    shards = []
    for unit in range(session.manifest.n_units):
        header = read_header(shard_path(session.directory.path, STAGE, unit))
        if header is None:
            raise ConfigError(f"merge: unit {unit} is not processed yet: run the same job without --only")
        shards.append(header.lineage)
    merge_parameters = session.config.section("merge").model_dump(mode="json")
    return digest({"shards": shards, "merge": merge_parameters, "versions": versions()})


def _gather(session: Session, settings: Merge) -> _Gathered:
    sources = session.manifest.sources
    names = [sources.name(number) for number in range(len(sources))]
    gathered = _Gathered()
    for unit in range(session.manifest.n_units):
        gathered.add(read_shard(shard_path(session.directory.path, STAGE, unit)), names, settings)
    return gathered


def _nothing(session: Session, lineage: str, files: Sequence[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
    text = "nothing to merge: no frame gave an integrated lattice; the report and 'xfelproc status' tell why frames failed"
    session.warn(text)
    session.directory.write_json(RECORD, {"lineage": lineage, "empty": True, "warnings": [text], "shells": [], "overall": {}})


def _write(session: Session, result: MergeResult, gathered: _Gathered, files: Sequence[Path]) -> None:
    wavelengths = np.concatenate(gathered.wavelengths)
    notes = (*distance_warnings(session.directory), *result.warnings)
    header = MtzHeader(result.cell, result.space_group, float(np.mean(wavelengths)), result.title, notes)
    bandwidth = session.experiment.beam.bandwidth
    matrices = np.concatenate(gathered.matrices)
    batches = [
        BatchModel(matrix, float(wavelength), bandwidth=bandwidth) for matrix, wavelength in zip(matrices, wavelengths, strict=True)
    ]
    write_atomic(files[0], merged_mtz(result.merged, header))
    write_atomic(files[1], unmerged_mtz(result.unmerged, batches, header))


def rows_of(table: ShellTable) -> list[dict[str, Any]]:
    """Return a table of shells as plain rows."""
    return [{c.name: table[c.name][row].item() for c in table.SCHEMA} for row in range(len(table))]


def _record(lineage: str, result: MergeResult, symmetry: MergingSymmetry) -> dict[str, Any]:
    return {
        "lineage": lineage,
        "empty": False,
        "cell": list(result.cell),
        "space_group": result.space_group,
        "proposal": result.proposal,
        "ambiguity": list(symmetry.ambiguity),
        "warnings": list(result.warnings),
        "title": result.title,
        "n_lattices": len(result.lattices),
        "n_lattices_used": int(np.count_nonzero(result.lattices["used"])),
        "overall": rows_of(result.overall)[0],
        "shells": rows_of(result.shells),
    }

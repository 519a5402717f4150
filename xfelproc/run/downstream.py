"""After merging: free flags, amplitudes, statistics of the intensities, the merged files and Table 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.downstream.analysis import analyse
from xfelproc.algorithms.downstream.free import check_crystal, drawn_flags, extend_flags, normalised_flags
from xfelproc.algorithms.downstream.record import record_of
from xfelproc.algorithms.downstream.table_one import Experiment, TableOne, table_one
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.geometry.miller import find_space_group, free_flags, inverse_d2, pack, possible_reflections
from xfelproc.io.atomic import write_atomic
from xfelproc.io.exchange.free_flags import read_free_flags
from xfelproc.io.exchange.merged_file import MergedData, merged_bytes
from xfelproc.io.exchange.mtz import MtzHeader, merged_mtz
from xfelproc.io.shards import read_header, shard_path
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.tables import MergedTable

MERGED_FILE, TABLE_FILE = "merged.h5", "table1.txt"


@dataclass(frozen=True)
class Finished:
    """What was written, and what is to be told of it: `analysis.record_of` with the free set, wavelength in Å, and warnings."""

    data: MergedData
    analysis: dict[str, Any]
    wavelength: float
    warnings: tuple[str, ...]

    def added_to(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a record of merging with this in it."""
        warnings = [*record["warnings"], *self.warnings]
        return {**record, "warnings": warnings, "wavelength": self.wavelength, "downstream": self.analysis}


def finish(merged: MergedTable, header: MtzHeader, settings: Merge, output: Path, ending: str = "") -> Finished:
    """Write ``merged.mtz`` and ``merged.h5`` of merged intensities into an existing folder.

    Parameters
    ----------
    merged
        Unique reflections that were measured.
    header
        Cell, space group, wavelength, title, notes.
    settings
        Section ``[merge]``.
    output
        Folder.
    ending
        What is put behind ``merged`` in the files' names.

    Raises
    ------
    DataError
        If there is no reflection, or ``merge.free_from`` cannot be used.
    """
    group = find_space_group(header.space_group)
    if settings.list_missing and len(merged):
        merged = with_missing(merged, header.cell, group)
    flag, free, words = _flags(merged["hkl"], header.cell, group, settings)
    merged = merged.replace(free=flag)
    amplitudes, analysis = analyse(merged, header.cell, group, settings.composition)
    warnings = (*words, *analysis.warnings)
    header = replace(header, notes=(*header.notes, *warnings))
    write_atomic(output / f"merged{ending}.mtz", merged_mtz(merged, header, amplitudes))
    data = MergedData(merged, amplitudes, header.cell, header.space_group, header.wavelength, header.notes)
    write_atomic(output / f"merged{ending}.h5", merged_bytes(data))
    return Finished(data, {**record_of(analysis), "free": free}, header.wavelength, warnings)


def with_missing(merged: MergedTable, cell: Sequence[float], group: gemmi.SpaceGroup) -> MergedTable:
    """Return the table with the possible reflections between its limits of resolution that are not in it, intensity NaN."""
    s2 = inverse_d2(merged["hkl"], cell)
    low, high = (1.0 + 1e-6) / np.sqrt(max(float(s2.min()), 1e-9)), (1.0 - 1e-6) / np.sqrt(float(s2.max()))
    possible = possible_reflections(cell, group, high, low)
    hkl = possible[~np.isin(pack(possible), pack(merged["hkl"]))]
    nothing = np.full(len(hkl), np.nan)
    names = [c.name for c in MergedTable.SCHEMA if c.dtype.startswith("f") and c.name != "d"]
    centric = np.asarray(group.operations().centric_flag_array(np.ascontiguousarray(hkl)), dtype=bool).reshape(-1)
    missing = MergedTable(None, hkl=hkl, d=inverse_d2(hkl, cell) ** -0.5, centric=centric, **dict.fromkeys(names, nothing))
    both = MergedTable.concatenate([merged, missing])
    return both.select(np.argsort(pack(both["hkl"]), kind="stable"))


def _flags(
    hkl: NDArray[np.int32], cell: Sequence[float], group: gemmi.SpaceGroup, settings: Merge
) -> tuple[NDArray[np.int32], dict[str, Any], list[str]]:
    """Return free flags, what is to be recorded of them, and warnings."""
    n_values = max(2, round(1.0 / settings.free_fraction))
    if settings.free_from is None:
        if settings.free_choice == "thin_shells":
            flag = free_flags(hkl, group, settings.free_fraction, inverse_d2(hkl, cell) ** -0.5)
        else:
            flag = drawn_flags(hkl, cell, group, n_values, settings.free_twin_laws)
        return flag, {"from": None, "n_test": int(np.count_nonzero(flag == 0))}, []
    column = read_free_flags(Path(settings.free_from))
    given = normalised_flags(column.hkl, column.values, column.cell, column.space_group, settings.free_from)
    words = check_crystal(given, cell, group)
    found = extend_flags(hkl, given, cell, group, settings.free_twin_laws)
    if found.n_conflicts and not words:
        words.append(
            f"free flags: {found.n_conflicts} groups of symmetry mates have several flags in {Path(settings.free_from).name}"
        )
    record = {
        "from": settings.free_from,
        "n_known": found.n_known,
        "n_conflicts": found.n_conflicts,
        "n_test": int(np.count_nonzero(found.flag == 0)),
    }
    return found.flag, record, words


def frame_counts(shards: Sequence[tuple[Path, str, int]]) -> dict[str, int]:
    """Return how many frames, hits, indexed frames and lattices shards hold; each is (run, stage, number of units)."""
    total = dict.fromkeys((*(status.name for status in FrameStatus), "LATTICES"), 0)
    for run, stage, n_units in shards:
        for unit in range(n_units):
            header = read_header(shard_path(run, stage, unit))
            for name in total:
                total[name] += 0 if header is None else int(header.counts.get(name, 0))
    reached = {status: sum(total[other.name] for other in FrameStatus if other >= status) for status in FrameStatus}
    frames = sum(total[status.name] for status in FrameStatus)
    indexed = reached[FrameStatus.INDEXED]
    return {"frames": frames, "hits": reached[FrameStatus.HIT], "indexed": indexed, "lattices": total["LATTICES"]}


def write_table_one(record: dict[str, Any], shards: Sequence[tuple[Path, str, int]], output: Path) -> None:
    """Write Table 1 as text, and put it and the numbers of frames into the record of merging."""
    if shards:
        record["counts"] = frame_counts(shards)
    table = table_of(record)
    record["table_one"] = table.record()
    write_atomic(output / TABLE_FILE, table.text().encode())


def table_of(record: Mapping[str, Any]) -> TableOne:
    """Return Table 1 of a record of merging."""
    counts = record.get("counts", {})
    experiment = Experiment(
        record["space_group"],
        tuple(record["cell"]),
        record["wavelength"],
        record["n_lattices_used"],
        counts.get("frames"),
        counts.get("hits"),
        counts.get("indexed"),
    )
    return table_one(experiment, record["overall"], record["shells"], record["downstream"])

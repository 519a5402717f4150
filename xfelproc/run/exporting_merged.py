"""Merged data of a run, or of a campaign's group, in other programs' formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from xfelproc.errors import ConfigError, DataError
from xfelproc.io.atomic import write_atomic, write_pieces
from xfelproc.io.exchange.hkl_write import hkl_pieces
from xfelproc.io.exchange.merged_file import MergedData, read_merged
from xfelproc.io.exchange.mmcif_unmerged import unmerged_block
from xfelproc.io.exchange.mmcif_write import ENTRY, Deposition, mmcif_pieces
from xfelproc.io.exchange.mtz import MtzHeader, half_mtz
from xfelproc.run.directory import RunDirectory
from xfelproc.run.downstream import MERGED_FILE, table_of
from xfelproc.run.group_frames import file_name
from xfelproc.run.grouped import FOLDER
from xfelproc.run.lineage import versions

RECORDS = ("merge.json", "group.json")


@dataclass(frozen=True)
class MergedRun:
    """Merged data, and what is recorded of their merging."""

    folder: Path
    data: MergedData
    record: dict[str, Any]
    group: str | None = None
    """A group of lattices that was merged apart; None: all lattices."""

    @classmethod
    def open(cls, folder: Path, group: str | None = None) -> MergedRun:
        """Open the folder of a run or of a campaign's group: the merged data of all lattices, or of a group of them.

        Raises
        ------
        ConfigError
            If nothing is merged there, or there is no such group.
        """
        directory = RunDirectory(folder)
        path = directory.merged / MERGED_FILE
        found = [content for name in RECORDS if (content := directory.read_json(name)) is not None]
        record = found[0].get("found", found[0]) if found else None
        if record is None or record.get("empty") or not path.is_file():
            raise ConfigError(f"{folder}: nothing is merged yet: run its job first")
        return cls(folder, read_merged(path), record) if group is None else cls._of_group(folder, record, group)

    @classmethod
    def _of_group(cls, folder: Path, record: dict[str, Any], group: str) -> MergedRun:
        known = {one["name"]: one for one in record.get("groups", ()) if one["files"]}
        if group not in known:
            names = ", ".join(known) or "none: see section [merge.groups]"
            raise ConfigError(f"--group {group}: {folder} has no merged data of such a group (it has {names})")
        own = {**record, "title": f"{record['title']}: {group}", "settings": record.get("settings", {}), **known[group]}
        return cls(folder, read_merged(group_path(folder, group, ".h5")), own, group)

    def header(self) -> MtzHeader:
        """Return what an MTZ says of the data."""
        data = self.data
        return MtzHeader(data.cell, data.space_group, data.wavelength, str(self.record["title"]), data.notes)


def group_path(folder: Path, group: str, suffix: str) -> Path:
    """Return where the merged data of a group of lattices are."""
    return RunDirectory(folder).merged / FOLDER / f"merged_{file_name(group)}{suffix}"


def _mtz(run: MergedRun, output: Path) -> list[Path]:
    whole = RunDirectory(run.folder).merged / "merged.mtz"
    write_atomic(output, (whole if run.group is None else group_path(run.folder, run.group, ".mtz")).read_bytes())
    return [output]


def _mtz_halves(run: MergedRun, output: Path) -> list[Path]:
    paths = [output.with_name(f"{output.stem}_{half}{output.suffix or '.mtz'}") for half in (1, 2)]
    contents = [half_mtz(run.data.merged, half, run.header()) for half in (1, 2)]
    for path, content in zip(paths, contents, strict=True):
        write_atomic(path, content)
    return paths


def _mmcif(run: MergedRun, output: Path) -> list[Path]:
    write_pieces(output, _encoded(_deposition(run)))
    return [output]


def _mmcif_unmerged(run: MergedRun, output: Path) -> list[Path]:
    if run.group is not None:
        raise ConfigError("--to mmcif-unmerged: observations are written of all groups together: leave --group out")
    unmerged = RunDirectory(run.folder).merged / "unmerged.mtz"
    if not unmerged.is_file():
        raise DataError("is not there: set merge.unmerged = true and merge again", unmerged)
    write_pieces(output, _encoded(chain(_deposition(run), unmerged_block(unmerged, ENTRY))))
    return [output]


def _deposition(run: MergedRun) -> Iterator[str]:
    record, counts = run.record, run.record.get("counts", {})
    serial = {
        "frames_total": counts.get("frames"),
        "frame_hits": counts.get("hits"),
        "crystal_hits": counts.get("hits"),
        "frames_indexed": counts.get("indexed"),
        "frames_failed_index": counts["hits"] - counts["indexed"] if "hits" in counts else None,
        "lattices_indexed": counts.get("lattices"),
        "lattices_merged": record["n_lattices_used"],
    }
    if record["n_lattices_used"] is None:  # merged from a file: nobody knows whether it was serial
        serial = {}
    wilson = record["downstream"]["wilson"]
    said = Deposition(
        record["overall"],
        record["shells"],
        versions()["xfelproc"],
        {name: value for name, value in serial.items() if value is not None},
        wilson["b_factor"] if wilson else None,
    )
    return mmcif_pieces(run.data, said)


def _hkl(run: MergedRun, output: Path) -> list[Path]:
    merged = run.data.merged
    pieces = hkl_pieces(merged["hkl"], merged["intensity"], merged["sigma"], merged["multiplicity"], run.data.space_group, _by())
    write_pieces(output, _encoded(pieces))
    return [output]


def _hkl_halves(run: MergedRun, output: Path) -> list[Path]:
    merged, paths = run.data.merged, [output.with_suffix(f".hkl{half}") for half in (1, 2)]
    for half, path in enumerate(paths, 1):
        intensity, sigma, n = merged[f"half{half}"], merged[f"sigma_half{half}"], merged[f"n_half{half}"]
        if not np.any(n > 0):
            raise DataError(f"half-set {half} has no observation: the data were merged by a version that kept none; merge again")
        write_pieces(path, _encoded(hkl_pieces(merged["hkl"], intensity, sigma, n, run.data.space_group, _by())))
    return paths


def _by() -> tuple[str, ...]:
    return (f"Generated by xfelproc {versions()['xfelproc']}",)


def _table_one(run: MergedRun, output: Path) -> list[Path]:
    table = table_of(run.record)
    if output.suffix == ".json":
        content = {"table_one": table.record(), **{name: run.record[name] for name in ("overall", "shells", "downstream")}}
        write_atomic(output, json.dumps(without_nan(content), indent=1, allow_nan=False).encode())
    else:
        write_atomic(output, table.text().encode())
    return [output]


def without_nan(value: Any) -> Any:
    """Return plain values with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _encoded(pieces: Iterator[str]) -> Iterator[bytes]:
    return (piece.encode() for piece in pieces)


MERGED_EXPORTERS = {
    "mtz": _mtz,
    "mtz-halves": _mtz_halves,
    "mmcif": _mmcif,
    "mmcif-unmerged": _mmcif_unmerged,
    "hkl": _hkl,
    "hkl-halves": _hkl_halves,
    "table1": _table_one,
}


def export_merged(folder: Path, to: str, output: Path, group: str | None = None) -> list[Path]:
    """Write merged data, of all lattices or of a group of them; return the files written.

    Raises
    ------
    ConfigError
        If nothing is merged, or there is no such group.
    """
    return MERGED_EXPORTERS[to](MergedRun.open(folder, group), output)

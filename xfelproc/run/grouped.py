"""Groups of lattices, merged apart: their files, what is told of each, and the differences between them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from xfelproc.algorithms.merging.differences import Difference, MergedGroup, difference, difference_statistics
from xfelproc.algorithms.merging.group_settings import Groups
from xfelproc.algorithms.merging.merge import MergeResult, Symmetry, result_of
from xfelproc.algorithms.merging.quality import control_warnings
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.io.atomic import make_folder, write_atomic
from xfelproc.io.exchange.difference_mtz import difference_mtz
from xfelproc.io.exchange.mtz import MtzHeader
from xfelproc.models.tables import Table
from xfelproc.run.downstream import finish, table_of
from xfelproc.run.group_frames import GroupedFrames, file_name
from xfelproc.run.merge_engine import Finished, GroupEnd

FOLDER = "groups"
"""In that of the merged data; it is made anew by each merging."""


@dataclass(frozen=True)
class GroupsWritten:
    """What ``merge.json`` says of groups: ``groups`` and ``differences`` one by one, ``files`` by their paths; and warnings."""

    groups: tuple[dict[str, Any], ...] = ()
    differences: tuple[dict[str, Any], ...] = ()
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def added_to(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a record of merging with this in it."""
        warnings = [*record["warnings"], *self.warnings]
        return {**record, "warnings": warnings, "groups": self.groups, "differences": self.differences, "group_files": self.files}


@dataclass(frozen=True)
class GroupWriter:
    """Writes groups into the folder ``output``, beside merged data of all lattices: ``whole``, their symmetry and files' header."""

    whole: MergeResult
    symmetry: Symmetry
    header: MtzHeader
    settings: Merge
    output: Path

    def write(self, finished: Finished, frames: GroupedFrames | None) -> GroupsWritten:
        """Write ``merged_GROUP.mtz``, ``merged_GROUP.h5`` and ``table1_GROUP.txt`` of each, and ``difference_GROUP-OTHER.mtz``.

        A group of which nothing can be merged is told of, and the others are written. None: there are no groups.
        """
        shutil.rmtree(self.output, ignore_errors=True)
        if frames is None:
            return GroupsWritten()
        make_folder(self.output)
        found: list[MergedGroup] = []
        groups, words, files = [], list(frames.warnings), []
        for number, (name, n_frames) in enumerate(zip(frames.names, frames.counts, strict=True)):
            end = finished.group(number)
            record, merged = self._group(name, n_frames, end)
            words += [f"group {name}: {text}" for text in record["warnings"]]
            groups.append(record)
            files += record["files"]
            if merged is not None:
                found.append(merged)
        differences, more = self._differences(found, frames.names)
        files += [one["file"] for one in differences if one["file"]]
        paths = tuple(f"{self.output.name}/{name}" for name in files)
        return GroupsWritten(tuple(groups), tuple(differences), paths, (*words, *more))

    def _group(self, name: str, n_frames: int, end: GroupEnd) -> tuple[dict[str, Any], MergedGroup | None]:
        """Write a group's files; return what is recorded of it, and its merged data, None if there are none."""
        record: dict[str, Any] = {"name": name, "n_frames": n_frames, "n_lattices": end.final.n_lattices}
        record |= {"n_lattices_used": end.final.n_used, "files": [], "warnings": []}
        if not end.final.n_lattices:
            of = f"none of its {n_frames} frames has a lattice" if n_frames else "no frame of these runs is in it"
            return record | {"warnings": [f"{of}: not merged"]}, None
        result = result_of(end.final, self.whole.cell, self.symmetry, self.settings)
        if not len(result.merged):
            return record | {"warnings": [f"its {end.final.n_lattices} lattices leave no merged reflection: not merged"]}, None
        ending = f"_{file_name(name)}"
        header = replace(self.header, wavelength=end.wavelength, title=f"{self.header.title}: {name}")
        told = finish(result.merged, header, self.settings, self.output, ending)
        record |= {
            "cell": list(result.cell),
            "space_group": result.space_group,
            "wavelength": told.wavelength,
            "overall": rows_of(result.overall)[0],
            "shells": rows_of(result.shells),
            "quality": result.quality,
            "downstream": told.analysis,
            "counts": {"frames": n_frames},
            "warnings": [*control_warnings(result.shells), *told.warnings],
        }
        table = table_of(record)
        write_atomic(self.output / f"table1{ending}.txt", table.text().encode())
        record |= {"table_one": table.record(), "files": [f"merged{ending}.mtz", f"merged{ending}.h5", f"table1{ending}.txt"]}
        return record, MergedGroup(name, told.data.merged, told.data.amplitudes)

    def _differences(self, found: Sequence[MergedGroup], names: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
        """Write the differences that the section asks for; return what is recorded of them, and warnings."""
        asked = self.settings.groups
        pairs, words = pairs_of(found, names, asked)
        records = []
        for one, other in pairs:
            made = difference(one, other, asked.scale_differences)
            record = self._difference(made)
            if record["file"] is None:
                words.append(f"groups {made.group} and {made.reference} have no reflection in common: no differences")
            records.append(record)
        return records, words

    def _difference(self, made: Difference) -> dict[str, Any]:
        edges = np.append(1.0 / self.whole.shells["d_max"], 1.0 / self.whole.shells["d_min"][-1])
        shells, overall = difference_statistics(made.table, edges)
        name = f"difference_{file_name(made.group)}-{file_name(made.reference)}.mtz"
        if len(made.table):
            header = replace(self.header, title=f"{self.header.title}: {made.group} less {made.reference}")
            write_atomic(self.output / name, difference_mtz(made.table, header))
        return {
            "group": made.group,
            "reference": made.reference,
            "scaled": self.settings.groups.scale_differences,
            "log_scale": made.log_scale,
            "b_factor": made.b_factor,
            "overall": rows_of(overall)[0],
            "shells": rows_of(shells),
            "file": name if len(made.table) else None,
        }


def pairs_of(
    found: Sequence[MergedGroup], names: Sequence[str], asked: Groups
) -> tuple[list[tuple[MergedGroup, MergedGroup]], list[str]]:
    """Return pairs of a group and the one that it is compared to, and a word if that one is not there."""
    if asked.differences == "none":
        return [], []
    if asked.differences == "all":
        return [(other, one) for one, other in combinations(found, 2)], []
    wanted = asked.reference or (names[0] if names else "")
    reference = next((group for group in found if group.name == wanted), None)
    if reference is None:
        return [], [
            f"group {wanted}, to which the others are compared, has no merged data: no differences (merge.groups.reference)"
        ]
    return [(group, reference) for group in found if group is not reference], []


def rows_of(table: Table) -> list[dict[str, Any]]:
    """Return a table of statistics as plain rows."""
    return [{c.name: table[c.name][row].item() for c in table.SCHEMA} for row in range(len(table))]

"""The rows of a table of groups, laid on the frames of the runs to merge."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError
from xfelproc.io.group_table import ALL, GroupTable, read_group_table
from xfelproc.io.manifest import Manifest
from xfelproc.stages.merge_groups import NONE

Labels = NDArray[np.int16]
Place = tuple[int, int]
"""Number of a run, and of a source in it."""


def labels_of_table(path: Path, manifests: Sequence[Manifest]) -> tuple[tuple[str, ...], Labels, list[str]]:
    """Return the groups that a table names, the group of each frame, and words on rows and frames that do not meet.

    Raises
    ------
    ConfigError
        If the table cannot be read, a name in it is that of two files, or a frame is in two groups.
    """
    table = read_group_table(path)
    places = _places(table, manifests)
    first = np.concatenate([[0], np.cumsum([m.n_frames for m in manifests])]).astype(np.int64)
    labels, line = np.full(int(first[-1]), NONE, dtype=np.int16), np.zeros(int(first[-1]), dtype=np.int32)
    met = np.zeros(len(table), dtype=bool)
    order = np.argsort(table.source, kind="stable")
    bounds = np.searchsorted(table.source[order], np.arange(len(table.sources) + 1))
    wanted = {place: number for number, place in enumerate(places) if place is not None}
    for number, manifest in enumerate(manifests):
        of_source = np.argsort(manifest.frame_source, kind="stable")
        numbers, starts = np.unique(manifest.frame_source[of_source], return_index=True)
        ends = np.append(starts[1:], len(of_source))
        for source, start, end in zip(numbers.tolist(), starts.tolist(), ends.tolist(), strict=True):
            name = wanted.get((number, source))
            if name is None:
                continue
            rows, frames = order[bounds[name] : bounds[name + 1]], of_source[start:end]
            _lay(table, rows, manifest.frame_index[frames], first[number] + frames, labels, line, met)
    return table.groups, labels, _words(table, labels, met)


def _lay(
    table: GroupTable,
    rows: NDArray[np.int64],
    index: NDArray[np.int64],
    frames: NDArray[np.int64],
    labels: Labels,
    line: NDArray[np.int32],
    met: NDArray[np.bool_],
) -> None:
    """Give the frames of a source (their index in it, and place among all) the groups that some rows of the table say."""
    order = np.argsort(index, kind="stable")
    whole = rows[table.frame[rows] == ALL]
    single = rows[table.frame[rows] != ALL]
    place = np.searchsorted(index[order], table.frame[single])
    found = place < len(index)
    found[found] = index[order][place[found]] == table.frame[single][found]
    pairs = [(np.full(len(frames), row), frames) for row in whole.tolist()] + [(single[found], frames[order[place[found]]])]
    for own, at in pairs:
        # one by one where a frame comes twice: the later row meets what the earlier one said
        for row, frame in zip(own.tolist(), at.tolist(), strict=True):
            if labels[frame] not in (NONE, table.group[row]):
                one, two = table.groups[labels[frame]], table.groups[table.group[row]]
                raise ConfigError(
                    f"merge.groups.table {table.path}: a frame of {table.sources[table.source[row]]} is in two groups: "
                    f"{one!r} by line {line[frame]}, {two!r} by line {table.line[row]}"
                )
            labels[frame], line[frame], met[row] = table.group[row], table.line[row], True


def _places(table: GroupTable, manifests: Sequence[Manifest]) -> list[Place | None]:
    """Return the run and source of each name in the table: by the whole path, else by the file's name alone; None: no such file."""
    paths: dict[str, Place] = {}
    names: dict[str, list[Place]] = {}
    for number, manifest in enumerate(manifests):
        for source in range(len(manifest.sources)):
            paths[os.path.normpath(manifest.sources.path(source))] = (number, source)
            names.setdefault(manifest.sources.name(source), []).append((number, source))
    found: list[Place | None] = []
    for name in table.sources:
        given = os.path.normpath(table.path.parent / Path(name).expanduser())
        known = [paths[given]] if given in paths else names.get(Path(name).name, [])
        if len(known) > 1:
            raise ConfigError(f"merge.groups.table {table.path}: {len(known)} files are called {Path(name).name}: give whole paths")
        found.append(known[0] if known else None)
    return found


def _words(table: GroupTable, labels: Labels, met: NDArray[np.bool_]) -> list[str]:
    words = []
    if not met.any():
        return [
            f"merge.groups.table {table.path.name}: none of its {len(table)} rows is of a frame of these runs (the first is of "
            f"{table.sources[table.source[0]]}): sources are files as the job names them, frames count from 0"
        ]
    if not met.all():
        row = int(np.flatnonzero(~met)[0])
        which = "" if table.frame[row] == ALL else f" frame {table.frame[row]}"
        words.append(
            f"merge.groups.table {table.path.name}: {np.count_nonzero(~met)} of {len(table)} rows are of no frame of these runs, "
            f"the first in line {table.line[row]}: {table.sources[table.source[row]]}{which}"
        )
    missing = int(np.count_nonzero(labels == NONE))
    if missing:
        words.append(f"merge.groups.table {table.path.name}: says nothing of {missing} of {len(labels)} frames: in no group")
    return words

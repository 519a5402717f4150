"""Files that say to which group each frame belongs: tables with a header, and lists as CrystFEL's ``--custom-split`` takes."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError

SOURCE = ("source", "file", "filename", "image")
FRAME = ("frame", "index", "event")
GROUP = ("group", "dataset", "label")
ALL = -1
"""Frame of a row that is for all frames of its file."""


@dataclass(frozen=True)
class GroupTable:
    """Rows of a file: number of the source's name, frame in it (`ALL`: each), number of the group, line; all (n,)."""

    path: Path
    sources: tuple[str, ...]
    groups: tuple[str, ...]
    """In the order in which they come in the file."""
    source: NDArray[np.int32]
    frame: NDArray[np.int64]
    group: NDArray[np.int16]
    line: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.source)


def read_group_table(path: Path) -> GroupTable:
    """Read the file.

    A first line with a comma or a tab is a header that names a source, perhaps a frame, and a group. Else each line has a file,
    perhaps an event (``//12``, ``entry//12`` or ``12``), and a group, with spaces between; lines that begin with # are skipped.

    Raises
    ------
    ConfigError
        If it cannot be read, or a line is wrong: says which.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            head = stream.readline()
            stream.seek(0)
            delimiter = "," if "," in head else "\t" if "\t" in head else None
            return _collected(path, _listed(stream, path) if delimiter is None else _table(stream, path, delimiter))
    except OSError as error:
        raise ConfigError(f"merge.groups.table {path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"merge.groups.table {path}: is no text of a table: {error}") from error


Row = tuple[int, str, int, str]


def _collected(path: Path, rows: Iterator[Row]) -> GroupTable:
    sources: dict[str, int] = {}
    groups: dict[str, int] = {}
    columns = array("i"), array("q"), array("h"), array("i")
    for line, source, frame, group in rows:
        number = groups.setdefault(group, len(groups))
        if number > np.iinfo(np.int16).max:
            raise ConfigError(f"merge.groups.table {path}: line {line}: more than {number} groups: is {group!r} a group?")
        for column, value in zip(columns, (sources.setdefault(source, len(sources)), frame, number, line), strict=True):
            column.append(value)
    if not groups:
        raise ConfigError(f"merge.groups.table {path}: has no row")
    source_column, frame_column, group_column, line_column = columns
    return GroupTable(
        path,
        tuple(sources),
        tuple(groups),
        np.array(source_column, dtype=np.int32),
        np.array(frame_column, dtype=np.int64),
        np.array(group_column, dtype=np.int16),
        np.array(line_column, dtype=np.int32),
    )


def _table(stream: Iterator[str], path: Path, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(stream, delimiter=delimiter)
    head = [name.strip().lower() for name in next(reader)]
    source, frame, group = (next((head.index(name) for name in known if name in head), None) for known in (SOURCE, FRAME, GROUP))
    if source is None or group is None:
        missing = "source" if source is None else "group"
        raise ConfigError(
            f"merge.groups.table {path}: its first line names no column {missing} (it has {', '.join(head)}): "
            "columns are source, frame and group"
        )
    for fields in reader:
        if not any(field.strip() for field in fields) or fields[0].startswith("#"):
            continue
        if len(fields) <= max(source, group, frame or 0):
            raise ConfigError(f"merge.groups.table {path}: line {reader.line_num} has {len(fields)} fields, not {len(head)}")
        number = "" if frame is None else fields[frame]
        yield (
            reader.line_num,
            _named(fields[source], path, reader.line_num, "source"),
            _frame(number, path, reader.line_num),
            _named(fields[group], path, reader.line_num, "group"),
        )


def _listed(stream: Iterator[str], path: Path) -> Iterator[Row]:
    for line, text in enumerate(stream, 1):
        words = text.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2:
            raise ConfigError(
                f"merge.groups.table {path}: line {line} is {text.strip()!r}: a file, an event and a group are wanted"
            )
        if len(words) == 2:
            yield line, words[0], ALL, words[1]
        else:
            yield line, " ".join(words[:-2]), _frame(words[-2], path, line), words[-1]


def _named(text: str, path: Path, line: int, what: str) -> str:
    if not text.strip():
        raise ConfigError(f"merge.groups.table {path}: line {line} has no {what}")
    return text.strip()


def _frame(text: str, path: Path, line: int) -> int:
    number = text.strip().rpartition("//")[2]
    if not number:
        return ALL
    if not number.isdecimal():
        raise ConfigError(
            f"merge.groups.table {path}: line {line}: frame {text.strip()!r} is no number from 0 on (nor an event //n)"
        )
    return int(number)

"""Which files and which frames: patterns, folders, lists and ranges as a user writes them."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from xfelproc.errors import ConfigError
from xfelproc.io.sources.folders import MAGIC, Listing, frame_files, matching

Chosen = tuple[int, ...] | None
"""Frames of a file (from 0) that lists name one by one; None: all of them."""


class InputFiles:
    """Files in run order, each once: folders once each, and a number and a name a file. Lists may choose frames of a file."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.folder_of = array("i")
        self.names: list[str] = []
        self._chosen: dict[int, set[int]] = {}
        self._numbers: dict[str, int] = {}
        self._whole: dict[int, tuple[int, int]] = {}
        self._known: dict[int, dict[str, int]] = {}

    def __len__(self) -> int:
        return len(self.names)

    def path(self, number: int) -> str:
        """Return the path of a file."""
        return os.path.join(self.folders[self.folder_of[number]], self.names[number])  # noqa: PTH118  (a million of them)

    def chosen(self, number: int) -> Chosen:
        """Return the frames that lists name of a file; None: all of them."""
        frames = self._chosen.get(number)
        return None if frames is None else tuple(sorted(frames))

    @property
    def listed(self) -> tuple[int, ...]:
        """Files of which lists name frames."""
        return tuple(sorted(self._chosen))

    def add_folder(self, folder: str, names: list[str]) -> None:
        """Add files of a folder, whole."""
        if folder in self._numbers:
            for name in names:
                self.add(folder, name)
            return
        number = self._number(folder)
        self._whole[number] = (len(self.names), len(self.names) + len(names))
        self.folder_of.extend(array("i", [number]) * len(names))
        self.names.extend(names)

    def add(self, folder: str, name: str, frame: int | None = None) -> None:
        """Add a file, or a frame of it. A file that is named without frames, too, is taken whole."""
        number = self._number(folder)
        known = self._known.get(number)
        if known is None:
            # names are looked up in folders that are named more than once only
            start, stop = self._whole.get(number, (0, 0))
            known = self._known[number] = {self.names[i]: i for i in range(start, stop)}
        file = known.get(name)
        if file is None:
            file = known[name] = len(self.names)
            self.folder_of.append(number)
            self.names.append(name)
            if frame is not None:
                self._chosen[file] = {frame}
        elif frame is None:
            self._chosen.pop(file, None)
        elif file in self._chosen:
            self._chosen[file].add(frame)

    def _number(self, folder: str) -> int:
        number = self._numbers.get(folder)
        if number is None:
            number = self._numbers[folder] = len(self.folders)
            self.folders.append(folder)
        return number


def find_inputs(patterns: Sequence[str | Path], base: str | Path | None = None) -> InputFiles:
    """Return the files that patterns mean, each once, and which frames of each.

    The files are in the order of the patterns; within a pattern folder by folder, folders and the names in them in natural order. A
    pattern is a file, a glob pattern (``**`` goes into subfolders), a folder (all files in it that look like frames; of HDF5 ones
    only the masters, where there are any), or ``@list.txt``, a file with one pattern a line (``#`` starts a comment), relative to
    the list's folder. In a list a file may be followed by one frame of it, ``frames.h5 //12`` or ``frames.h5 12``. A file that is
    named without frames, too, is taken whole.

    Each folder is listed once a pattern; no file is opened or looked at.

    Parameters
    ----------
    patterns
        What the user wrote.
    base
        Folder that relative patterns start from; the current one by default.

    Raises
    ------
    ConfigError
        If a pattern matches nothing; names it.
    """
    found, listing = InputFiles(), Listing()
    for pattern in patterns:
        _expand(str(pattern), "" if base is None else str(base), (), found, listing)
    return found


def expand_inputs(patterns: Sequence[str | Path], base: str | Path | None = None) -> dict[Path, Chosen]:
    """Return the same (see `find_inputs`) as paths and the frames of each."""
    found = find_inputs(patterns, base)
    return {Path(found.path(number)): found.chosen(number) for number in range(len(found))}


def _join(base: str, name: str) -> str:
    name = str(Path(name).expanduser()) if name.startswith("~") else name
    path = os.path.join(base, name)  # noqa: PTH118  (paths as objects are slow, and lists have millions of lines)
    return str(Path(path)) if "./" in path or "//" in path or path.endswith("/") else path


def _expand(pattern: str, base: str, lists: tuple[str, ...], found: InputFiles, listing: Listing) -> None:
    if pattern.startswith("@"):
        _expand_list(_join(base, pattern[1:]), lists, found, listing)
        return
    for folder, names in _files(pattern, base, listing):
        found.add_folder(folder, names)


def _files(pattern: str, base: str, listing: Listing) -> Iterator[tuple[str, list[str]]]:
    path = str(Path(_join(base, pattern)))
    if Path(path).is_dir():
        inside = frame_files(path)
        if not inside:
            raise ConfigError(f"{pattern}: no file of frames in this folder: name the files by a pattern such as {pattern}/*.cbf")
        yield path, inside
        return
    # a file whose name holds brackets is itself, not a pattern
    if listing.exists(path):
        folder, name = os.path.split(path)
        yield folder, [name]
        return
    if not MAGIC.search(pattern):
        raise ConfigError(f"{pattern}: no such file: correct the path{_start(pattern, base)}")
    empty = True
    for folder, names in matching(path):
        empty = False
        yield folder, names
    if empty:
        raise ConfigError(f"{pattern}: no file matches this pattern: correct it{_start(pattern, base, 'patterns')}")


def _start(pattern: str, base: str, what: str = "paths") -> str:
    """Say where a relative path starts from."""
    return "" if Path(pattern).is_absolute() else f" (relative {what} start from {Path(base).resolve()})"


def _expand_list(path: str, lists: tuple[str, ...], found: InputFiles, listing: Listing) -> None:
    if path in lists:
        raise ConfigError(f"@{path}: the list names itself: take that line out")
    empty, folder = True, str(Path(path).parent)
    try:
        with Path(path).open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                entry = line.split("#", 1)[0].strip()
                if not entry:
                    continue
                empty = False
                try:
                    _expand_entry(entry, folder, (*lists, path), found, listing)
                except ConfigError as error:
                    raise ConfigError(f"@{path} line {number}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"@{path}: the list cannot be read ({error}): correct the path") from error
    if empty:
        raise ConfigError(f"@{path}: the list names no file")


_EVENT = re.compile(r"(.*\S)\s+(?://)?(\d+)")


def _expand_entry(entry: str, base: str, lists: tuple[str, ...], found: InputFiles, listing: Listing) -> None:
    """Add what a line names: ``file //5``, ``file 5`` or any pattern; files may have blanks in their names."""
    event = _EVENT.fullmatch(entry)
    if event is not None:
        known = listing.events.get((base, event[1]))
        # a name may end in a blank and a number, not in a blank, two slashes and a number
        if known is not None and ("//" in event[0][event.end(1) :] or not listing.exists(_join(base, entry))):
            found.add(*known, int(event[2]))
            return
    if event is None or listing.exists(_join(base, entry)):
        path = _join(base, entry)
        if not entry.startswith("@") and listing.is_file(path):
            found.add(*os.path.split(path))
        else:
            _expand(entry, base, lists, found, listing)
        return
    path = _join(base, event[1])
    if not listing.is_file(path):
        raise ConfigError(f"{event[1]}: no such file: correct the path{_start(event[1], base)}")
    known = listing.events[base, event[1]] = os.path.split(path)
    found.add(*known, int(event[2]))

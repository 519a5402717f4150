"""Which files and which frames: patterns, folders, lists and ranges as a user writes them."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from xfelproc.errors import ConfigError

SUFFIXES = (
    *(".cbf", ".h5", ".hdf5", ".nxs", ".cxi", ".img", ".mccd", ".mar3450", ".mar2300", ".mar345", ".tif", ".tiff", ".edf"),
    *(".osc", ".sfrm", ".marccd", ".mar2400", ".mar2000", ".mar1600", ".mar1200", ".mar1800"),
)
"""Suffixes of the files taken from a folder, before .gz, .bz2 and .xz."""

_GLOB = re.compile(r"[*?\[]")


def natural_key(path: str | Path) -> tuple[tuple[int, int, str], ...]:
    """Return a sorting key under which numbers in names count as numbers: a2 before a10."""
    parts = re.split(r"(\d+)", str(path))
    return tuple((1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts)


def is_frame_file(path: Path) -> bool:
    """Return whether a file in a folder is taken for frames, by its name."""
    name = re.sub(r"\.(gz|bz2|xz)$", "", path.name.lower())
    return name.endswith(SUFFIXES) and not path.name.startswith(".")


Chosen = tuple[int, ...] | None
"""Frames of a file (from 0) that lists name one by one; None: all of them."""


def expand_inputs(patterns: Sequence[str | Path], base: str | Path | None = None) -> dict[Path, Chosen]:
    """Return the files that patterns mean, each once, and which frames of each.

    The files are in the order of the patterns and naturally sorted within each. A pattern is a file, a glob pattern (``**`` goes
    into subfolders), a folder (all files in it that look like frames; of HDF5 ones only the masters, where there are any), or
    ``@list.txt``, a file with one pattern a line (``#`` starts a comment), relative to the list's folder. In a list a file may be
    followed by one frame of it, ``frames.h5 //12`` or ``frames.h5 12``. A file that is named without frames, too, is taken whole.

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
    frames: dict[Path, set[int] | None] = {}
    for pattern in patterns:
        for path, frame in _expand(str(pattern), Path() if base is None else Path(base), ()):
            known = frames.setdefault(path, set())
            if frame is None:
                frames[path] = None
            elif known is not None:
                known.add(frame)
    return {path: None if chosen is None else tuple(sorted(chosen)) for path, chosen in frames.items()}


def _expand(pattern: str, base: Path, lists: tuple[Path, ...]) -> list[tuple[Path, int | None]]:
    pattern = str(Path(pattern).expanduser())
    if pattern.startswith("@"):
        return _expand_list(base / Path(pattern[1:]).expanduser(), lists)
    return [(path, None) for path in _files(pattern, base)]


def _files(pattern: str, base: Path) -> list[Path]:
    path = base / pattern
    if path.is_dir():
        inside = _folder(path)
        if not inside:
            raise ConfigError(f"{pattern}: no file of frames in this folder: name the files by a pattern such as {pattern}/*.cbf")
        return inside
    # a file whose name holds brackets is itself, not a pattern
    if path.exists():
        return [path]
    if _GLOB.search(pattern):
        matches = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207  (absolute patterns, too)
        files = sorted((p for p in matches if p.is_file()), key=natural_key)
        if not files:
            raise ConfigError(f"{pattern}: no file matches this pattern: correct it{_start(pattern, base, 'patterns')}")
        return files
    raise ConfigError(f"{pattern}: no such file: correct the path{_start(pattern, base)}")


def _start(pattern: str, base: Path, what: str = "paths") -> str:
    """Say where a relative path starts from."""
    return "" if Path(pattern).is_absolute() else f" (relative {what} start from {base.resolve()})"


def _expand_list(path: Path, lists: tuple[Path, ...]) -> list[tuple[Path, int | None]]:
    if path in lists:
        raise ConfigError(f"@{path}: the list names itself: take that line out")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"@{path}: the list cannot be read ({error}): correct the path") from error
    found: list[tuple[Path, int | None]] = []
    for number, line in enumerate(lines, 1):
        entry = line.split("#", 1)[0].strip()
        if not entry:
            continue
        name, frame = _split_event(entry, path.parent)
        try:
            inside = _expand(name, path.parent, (*lists, path)) if frame is None else [(_file(name, path.parent), frame)]
            found.extend(inside)
        except ConfigError as error:
            raise ConfigError(f"@{path} line {number}: {error}") from error
    if not found:
        raise ConfigError(f"@{path}: the list names no file")
    return found


def _split_event(entry: str, folder: Path) -> tuple[str, int | None]:
    """Return the file and the frame of a line ``file //5``, ``file 5`` or ``file``; files may have blanks in their names."""
    found = re.fullmatch(r"(.*\S)\s+(?://)?(\d+)", entry)
    if found is None or (folder / entry).exists():
        return entry, None
    return found[1], int(found[2])


def _file(name: str, base: Path) -> Path:
    path = base / Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"{name}: no such file: correct the path{_start(name, base)}")
    return path


def _folder(path: Path) -> list[Path]:
    files = [p for p in path.iterdir() if p.is_file() and is_frame_file(p)]
    masters = [p for p in files if "master" in p.name.lower() or p.suffix.lower() == ".nxs"]
    if masters:
        # the data files of a master are reached through it
        files = [p for p in files if p in masters or p.suffix.lower() not in (".h5", ".hdf5")]
    return sorted(files, key=natural_key)

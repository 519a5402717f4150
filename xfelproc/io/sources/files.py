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


def expand_inputs(patterns: Sequence[str | Path], base: str | Path | None = None) -> list[Path]:
    """Return the files that patterns mean, each once, in the order of the patterns and naturally sorted within each.

    A pattern is a file, a glob pattern (``**`` goes into subfolders), a folder (all files in it that look like frames; of HDF5
    ones only the masters, where there are any), or ``@list.txt``, a file with one pattern a line (``#`` starts a comment), relative
    to the list's folder.

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
    found: dict[Path, None] = {}
    for pattern in patterns:
        for path in _expand(str(pattern), Path() if base is None else Path(base), ()):
            found.setdefault(path, None)
    return list(found)


def _expand(pattern: str, base: Path, lists: tuple[Path, ...]) -> list[Path]:
    pattern = str(Path(pattern).expanduser())
    if pattern.startswith("@"):
        return _expand_list(base / Path(pattern[1:]).expanduser(), lists)
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
            raise ConfigError(
                f"{pattern}: no file matches this pattern: correct it (relative patterns start from {base.resolve()})"
            )
        return files
    raise ConfigError(f"{pattern}: no such file: correct the path (relative paths start from {base.resolve()})")


def _expand_list(path: Path, lists: tuple[Path, ...]) -> list[Path]:
    if path in lists:
        raise ConfigError(f"@{path}: the list names itself: take that line out")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"@{path}: the list cannot be read ({error}): correct the path") from error
    found: list[Path] = []
    for number, line in enumerate(lines, 1):
        entry = line.split("#", 1)[0].strip()
        if not entry:
            continue
        try:
            found.extend(_expand(entry, path.parent, (*lists, path)))
        except ConfigError as error:
            raise ConfigError(f"@{path} line {number}: {error}") from error
    if not found:
        raise ConfigError(f"@{path}: the list names no file")
    return found


def _folder(path: Path) -> list[Path]:
    files = [p for p in path.iterdir() if p.is_file() and is_frame_file(p)]
    masters = [p for p in files if "master" in p.name.lower() or p.suffix.lower() == ".nxs"]
    if masters:
        # the data files of a master are reached through it
        files = [p for p in files if p in masters or p.suffix.lower() not in (".h5", ".hdf5")]
    return sorted(files, key=natural_key)


def parse_frames(text: str, n_frames: int | None = None) -> list[int]:
    """Return the frames (from 0, each once, ascending) that a selection means.

    Parameters
    ----------
    text
        Parts separated by commas: ``12`` one frame; ``10-20`` with both ends; ``0:100:2`` as Python's slices, the end left out,
        and ``start``, ``stop`` or ``step`` may be missing (``:50``, ``::10``).
    n_frames
        How many frames there are; needed where the end of a slice is missing.

    Raises
    ------
    ConfigError
        If a part is not understood, counts backwards, or lies beyond the last frame.
    """
    frames: set[int] = set()
    for part in (p.strip() for p in text.split(",")):
        frames.update(_part(part, text, n_frames))
    if not frames:
        raise ConfigError(f"frames = {text!r} selects nothing: write for example 0:100:2,150,200-210")
    if n_frames is not None and max(frames) >= n_frames:
        raise ConfigError(f"frames = {text!r}: there is no frame {max(frames)}, the last one is {n_frames - 1} (they count from 0)")
    return sorted(frames)


def _part(part: str, text: str, n_frames: int | None) -> range:
    if re.fullmatch(r"\d+", part):
        return range(int(part), int(part) + 1)
    if found := re.fullmatch(r"(\d+)\s*-\s*(\d+)", part):
        first, last = int(found[1]), int(found[2])
        if last < first:
            raise ConfigError(f"frames = {text!r}: {part!r} counts backwards")
        return range(first, last + 1)
    if found := re.fullmatch(r"(\d*):(\d*)(?::(\d*))?", part):
        step = int(found[3] or 1)
        if step < 1:
            raise ConfigError(f"frames = {text!r}: the step of {part!r} must be 1 or more")
        if not found[2] and n_frames is None:
            raise ConfigError(f"frames = {text!r}: {part!r} has no end: write it, as in 0:100")
        return range(int(found[1] or 0), int(found[2]) if found[2] else int(n_frames or 0), step)
    raise ConfigError(f"frames = {text!r}: {part!r} is not understood: write for example 0:100:2,150,200-210")


def read_frame_list(path: str | Path) -> list[tuple[Path, int | str | None]]:
    """Return the entries of a list of frames: file, and which frame of it (None: all of them).

    A line is ``file``, ``file //5``, ``file event//5`` or ``file 5``: frames count from 0; an event with a name is given
    as it stands. ``#`` starts a comment; relative files start from the list's folder.

    Raises
    ------
    ConfigError
        If the list cannot be read or names no frame.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the list of frames cannot be read ({error}): correct the path") from error
    entries: list[tuple[Path, int | str | None]] = []
    for line in lines:
        text = line.split(" #", 1)[0].strip()
        if not text or text.startswith("#"):
            continue
        entries.append(_entry(text, path.parent))
    if not entries:
        raise ConfigError(f"{path}: the list names no frame")
    return entries


def _entry(text: str, folder: Path) -> tuple[Path, int | str | None]:
    # names with blanks: the event is the last word, and only if it looks like one
    name, _, last = text.rpartition(" ")
    if name and "//" in last:
        event, _, index = last.partition("//")
        if not event and index.isdecimal():
            return folder / name.strip(), int(index)
        return folder / name.strip(), last
    if name and last.isdecimal():
        return folder / name.strip(), int(last)
    return folder / text, None

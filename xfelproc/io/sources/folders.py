"""Names of files in folders: natural order, and one listing a folder however many files it holds."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from xfelproc.errors import ConfigError

SUFFIXES = (
    *(".cbf", ".h5", ".hdf5", ".nxs", ".cxi", ".img", ".mccd", ".mar3450", ".mar2300", ".mar345", ".tif", ".tiff", ".edf"),
    *(".osc", ".sfrm", ".marccd", ".mar2400", ".mar2000", ".mar1600", ".mar1200", ".mar1800"),
)
"""Suffixes of the files taken from a folder, before .gz, .bz2 and .xz."""

MANY = frozenset({".h5", ".hdf5", ".nxs", ".cxi"})
"""Suffixes of files that hold any number of frames."""
SINGLE = frozenset(SUFFIXES) - MANY - {".tif", ".tiff", ".edf"}
"""Suffixes of formats that, as a rule, hold one frame a file."""

MAGIC = re.compile(r"[*?\[]")
_WRAPPED = (".gz", ".bz2", ".xz")
_NUMBER = re.compile(r"[0-9]+")
ASKED_SINGLY = 32
"""Questions about files of one folder that are asked one by one; from then on its listing is read."""


def _number(found: re.Match[str]) -> str:
    digits = found[0].lstrip("0")
    # ends the text before it as no name can; longer numbers are larger; of equal ones those with more leading zeros come first
    return f"\0{chr(1 + len(digits))}{digits}{chr(0x4000 - len(found[0]) + len(digits))}"


def natural_key(name: str | Path) -> str:
    """Return a sorting key under which numbers in names count as numbers: a2 before a10, and a02 before a2."""
    return _NUMBER.sub(_number, str(name))


def is_frame_file(name: str) -> bool:
    """Return whether a file in a folder is taken for frames, by its name."""
    lower = name.lower()
    if lower.endswith(_WRAPPED):
        lower = lower.rpartition(".")[0]
    return lower.endswith(SUFFIXES) and not name.startswith(".")


def suffix_of(name: str) -> str:
    """Return the suffix of a file of which the like hold frames alike, with that of its wrapper; empty for all others."""
    lower = name.lower()
    dot = lower.rfind(".")
    suffix = lower[dot:]
    if suffix in SINGLE or suffix in MANY:
        return suffix
    if suffix in _WRAPPED:
        inner = lower[lower.rfind(".", 0, dot) : dot]
        return inner + suffix if inner in SINGLE else ""
    return ""


def list_files(folder: str, wanted: Callable[[str], object]) -> list[str]:
    """Return the names of the files in a folder that are wanted, in natural order.

    One pass over the folder. A file is told from a folder by the listing itself, without a look at the file; a link is looked at
    only where its name is not that of a frame.

    Raises
    ------
    ConfigError
        If the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if wanted(entry.name) and _is_file(entry)]
    except OSError as error:
        raise ConfigError(f"{folder}: the folder cannot be read ({error.strerror}): see that it may be read") from error
    found.sort(key=natural_key)
    return found


def _is_file(entry: os.DirEntry[str]) -> bool:
    if entry.is_file(follow_symlinks=False):
        return True
    return entry.is_symlink() and (is_frame_file(entry.name) or entry.is_file())


def frame_files(folder: str) -> list[str]:
    """Return the files of frames in a folder, in natural order; of HDF5 ones only the masters, where there are any."""
    files = list_files(folder, is_frame_file)
    masters = {name for name in files if "master" in name.lower() or name.lower().endswith(".nxs")}
    if masters:
        # the data files of a master are reached through it
        files = [name for name in files if name in masters or not name.lower().endswith((".h5", ".hdf5"))]
    return files


def matching(pattern: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the folders with files that match a glob pattern, and these, both in natural order; ``**`` goes into subfolders."""
    head, tail = os.path.split(pattern)
    if tail == "**":
        head, tail = pattern, "*"
    if Path(head).is_dir() or not MAGIC.search(head):
        folders = [head]
    else:
        found = glob.glob(os.path.join(head, ""), recursive=True)  # noqa: PTH118, PTH207  (folders alone: it ends in a slash)
        folders = sorted({str(Path(name)) for name in found}, key=natural_key)
    matches = re.compile(fnmatch.translate(os.path.normcase(tail))).match
    hidden = tail.startswith(".")
    for folder in folders:
        if not Path(folder).is_dir():
            continue
        if MAGIC.search(tail):
            names = list_files(folder or ".", lambda name: (hidden or not name.startswith(".")) and matches(os.path.normcase(name)))
        else:
            names = [tail] if os.path.isfile(os.path.join(folder, tail)) else []  # noqa: PTH118, PTH113
        if names:
            yield folder, names


class Listing:
    """Which files there are. A few are asked for one by one; of a folder that is asked about again and again, it reads a list."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str], tuple[str, str]] = {}
        """Folder and name of files that a list (in a folder) was seen to name with a frame: it has a line for each frame."""
        self._asked: dict[str, int] = {}
        self._listed: dict[str, dict[str, bool]] = {}

    def exists(self, path: str) -> bool:
        """Return whether there is a file or folder."""
        return self._find(path) is not None

    def is_file(self, path: str) -> bool:
        """Return whether there is a file."""
        return bool(self._find(path))

    def _find(self, path: str) -> bool | None:
        """Return True for a file, False for a folder, None for nothing."""
        folder, name = os.path.split(path)
        listed = self._listed.get(folder)
        if listed is None:
            asked = self._asked[folder] = self._asked.get(folder, 0) + 1
            if asked <= ASKED_SINGLY or name in ("", ".", ".."):
                where = Path(path)
                return True if where.is_file() else False if where.exists() else None
            listed = self._listed[folder] = _listing(folder or ".")
        return listed.get(name)


def _listing(folder: str) -> dict[str, bool]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: _is_file(entry) for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(f"{folder}: the folder cannot be read ({error.strerror}): see that it may be read") from error

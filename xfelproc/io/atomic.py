"""Files that appear complete or not at all: written under a temporary name, synced, renamed."""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from xfelproc.errors import OutputError

_ATTEMPT = itertools.count()
_TEMPORARY = ".tmp-"

_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the quota is used up: free some space and run the same command again",
    errno.EROFS: "the file system is read-only: choose another --output",
    errno.EACCES: "permission denied: choose another --output, or change the folder's permissions",
    errno.EPERM: "not permitted: choose another --output, or change the folder's permissions",
    errno.ENOTDIR: "a part of the path is a file: choose another --output",
}


def output_error(error: OSError, path: Path) -> OutputError:
    """Return ``error`` as an OutputError that says what to do; what was published before stays valid."""
    advice = _ADVICE.get(error.errno or 0, f"{error.strerror or error}: choose another --output")
    return OutputError(f"{path}: cannot be written: {advice}; what is already published stays valid")


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises
    ------
    OutputError
        If it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(error, path) from error


def write_atomic(path: Path, content: bytes, durable: bool = True) -> None:
    """Publish ``content`` under ``path``; see `write_pieces`."""
    write_pieces(path, (content,), durable)


def write_pieces(path: Path, pieces: Iterable[bytes], durable: bool = True) -> None:
    """Publish pieces, one after the other, under ``path``: a reader sees the old file, or all of the new one, whatever dies when.

    The temporary name is unique to host, process and attempt, so that attempts never share a file. What is not ``durable`` is
    not synced: for what is of no use after a crash of the machine.

    Raises
    ------
    OutputError
        If the disk is full, read-only, or not ours; the temporary file is removed.
    """
    temporary = path.with_name(f"{_TEMPORARY}{socket.gethostname()}-{os.getpid()}-{next(_ATTEMPT)}-{path.name}")
    try:
        with temporary.open("wb") as stream:
            for piece in pieces:
                stream.write(piece)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        discard(temporary)
        raise output_error(error, path) from error


def discard(path: Path) -> None:
    """Remove a file if it is there and can be removed."""
    try:
        path.unlink()
    except OSError:
        return


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_temporaries(folder: Path) -> int:
    """Remove what killed attempts left in ``folder`` and below; return how many. Only for the holder of the run's lock."""
    left = list(folder.rglob(f"{_TEMPORARY}*")) if folder.is_dir() else []
    for path in left:
        discard(path)
    return len(left)

"""Files as they lie on disk, plain or wrapped by gzip, bzip2 or xz, told by their first bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from xfelproc.errors import DataError

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}

# what a damaged or shortened wrapper raises
ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


def wrapper_of(start: bytes) -> str:
    """Return "gzip", "bzip2", "xz" or "" by the first bytes of a file."""
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), "")


def is_wrapped(path: Path) -> bool:
    """Return whether a file is wrapped by gzip, bzip2 or xz."""
    with path.open("rb") as file:
        return bool(wrapper_of(file.read(8)))


def check_file(path: Path) -> None:
    """Refuse what is not a file with content.

    Raises
    ------
    DataError
        If the file is missing, no file, unreadable or empty.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DataError("no such file: correct the path, or see that the file system is mounted", path) from None
    except OSError as error:
        raise DataError(f"cannot be accessed ({error.strerror}): see its permissions", path) from error
    if path.is_dir():
        raise DataError("is a folder: name the files in it, or a pattern such as *.cbf", path)
    if size == 0:
        raise DataError("the file is empty (0 bytes): copy it again, or leave it out", path)


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading, unwrapped.

    Raises
    ------
    DataError
        As `check_file`, and where the operating system refuses.
    """
    check_file(path)
    try:
        with path.open("rb") as raw:
            wrapper = wrapper_of(raw.read(8))
        if wrapper == "gzip":
            return cast(BinaryIO, gzip.open(path, "rb"))
        if wrapper == "bzip2":
            return cast(BinaryIO, bz2.open(path, "rb"))
        if wrapper == "xz":
            return cast(BinaryIO, lzma.open(path, "rb"))
        return path.open("rb")
    except OSError as error:
        raise DataError(f"cannot be opened ({error.strerror}): see its permissions", path) from error


def read_head(path: Path, size: int) -> bytes:
    """Return the first ``size`` bytes of the unwrapped content (fewer if there are no more).

    Raises
    ------
    DataError
        If the file cannot be read or the wrapper is damaged.
    """
    return _read(path, size)


def read_all(path: Path) -> bytes:
    """Return the whole unwrapped content.

    Raises
    ------
    DataError
        If the file cannot be read, or the wrapper is damaged or cut short.
    """
    return _read(path, -1)


def _read(path: Path, size: int) -> bytes:
    with open_binary(path) as file:
        try:
            return file.read(size)
        except ERRORS as error:
            raise DataError(f"the file is damaged or cut short ({error}): copy it again, or leave it out", path) from error

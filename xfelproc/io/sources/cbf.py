"""The container of CBF/imgCIF: text with binary sections, and their decoding."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.sources.compression import ERRORS as WRAPPER_ERRORS
from xfelproc.io.sources.compression import open_binary, read_all
from xfelproc.kernels.cbf import OVERFLOW, decode_byte_offset, decode_packed

BOUNDARY = b"--CIF-BINARY-FORMAT-SECTION--"
MAGIC = b"\x0c\x1a\x04\xd5"
COPY_AGAIN = "copy it again from its origin, or leave it out"

_BLOCK = 1 << 16
_PACKED = np.array([0, 4, 5, 6, 7, 8, 16, 65], dtype=np.int64)
_PACKED_V2 = np.array([0, *range(3, 17), 65], dtype=np.int64)
WIDER = {"i1": "i2", "u1": "u2"}
"""Types of pixels that are too narrow for a frame, and what they become."""

_DTYPES = {
    "signed 8-bit integer": "i1",
    "unsigned 8-bit integer": "u1",
    "signed 16-bit integer": "i2",
    "unsigned 16-bit integer": "u2",
    "signed 32-bit integer": "i4",
    "unsigned 32-bit integer": "u4",
    "signed 32-bit real ieee": "f4",
}


@dataclass(frozen=True)
class BinarySection:
    """One binary section: where it lies in the unwrapped file, and its MIME header. ``shape`` is (section, row, column)."""

    number: int
    binary_id: int
    offset: int
    size: int
    conversion: str
    dtype: str
    shape: tuple[int, int, int]
    md5: str
    correlated: bool = True
    flat: bool = False
    big_endian: bool = False


@dataclass(frozen=True)
class CbfHeader:
    """The text of a CBF file without its binary content, and its binary sections."""

    path: Path
    text: str
    sections: tuple[BinarySection, ...]
    complete: bool
    """False if reading stopped at the first binary section: there may be more text and sections after it."""

    def block(self) -> gemmi.cif.Block:
        """Return the first data block of the text.

        Raises
        ------
        DataError
            If the text is not CIF.
        """
        try:
            document = gemmi.cif.read_string(self.text)
        except (ValueError, RuntimeError) as error:
            raise DataError(f"the header is not CIF ({error}): {COPY_AGAIN}", self.path) from error
        if len(document) == 0:
            raise DataError(f"the header holds no data block: {COPY_AGAIN}", self.path)
        return document[0]


def read_header(path: Path, whole: bool = False) -> CbfHeader:
    """Read text and MIME headers, skipping what is binary; stop at the first section unless ``whole``.

    Raises
    ------
    DataError
        If the file cannot be read, or holds no binary section.
    """
    with open_binary(path) as file:
        try:
            return _Scanner(path, file).scan(whole)
        except WRAPPER_ERRORS as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"the file is damaged or cut short ({error}): {COPY_AGAIN}", path) from error


class _Scanner:
    """Walks through a CBF file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.start = 0  # of the window in the file
        self.window = b""

    def find(self, token: bytes, position: int) -> int:
        """Return where ``token`` starts at or after ``position``, or -1; the window then holds all from ``position``."""
        self.window = self.window[position - self.start :]
        self.start = position
        searched = 0
        while True:
            found = self.window.find(token, searched)
            if found >= 0:
                return position + found
            searched = max(0, len(self.window) - len(token))
            more = self.file.read(_BLOCK)
            if not more:
                return -1
            self.window += more

    def skip(self, position: int) -> None:
        """Move the window's start to ``position``, past what need not be looked at."""
        held = self.start + len(self.window)
        if position <= held:
            self.window = self.window[position - self.start :]
        else:
            self.file.seek(position)
            self.window = b""
        self.start = position

    def scan(self, whole: bool) -> CbfHeader:
        text: list[bytes] = []
        sections: list[BinarySection] = []
        position = 0
        while (mime := self.find(BOUNDARY, position)) >= 0:
            text.append(self.window[: mime - self.start])
            data = self.find(MAGIC, mime)
            if data < 0 or data - mime > _BLOCK:
                raise DataError(f"binary section {len(sections) + 1} has no start marker (0c 1a 04 d5): {COPY_AGAIN}", self.path)
            header = self.window[: data - mime]
            section = parse_mime(header, len(sections), data + len(MAGIC), self.path)
            sections.append(section)
            text.append(b"\n;\n")
            if not whole:
                return CbfHeader(self.path, _ascii(text), tuple(sections), complete=False)
            self.skip(section.offset + section.size)
            closing = self.find(BOUNDARY + b"--", self.start)
            if closing < 0:
                raise DataError(f"binary section {len(sections)} is cut short: {COPY_AGAIN}", self.path)
            end = self.find(b";", closing + len(BOUNDARY) + 2)
            position = closing + len(BOUNDARY) + 2 if end < 0 else end + 1
            self.skip(position)
        if not sections:
            raise DataError(f"no binary section in it: the file is cut short, or is no image; {COPY_AGAIN}", self.path)
        text.append(self.window)
        return CbfHeader(self.path, _ascii(text), tuple(sections), complete=True)


def _ascii(parts: list[bytes]) -> str:
    return b"".join(parts).decode("latin-1").replace("\r\n", "\n")


def parse_mime(header: bytes, number: int, offset: int, path: Path) -> BinarySection:
    """Return what the MIME header of a binary section says.

    Raises
    ------
    DataError
        If a needed field is missing, or the encoding or type of element cannot be decoded.
    """
    fields = {k.lower(): v.strip() for k, v in re.findall(r"^([\w-]+):\s*(.*?)$", header.decode("latin-1"), re.M)}

    def integer(name: str, default: int | None = None) -> int:
        value = fields.get(name.lower(), "")
        if value.isdecimal():
            return int(value)
        if default is None:
            raise DataError(f"binary section {number + 1}: {name} is {value or 'missing'!r}: {COPY_AGAIN}", path)
        return default

    encoding = fields.get("content-transfer-encoding", "BINARY").upper()
    if encoding != "BINARY":
        raise DataError(f"its pixels are encoded as {encoding}, only BINARY is read: convert it to a binary CBF", path)
    element = fields.get("x-binary-element-type", '"signed 32-bit integer"').strip('"').lower()
    if element not in _DTYPES:
        raise DataError(f"elements of type {element!r} are not read: convert it to 32-bit integers", path)
    n_elements = integer("X-Binary-Number-of-Elements")
    fast = integer("X-Binary-Size-Fastest-Dimension", n_elements)
    second = integer("X-Binary-Size-Second-Dimension", max(1, n_elements // max(1, fast)))
    third = integer("X-Binary-Size-Third-Dimension", max(1, n_elements // max(1, fast * second)))
    if fast * second * third != n_elements or n_elements == 0:
        raise DataError(
            f"binary section {number + 1} has {n_elements} elements, but dimensions {fast} x {second} x {third}: {COPY_AGAIN}",
            path,
        )
    compact = header.decode("latin-1").lower()
    conversion = re.search(r'conversions="?x-cbf_(\w+)', compact)
    return BinarySection(
        number=number,
        binary_id=integer("X-Binary-ID", number + 1),
        offset=offset,
        size=integer("X-Binary-Size"),
        conversion=conversion[1] if conversion else "none",
        dtype=_DTYPES[element],
        shape=(third, second, fast),
        md5=fields.get("content-md5", ""),
        correlated='"uncorrelated_sections"' not in compact,
        flat='"flat"' in compact,
        big_endian="big" in fields.get("x-binary-element-byte-order", "").lower(),
    )


def read_sections(path: Path, sections: Sequence[BinarySection], out: Sequence[NDArray[Any]]) -> None:
    """Read and decode binary sections, each into its array (section, row, column) of ``out``.

    Raises
    ------
    DataError
        If a section is cut short, does not match its checksum or its number of elements, or is coded in an unknown way.
    """
    content = np.frombuffer(read_all(path), dtype=np.uint8)
    for section, array in zip(sections, out, strict=True):
        _decode(content, section, array, path)


def _decode(content: NDArray[np.uint8], section: BinarySection, array: NDArray[Any], path: Path) -> None:
    what = f"binary section {section.number + 1}"
    start, end = section.offset, section.offset + section.size
    if content[start - 4 : start].tobytes() != MAGIC:
        raise DataError(f"{what} has no start marker (0c 1a 04 d5): {COPY_AGAIN}", path)
    if end > content.size:
        raise DataError(
            f"{what} is cut short: {max(0, content.size - start)} of {section.size} bytes are there; {COPY_AGAIN}", path
        )
    data = content[start:end]
    if section.md5:
        digest = base64.b64encode(hashlib.md5(data.data, usedforsecurity=False).digest()).decode()
        if digest != section.md5:
            raise DataError(f"{what} does not match its checksum (MD5 {digest}, the header says {section.md5}): {COPY_AGAIN}", path)
    used = _expand(data, section, array, path)
    if used == OVERFLOW:
        raise DataError(f"{what} is corrupt: a pixel does not fit into its type: {COPY_AGAIN}", path)
    if used < 0:
        raise DataError(f"{what} is corrupt: its {section.size} bytes hold fewer than {array.size} pixels: {COPY_AGAIN}", path)


def _expand(data: NDArray[np.uint8], section: BinarySection, array: NDArray[Any], path: Path) -> int:
    if section.conversion == "none":
        dtype = np.dtype(section.dtype).newbyteorder(">" if section.big_endian else "<")
        size = array.size * dtype.itemsize
        if data.size < size:
            return -1
        array[...] = data[:size].view(dtype).reshape(array.shape)
        return size
    if array.dtype.kind == "f":
        raise DataError(f"compression {section.conversion!r} of real numbers is not read: convert it to integers", path)
    info = np.iinfo(section.dtype)
    if section.conversion == "byte_offset":
        return int(decode_byte_offset(data, array.reshape(-1), info.min, info.max))
    if section.conversion in ("packed", "packed_v2"):
        if data.size < 32:
            return -1
        widths = _PACKED if section.conversion == "packed" else _PACKED_V2
        shape = (1, 1, array.size) if section.flat else array.shape
        return int(decode_packed(data[32:], array.reshape(shape), widths, section.correlated, info.min, info.max))
    raise DataError(
        f"compression {section.conversion!r} is not read (byte_offset, packed, packed_v2 and none are): convert the file", path
    )

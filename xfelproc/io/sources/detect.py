"""What a file is, by its content."""

from __future__ import annotations

import re
from pathlib import Path

from xfelproc.io.sources.compression import read_head

HEAD = 4096
_HDF5 = b"\x89HDF\r\n\x1a\n"


def detect(path: Path) -> str:
    """Return "hdf5", "cbf", "smv", "marccd" or "other", by the first bytes of the (unwrapped) file.

    Raises
    ------
    DataError
        If the file is missing, empty or cannot be read.
    """
    head = read_head(path, HEAD)
    if head.startswith(_HDF5) or any(head[512 * k : 512 * k + 8] == _HDF5 for k in (1, 2, 4)):
        return "hdf5"
    if head.startswith(b"###CBF") or b"_array_data." in head or re.match(rb"\s*(#[^\n]*\n\s*)*data_\S*", head):
        return "cbf"
    if re.match(rb"\{\s*HEADER_BYTES\s*=", head):
        return "smv"
    # a TIFF whose second kilobyte holds the byte order mark 1234 of the MarCCD header
    if head[:4] in (b"II*\x00", b"MM\x00*") and head[1024 + 28 : 1024 + 32] in (b"\xd2\x04\x00\x00", b"\x00\x00\x04\xd2"):
        return "marccd"
    return "other"

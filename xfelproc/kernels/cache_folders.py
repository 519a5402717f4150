"""Where numba keeps compiled kernels, and what of it is of other sources than these.

numba compiles a kernel again if the file it stands in has changed, not if one that it calls has changed in another file: after an
update of the program old machine code would call the new with other arguments. So the index files of a folder are removed where
they are of another state of the kernels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent
MARK = "kernels.sources"


def cache_folders(sources: Path = SOURCES) -> Iterator[Path]:
    """Yield where numba keeps what it compiles of the kernels: where it is told, beside them, or in the user's cache."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        yield from Path(given).glob(f"{sources.name}_*")
        return
    yield sources / "__pycache__"
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    yield from (Path(user) / "numba").glob(f"{sources.name}_*")


@cache
def sources_digest(sources: Path = SOURCES) -> str:
    """Return the hash of all kernels' sources."""
    found = hashlib.blake2b(digest_size=16)
    for path in sorted(sources.glob("*.py")):
        found.update(path.name.encode() + b"\x00" + path.read_bytes() + b"\x00")
    return found.hexdigest()


def forget_other_sources(sources: Path = SOURCES) -> None:
    """Remove the indices of compiled kernels that are of another state of the sources, where that can be written."""
    for folder in cache_folders(sources):
        with suppress(OSError):  # not ours to write: numba takes another folder then
            _forget(folder, sources)


def _forget(folder: Path, sources: Path) -> None:
    mark, digest = folder / MARK, sources_digest(sources)
    known = mark.read_text() if mark.is_file() else None
    if known == digest or not folder.is_dir():
        return
    # what these sources compiled before there was a mark stays
    changed = max(path.stat().st_mtime for path in sources.glob("*.py"))
    for index in folder.glob("*.nbi"):
        if known is not None or index.stat().st_mtime <= changed:
            index.unlink(missing_ok=True)
    beside = folder / f"{MARK}.{os.getpid()}"
    beside.write_text(digest)
    beside.replace(mark)

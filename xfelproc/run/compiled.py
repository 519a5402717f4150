"""Kernels that are compiled while a command is at work, as seen in numba's cache: a first run would say nothing for minutes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from xfelproc import kernels

TICK = 0.1
"""Seconds by which the clock of a file system may be behind."""


def _folders() -> Iterator[Path]:
    """Yield where numba keeps what it compiles of the kernels: where it is told, beside them, or in the user's cache."""
    sources = Path(kernels.__file__).parent
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        yield from Path(given).glob(f"{sources.name}_*")
        return
    yield sources / "__pycache__"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    yield from (Path(cache) / "numba").glob(f"{sources.name}_*")


def compiled_since(moment: float) -> int:
    """Return how many kernels any process has added to this machine's cache since then (s since 1970)."""
    n = 0
    for folder in _folders():
        if not folder.is_dir():
            continue
        for entry in os.scandir(folder):
            if entry.name.endswith(".nbc"):
                try:
                    n += entry.stat().st_mtime >= moment - TICK
                except FileNotFoundError:  # replaced this moment
                    n += 1
    return n

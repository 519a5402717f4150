"""Kernels that are compiled while a command is at work, as seen in numba's cache: a first run would say nothing for minutes."""

from __future__ import annotations

import os

from xfelproc.kernels.cache_folders import cache_folders

TICK = 0.1
"""Seconds by which the clock of a file system may be behind."""


def compiled_since(moment: float) -> int:
    """Return how many kernels any process has added to this machine's cache since then (s since 1970)."""
    n = 0
    for folder in cache_folders():
        if not folder.is_dir():
            continue
        for entry in os.scandir(folder):
            if entry.name.endswith(".nbc"):
                try:
                    n += entry.stat().st_mtime >= moment - TICK
                except FileNotFoundError:  # replaced this moment
                    n += 1
    return n

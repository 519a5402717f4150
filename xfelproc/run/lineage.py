"""Lineage: what a result was made of. Equal lineage, equal bytes."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("xfelproc", "numpy", "scipy", "numba", "gemmi")
HASH_CONTENT_BELOW = 16 << 20


@cache
def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "source"
    return found


@cache
def instruction_set() -> str:
    """Return the widest vector instructions of this CPU: results are bit-identical on one set only."""
    path = Path("/proc/cpuinfo")
    flags: set[str] = set()
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.partition(":")[2].split())
                break
    best = next((name for name in ("avx512f", "avx2", "avx", "sse4_2", "sve", "asimd") if name in flags), "unknown")
    return f"{platform.machine()} {best}"


def digest(content: Any) -> str:
    """Return the SHA-256 of JSON-like content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def file_identity(name: str) -> str:
    """Return what stands for a file in a lineage: its content if small, else size and time. ``file.h5:/path`` is understood.

    A file that is not there is identified by its name; whoever opens it complains.
    """
    path, _, inside = name.partition(":")
    file = Path(path)
    if not file.is_file():
        return name
    stat = file.stat()
    if stat.st_size <= HASH_CONTENT_BELOW:
        content = hashlib.sha256(file.read_bytes()).hexdigest()
    else:
        content = f"{file.name} {stat.st_size} {stat.st_mtime_ns}"
    return f"{content}:{inside}"


def changed(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return one line for each key that differs between two nested mappings: ``spots.min_snr: 5 -> 6``."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += changed(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {_shown(before)} -> {_shown(after)}")
    return lines


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)

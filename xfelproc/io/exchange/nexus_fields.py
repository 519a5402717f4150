"""Groups and numbers of a NeXus file, as files have them: classes and units may be missing."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from xfelproc.io.exchange.nexus_axes import factor_of, text


def find(group: Any, nx_class: str, *names: str) -> list[Any]:
    """Return the groups below ``group`` of an NX class, or of one of ``names`` where classes are missing."""
    found = []
    for name in group:
        try:
            child = group[name]
        except (KeyError, OSError, RuntimeError):
            continue
        if isinstance(child, h5py.Group) and (text(child.attrs.get("NX_class", "")) == nx_class or name in names):
            found.append(child)
    return found


def scalar(group: Any, *names: str) -> Any:
    """Return the first dataset there is, or None."""
    for name in names:
        if name in group and isinstance(group[name], h5py.Dataset) and group[name].size:
            return group[name]
    return None


def number(group: Any, table: dict[str, float] | None, default: float, *names: str) -> float | None:
    """Return the first number there is, in our unit (``table``; ``default`` where the unit is missing)."""
    dataset = scalar(group, *names)
    if dataset is None:
        return None
    try:
        value = float(np.asarray(dataset[()], dtype=np.float64).reshape(-1)[0])
    except (TypeError, ValueError):
        return None
    return value * (1.0 if table is None else factor_of(text(dataset.attrs.get("units", "")), table, default))

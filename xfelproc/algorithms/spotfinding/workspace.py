"""Scratch arrays kept from frame to frame: fresh pages cost more than finding the spots."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Workspace:
    """Arrays for frames of one shape and type. ``state`` is all zero while ``clean``."""

    state: NDArray[np.uint8]
    index: NDArray[np.int32]
    region: NDArray[np.int32]
    label: NDArray[np.int32]
    order: NDArray[np.int32]
    rows: NDArray[Any]
    high: NDArray[Any]
    clean: bool = True


_LOCAL = threading.local()


def workspace_for(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Workspace:
    """Return this thread's workspace for frames of a shape and type; the last one is kept.

    Arrays as long as the frame are never filled: the system maps the pages that are written.
    """
    key = (shape, dtype)
    if getattr(_LOCAL, "key", None) != key:
        size = int(np.prod(shape))
        work = np.float32 if np.issubdtype(dtype, np.floating) else np.int32
        _LOCAL.workspace = Workspace(
            state=np.zeros(size, dtype=np.uint8),
            index=np.empty(size, dtype=np.int32),
            region=np.empty(size, dtype=np.int32),
            label=np.empty(size, dtype=np.int32),
            order=np.empty(size, dtype=np.int32),
            rows=np.zeros((8, shape[2] + 2), dtype=work),
            high=np.empty(shape[2], dtype=dtype),
        )
        _LOCAL.key = key
    workspace: Workspace = _LOCAL.workspace
    if not workspace.clean:  # the last frame was interrupted
        workspace.state[:] = 0
        workspace.clean = True
    return workspace

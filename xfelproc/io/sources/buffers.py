"""Arrays for pixels, used again: touching fresh memory costs more than decoding into memory that is there."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_KEPT = 4


class BufferPool:
    """Gives arrays of which nobody holds a reference any more, views included; the content is what was left there.

    So a frame's pixels stay what they are for as long as somebody holds the frame, and files opened one after the other share
    memory. Counting references is exact in CPython, where it decides when an array is freed anyway.
    """

    def __init__(self) -> None:
        self._arrays: list[NDArray[Any]] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return a C-contiguous array."""
        dtype = np.dtype(dtype)
        with self._lock:
            for number in range(len(self._arrays)):
                array = self._arrays[number]
                # this list, the name here, and the argument of getrefcount
                if array.shape == shape and array.dtype == dtype and sys.getrefcount(array) <= 3:
                    # the one used last goes to the end: the others are given up first
                    self._arrays.append(self._arrays.pop(number))
                    return array
            array = np.empty(shape, dtype=dtype)
            self._arrays = [*self._arrays[-(_KEPT - 1) :], array]
            return array


POOL = BufferPool()
"""The buffers of this process."""

"""Which frames of a run are processed."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

Selection = str | tuple[int, ...] | None


def parse_frames(selection: Selection, n_frames: int) -> list[range]:
    """Return the ranges of a selection: numbers, ``first-last``, or ``start:stop:step`` half open as in Python.

    Raises
    ------
    ValueError
        If it cannot be understood, or is negative or empty.
    """
    if selection is None:
        return [range(n_frames)]
    parts = selection.split(",") if isinstance(selection, str) else [str(number) for number in selection]
    ranges = []
    for part in parts:
        if found := re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", part):  # both ends included
            ranges.append(range(int(found[1]), int(found[2]) + 1))
            continue
        try:
            numbers = [int(n) if n.strip() else None for n in part.split(":")]
        except ValueError:
            raise ValueError(f"{part.strip()!r} is no frame or range of frames: write 7, 0:1000 or 0:1000:10") from None
        if len(numbers) > 3 or any(n is not None and n < 0 for n in numbers) or numbers[0:1] == [None] == numbers:
            raise ValueError(f"{part.strip()!r} is no frame or range of frames: write 7, 0:1000 or 0:1000:10, none negative")
        if len(numbers) == 1 and numbers[0] is not None:
            ranges.append(range(numbers[0], numbers[0] + 1))
            continue
        start, stop, step = (*numbers, None)[:3]
        if step == 0:
            raise ValueError(f"{part.strip()!r}: a step of 0 leads nowhere")
        ranges.append(range(start or 0, n_frames if stop is None else stop, step or 1))
    return ranges


def select_frames(selection: Selection, n_frames: int) -> NDArray[np.int64]:
    """Return the numbers of the frames chosen of ``n_frames``, ascending, each once; what lies beyond the last is left out."""
    ranges = parse_frames(selection, n_frames)
    chosen = [np.arange(r.start, min(r.stop, n_frames), r.step, dtype=np.int64) for r in ranges if r.start < n_frames]
    return np.unique(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)

"""Which frames of a run are processed."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError

Selection = str | tuple[int, ...] | None


def parse_frames(selection: Selection, n_frames: int) -> list[range]:
    """Return the ranges of a selection of frames, which count from 0.

    Parameters
    ----------
    selection
        Parts separated by commas, or numbers: ``12`` one frame; ``10-20`` with both ends; ``0:100:2`` as Python's slices, the end
        left out, and ``start``, ``stop`` or ``step`` may be missing (``:50``, ``::10``). None: all.
    n_frames
        How many frames there are: where a slice without a stop ends.

    Raises
    ------
    ConfigError
        If a part is not understood, is negative, or counts backwards.
    """
    if selection is None:
        return [range(n_frames)]
    parts = selection.split(",") if isinstance(selection, str) else [str(number) for number in selection]
    return [_part(part.strip(), n_frames) for part in parts]


def _part(part: str, n_frames: int) -> range:
    if re.fullmatch(r"\d+", part):
        return range(int(part), int(part) + 1)
    if found := re.fullmatch(r"(\d+)\s*-\s*(\d+)", part):
        first, stop, step = int(found[1]), int(found[2]) + 1, 1
    elif found := re.fullmatch(r"(\d*)\s*:\s*(\d*)\s*(?::\s*(\d*))?", part):
        first, step = int(found[1] or 0), int(found[3] or 1)
        stop = int(found[2]) if found[2] else max(n_frames, first + 1)
    else:
        raise ConfigError(f"{part!r} is no frame or range of frames: write for example 0:100:2,150,200-210")
    if step < 1:
        raise ConfigError(f"{part!r}: the step must be 1 or more")
    if stop <= first:
        raise ConfigError(f"{part!r} counts backwards")
    return range(first, stop, step)


def select_frames(selection: Selection, n_frames: int) -> NDArray[np.int64]:
    """Return the numbers of the frames chosen of ``n_frames``, ascending, each once; ranges end with the last frame.

    Raises
    ------
    ConfigError
        If the selection is wrong (see `parse_frames`), or names a single frame beyond the last.
    """
    if selection is None:
        return np.arange(n_frames, dtype=np.int64)
    ranges = parse_frames(selection, n_frames)
    for r in ranges:
        if len(r) == 1 and r.start >= n_frames:
            raise ConfigError(f"there is no frame {r.start}, the last one is {n_frames - 1} (they count from 0)")
    chosen = [np.arange(r.start, min(r.stop, n_frames), r.step, dtype=np.int64) for r in ranges if r.start < n_frames]
    return np.unique(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)

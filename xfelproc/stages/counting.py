"""How many frames files hold, told by workers: planning a run of very many files must not wait for one process to open all."""

from __future__ import annotations

from dataclasses import dataclass

from xfelproc.errors import DataError
from xfelproc.io.manifest import file_state
from xfelproc.io.sources.base import FrameSource
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.stages.unit_sources import Opener

Counted = tuple[int, int, int, int]
"""Frames, frames a chunk, size and time of change of a file."""


@dataclass(frozen=True)
class CountTask:
    """Files to count, and the file that says where frames are."""

    opener: Opener
    settings: SourceSettings
    like: str
    paths: tuple[str, ...]


def count_one(like: FrameSource, path: str) -> Counted | None:
    """Return what is counted of a file by the way another one holds its frames; None if it must be opened to tell."""
    try:
        found = like.count_like(path)
    except (DataError, OSError):
        return None  # opening it tells why
    return None if found is None else (found[0], max(1, found[1]), *file_state(path))


def count_files(task: CountTask) -> list[Counted | None]:
    """Return the same of several files.

    Raises
    ------
    DataError
        If the file that says where frames are cannot be opened any more.
    """
    with task.opener(task.like, task.settings) as like:
        return [count_one(like, path) for path in task.paths]

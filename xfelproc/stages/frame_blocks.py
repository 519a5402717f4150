"""Raw frames as the blocks of a fold: what has no shards (darks, averages, gains, masks) is computed over them.

A block is a unit of a manifest. What is folded has the size of the detector, not of the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.frames import Frame, FrameRef
from xfelproc.stages.published import unit_lineage
from xfelproc.stages.unit_sources import Opener, UnitSources

PROBLEMS_KEPT = 20
"""Frames that could not be read of which a partial result keeps the reasons; of the others the number."""


@dataclass
class FrameReader:
    """The raw frames of one block, in order, read as they are asked for; a frame is valid until the next one.

    Frames that cannot be read are left out: after the last one ``problems`` has them with their reasons.
    """

    block: int
    sources: UnitSources
    problems: list[tuple[FrameRef, str]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Frame]:
        for ref in self.sources.begin(self.block).unit.frames:
            try:
                frame = self.sources.source(ref.source).read(ref.index, ref.source)
            except DataError as error:
                self.problems.append((ref, str(error)))
                continue
            yield frame

    def mask(self, frame: Frame) -> NDArray[np.uint8]:
        """Return the static mask of a frame's source."""
        return self.sources.source(frame.ref.source).static_mask()

    def path(self, frame: Frame) -> str:
        """Return the path of a frame's source."""
        return self.sources.path(frame.ref.source)


@dataclass(frozen=True)
class FrameBlocks:
    """Units of a manifest as blocks of raw frames.

    ``stamp`` is of the manifest's content: with another one a worker reads it again. ``reading`` is the hash of how the frames
    are read (settings, geometry and mask).
    """

    manifest: Path
    stamp: str
    reading: str
    opener: Opener
    settings: SourceSettings

    def lineage(self, block: int) -> str:
        """Return the hash of a block's frames and files, and of how they are read.

        Raises
        ------
        DataError
            If the manifest is damaged.
        """
        return unit_lineage(self.reading, _sources(self).begin(block))

    def open(self, block: int) -> FrameReader:
        """Return the reader of a block; it is valid until another one is opened."""
        return FrameReader(block, _sources(self))


_CURRENT: dict[FrameBlocks, UnitSources] = {}


def _sources(blocks: FrameBlocks) -> UnitSources:
    """Return what this process has opened of a manifest."""
    if blocks not in _CURRENT:
        close_sources()
        _CURRENT[blocks] = UnitSources(blocks.manifest, blocks.opener, blocks.settings)
    return _CURRENT[blocks]


def close_sources() -> None:
    """Release the files that this process holds open."""
    for sources in _CURRENT.values():
        sources.close()
    _CURRENT.clear()


def problem_arrays(problems: list[tuple[FrameRef, str]]) -> dict[str, NDArray[Any]]:
    """Return frames that could not be read as arrays of a partial result: how many, and the reasons of the first."""
    text = json.dumps([[ref.source, ref.index, reason] for ref, reason in problems[:PROBLEMS_KEPT]]).encode()
    return {"unread_frames": np.array(len(problems)), "unread": np.frombuffer(text, dtype=np.uint8)}


def join_problems(first: dict[str, NDArray[Any]], second: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the same of two partial results, the first one's frames first."""
    joined = problem_arrays([*problems_of(first), *problems_of(second)])
    return {**joined, "unread_frames": first["unread_frames"] + second["unread_frames"]}


def problems_of(partial: dict[str, NDArray[Any]]) -> list[tuple[FrameRef, str]]:
    """Return the frames that could not be read whose reasons a partial result keeps."""
    rows = json.loads(partial["unread"].tobytes() or b"[]")
    return [(FrameRef(source, index), reason) for source, index, reason in rows]

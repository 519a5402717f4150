"""The contract between readers of frames and the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from xfelproc.models.experiment import Experiment
from xfelproc.models.frames import Frame


@dataclass(frozen=True)
class SourceSummary:
    """What `xfelproc inspect` shows of a source; found without reading pixels."""

    path: str
    format: str
    n_frames: int
    dtype: str
    experiment: Experiment
    mask: str = ""
    """Where the mask comes from and what its values mean, in words."""
    notes: tuple[str, ...] = field(default=())
    """What is missing, assumed or odd in the metadata."""


class FrameSource(ABC):
    """Frames of one file (or of one master file). Opens lazily; picklable before the first read; not shared by threads.

    A source is cheap to make: the constructor may read metadata, never pixels.
    """

    path: str
    n_frames: int
    chunk_frames: int = 1
    """Frames that share a storage chunk: work units are multiples of it."""

    @abstractmethod
    def summary(self) -> SourceSummary:
        """Return what is in the file, without reading pixels."""

    @abstractmethod
    def experiment(self, index: int) -> Experiment:
        """Return the models of frame ``index``; the same Detector object as long as the geometry does not change."""

    @abstractmethod
    def static_mask(self) -> NDArray[np.uint8]:
        """Return the mask (MaskBit; panel, slow, fast) common to all frames; read-only and cached."""

    @abstractmethod
    def read(self, index: int, source: int = 0) -> Frame:
        """Return frame ``index`` (``source`` is its number in the manifest). The pixels may live in a buffer that the next read
        overwrites.

        Raises
        ------
        DataError
            If the frame cannot be read; names file and frame.
        """

    def count_like(self, path: str) -> tuple[int, int] | None:
        """Return frames and frames a chunk of another file that holds its frames as this one does, without reading its models.

        None: it does not, or there is no telling; open it. This source may be closed meanwhile.

        Raises
        ------
        DataError
            If the file cannot be opened.
        """
        return None

    def close(self) -> None:  # noqa: B027  (closing is optional: most sources hold no handle)
        """Release file handles; the source can be read again afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

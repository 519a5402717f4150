"""Frames in HDF5 files, whatever described them: a geometry file, NeXus, or the user."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property

import h5py
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError, DataError
from xfelproc.io.sources.base import FrameSource, SourceSummary
from xfelproc.io.sources.hdf5_file import Hdf5Pool
from xfelproc.io.sources.hdf5_layout import Layout, segments_of, stored_as
from xfelproc.io.sources.hdf5_read import FrameReader, working_dtype
from xfelproc.io.sources.masks import build_mask, describe_mask
from xfelproc.io.sources.overrides import apply_settings, describe_overrides
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.conventions import MaskBit
from xfelproc.models.experiment import Detector, Experiment
from xfelproc.models.frames import Frame, FrameRef

Mask = NDArray[np.uint8]


class Description(ABC):
    """What a kind of file says about its frames; picklable, holds no handle."""

    format: str

    @abstractmethod
    def experiment(self, index: int, pool: Hdf5Pool) -> Experiment:
        """Return the models of a frame; the same Detector object as long as the geometry does not change."""

    @abstractmethod
    def incomplete(self, pool: Hdf5Pool) -> Experiment:
        """Return what is known of the first frame where that is not enough to process it; a wavelength not known is NaN."""

    @abstractmethod
    def static_mask(self, pool: Hdf5Pool) -> Mask:
        """Return the mask common to all frames, read-only."""

    @abstractmethod
    def mask_words(self) -> str:
        """Say where the mask comes from and what its values mean."""

    def frame_mask(self, index: int, static: Mask, pool: Hdf5Pool) -> Mask:
        """Return the mask of one frame: ``static`` itself where frames have no masks of their own."""
        return static

    def marked(self) -> tuple[tuple[int, str, float], ...]:
        """Return (panel, "equal" or "morethan", value) of raw values that mark bad pixels."""
        return ()

    def notes(self) -> tuple[str, ...]:
        """Return what is missing, assumed or odd."""
        return ()


@dataclass
class _Cache:
    mask: Mask | None = None
    trusted: NDArray[np.float64] | None = None
    detector: Detector | None = None


class Hdf5Source(FrameSource):
    """Frames of one HDF5 file or master file."""

    def __init__(
        self, path: str, layout: Layout, description: Description, pool: Hdf5Pool | None = None, stages: Layout | None = None
    ) -> None:
        self.path = path
        self.layout = layout
        self.description = description
        self.n_frames = layout.n_frames
        self.chunk_frames = layout.chunk_frames
        self._pool = pool or Hdf5Pool()
        self._reader = FrameReader(path, layout, self._pool)
        self._stages = None if stages is None else FrameReader(path, stages, self._pool)
        if stages is not None and stages.n_frames != layout.n_frames:
            raise DataError(f"input.gain_data has {stages.n_frames} frames, the pixels {layout.n_frames}: correct its path", path)
        self._cache = _Cache()

    def summary(self) -> SourceSummary:
        """Return what is in the file, without reading pixels."""
        try:
            experiment, missing = self.description.experiment(0, self._pool), tuple[str, ...]()
        except (ConfigError, DataError) as error:
            experiment, missing = self.description.incomplete(self._pool), (str(error),)
        return SourceSummary(
            path=self.path,
            format=self.description.format,
            n_frames=self.n_frames,
            dtype=str(self.layout.dtype),
            experiment=experiment,
            mask=self.description.mask_words(),
            notes=(*missing, *self.description.notes(), *self.layout.notes),
        )

    def event(self, index: int) -> str:
        """Return CrystFEL's name of a frame: what fills the placeholders of path and axes, such as ``//12`` or ``run1/3//``."""
        self._check(index)
        part = self.layout.parts[0]
        segment, number = part.locate(index)
        return f"{segment.event}//{'' if part.frame_axis is None else number if segment.event else index}"

    def experiment(self, index: int) -> Experiment:
        """Return the models of frame ``index``."""
        if self.n_frames:
            self._check(index)
        return self.description.experiment(index, self._pool)

    def static_mask(self) -> Mask:
        """Return the mask (MaskBit; panel, slow, fast) common to all frames; read-only and cached."""
        if self._cache.mask is None:
            self._cache.mask = self.description.static_mask(self._pool)
        return self._cache.mask

    def read(self, index: int, source: int = 0) -> Frame:
        """Return frame ``index``; its pixels live in a buffer that the next read overwrites."""
        self._check(index)
        pixels = self._reader.read(index)
        models = self.description.experiment(index, self._pool)
        if self._cache.detector is not models.detector:
            self._cache.detector = models.detector
            self._cache.trusted = models.detector.trusted_ranges
        assert self._cache.trusted is not None
        mask = self.description.frame_mask(index, self.static_mask(), self._pool)
        marked = self.description.marked()
        if marked:
            mask = mask.copy()
            for panel, kind, value in marked:
                bad = pixels[panel] == value if kind == "equal" else pixels[panel] > value
                mask[panel][bad] |= np.uint8(MaskBit.RANGE)
        stages = None if self._stages is None else self._stages.read(index)
        return Frame(FrameRef(source, index), pixels, mask, self._cache.trusted, models.detector, models.beam, stages=stages)

    def count_like(self, path: str) -> tuple[int, int] | None:
        """Return frames and frames a chunk of another file in which the same dataset holds frames of the same shape and type."""
        layout, pool = self.layout, Hdf5Pool()
        if not layout.dataset:
            return None
        try:
            found = pool.file(path).get(layout.dataset)
            if not isinstance(found, h5py.Dataset) or str(found.file.filename) != path:
                return None
            segments = segments_of(found, path, 0)
            dtype, chunk = stored_as(found, segments, 0, pool)
            if (
                tuple(found.shape[1:]) != layout.parts[0].frame_shape
                or layout.dtype not in (dtype, found.dtype)
                or not found.shape[0]
            ):
                return None
            return int(found.shape[0]), chunk
        except (OSError, KeyError, RuntimeError):
            return None
        finally:
            pool.close()

    def close(self) -> None:
        """Release file handles; the source can be read again afterwards."""
        self._pool.close()
        self._reader.release()
        if self._stages is not None:
            self._stages.release()

    def _check(self, index: int) -> None:
        if not 0 <= index < self.n_frames:
            raise DataError(f"there is no such frame: the file holds {self.n_frames}", self.path, index)


def check_dtype(layout: Layout, path: str) -> None:
    """Raise a DataError if the frames do not hold numbers."""
    try:
        working_dtype(layout.dtype)
    except ValueError as error:
        raise DataError(f"{error}: name the dataset of the frames in the geometry or in input.data_path", path) from error


@dataclass
class PlainDescription(Description):
    """Frames of which the file says nothing: all comes from a reference geometry and the settings."""

    path: str
    reference: Experiment
    settings: SourceSettings
    format: str = "HDF5"

    @cached_property
    def _experiment(self) -> Experiment:
        experiment = apply_settings(self.reference, self.settings)
        if not 0 < experiment.beam.wavelength < 1000:
            raise ConfigError(f"{self.settings.geometry} gives no wavelength, nor does the job: set input.wavelength")
        return replace(experiment, goniometer=None, scan=None, crystal=None)

    def experiment(self, index: int, pool: Hdf5Pool) -> Experiment:
        """Return the models of a frame."""
        return replace(self._experiment, image=(self.path, index))

    def incomplete(self, pool: Hdf5Pool) -> Experiment:
        """Return what is known of the first frame."""
        return replace(self.reference, image=(self.path, 0))

    def static_mask(self, pool: Hdf5Pool) -> Mask:
        """Return the mask common to all frames."""
        return build_mask(self._experiment.detector, self.settings)

    def mask_words(self) -> str:
        """Say where the mask comes from and what its values mean."""
        return describe_mask(self.settings) or "no mask"

    def notes(self) -> tuple[str, ...]:
        """Return what is missing, assumed or odd."""
        return describe_overrides(self.settings)

"""What readers of image files have in common: settings, mask, buffer, summary."""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError, DataError
from xfelproc.io.sources.base import FrameSource, SourceSummary
from xfelproc.io.sources.buffers import POOL
from xfelproc.io.sources.header import Header
from xfelproc.io.sources.masks import build_mask, describe_mask, slab_shape, stack_shapes, to_stack
from xfelproc.io.sources.overrides import (
    UNSET_DISTANCE,
    apply_settings,
    describe_overrides,
    detector_distance,
    load_reference,
    unused_of,
)
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.experiment import Detector, Experiment
from xfelproc.models.frames import Frame, FrameRef


def frame_number(path: Path) -> int:
    """Return the last number in a file's name (1 if there is none): the frame of its sweep."""
    name = re.sub(r"\.(gz|bz2|xz)$", "", path.name)
    numbers = re.findall(r"\d+", name.rsplit(".", 1)[0])
    return int(numbers[-1]) if numbers else 1


@dataclass
class _Prepared:
    """What is made once from header and settings."""

    header: Header
    experiment: Experiment
    missing: tuple[str, ...]
    notes: tuple[str, ...] = ()
    mask: NDArray[np.uint8] | None = None


@lru_cache(maxsize=8)
def _same_detector(detector: Detector) -> Detector:
    """Return the first detector that was equal to this one."""
    return detector


@lru_cache(maxsize=2)
def _static_mask(detector: Detector, settings: SourceSettings) -> NDArray[np.uint8]:
    return build_mask(detector, settings)


class ImageSource(FrameSource):
    """Frames of a file whose geometry stands in one header. Subclasses read header and pixels."""

    def __init__(self, path: str | Path, settings: SourceSettings) -> None:
        if settings.data_path is not None:
            raise ConfigError(f"data_path = {settings.data_path!r} is for HDF5 files, {path} is an image file: take it out")
        if settings.gain_data is not None:
            raise ConfigError(f"gain_data = {settings.gain_data!r} is for HDF5 files, {path} is an image file: take it out")
        self.path = str(path)
        self.settings = settings
        self.n_frames = 1
        self._prepared: _Prepared | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels."""

    @abstractmethod
    def read_header(self) -> Header:
        """Return the header of the file, without the settings."""

    @abstractmethod
    def read_pixels(self, index: int) -> NDArray[Any]:
        """Return the pixels of frame ``index``: the stack, or a slab (slow, fast) that holds all panels.

        What is read-only or of another type than `dtype` is copied.
        """

    def header_experiment(self, index: int, header: Header) -> Experiment:
        """Return the header's models of frame ``index``; only scans differ from frame to frame."""
        return header.experiment

    def experiment(self, index: int) -> Experiment:
        """Return the models of frame ``index``, with the settings.

        Raises
        ------
        DataError
            If neither header nor settings state what is needed.
        """
        self._check(index)
        prepared = self._prepare()
        if prepared.missing:
            raise DataError(
                f"{' and '.join(prepared.missing)} not stated in the file: set it in [input], or give a geometry file", self.path
            )
        own = self.header_experiment(index, prepared.header)
        return replace(prepared.experiment, goniometer=own.goniometer, scan=own.scan, image=(self.path, index))

    def summary(self) -> SourceSummary:
        """Return what is in the file, without reading pixels."""
        prepared = self._prepare()
        notes = [f"{name} not stated: set it in [input], or give a geometry file" for name in prepared.missing]
        notes += [*prepared.header.notes, *describe_overrides(self.settings), *prepared.notes]
        regions = sum(len(p.mask) for p in prepared.experiment.detector.panels)
        own = f"{regions} untrusted rectangles of the geometry" if regions else ""
        mask = "; ".join(text for text in (prepared.header.mask, own, describe_mask(self.settings)) if text)
        return SourceSummary(
            self.path, prepared.header.format, self.n_frames, str(self.dtype), prepared.experiment, mask, tuple(notes)
        )

    def static_mask(self) -> NDArray[np.uint8]:
        """Return the mask common to all frames; read-only and cached."""
        prepared = self._prepare()
        if prepared.mask is None:
            prepared.mask = _static_mask(prepared.experiment.detector, self.settings)
        return prepared.mask

    def read(self, index: int, source: int = 0) -> Frame:
        """Return frame ``index``; its pixels live in memory that is used again when nobody holds them.

        Raises
        ------
        DataError
            If the frame cannot be read; names file and frame.
        """
        experiment = self.experiment(index)
        detector = experiment.detector
        try:
            raw = self.read_pixels(index)
            buffer = self._buffer(detector, raw)
            stack = to_stack(raw, detector, buffer)
            if stack is not buffer and buffer is not None:
                np.copyto(buffer, stack)
                stack = buffer
        except DataError as error:
            raise DataError(error.message, self.path, index) from error
        except ValueError as error:
            raise DataError(f"{error}: give the geometry of this detector", self.path, index) from error
        return Frame(FrameRef(source, index), stack, self.static_mask(), detector.trusted_ranges, detector, experiment.beam)

    def _buffer(self, detector: Detector, raw: NDArray[Any]) -> NDArray[Any] | None:
        """Return the stack to fill; None where the pixels can stay where they were read to."""
        if raw.flags.writeable and raw.dtype == self.dtype and len(detector) == 1:
            return None
        stack = POOL.take(detector.stack_shape, self.dtype)
        if any(p.image_size != detector.panels[0].image_size for p in detector.panels):
            stack.fill(0)  # padding
        return stack

    def _check(self, index: int) -> None:
        if not 0 <= index < self.n_frames:
            raise DataError(f"there are {self.n_frames} frame(s), counted from 0", self.path, index)

    def _prepare(self) -> _Prepared:
        if self._prepared is None:
            header = self.read_header()
            own = header.experiment
            reference = load_reference(self.settings)
            experiment = apply_settings(own, self.settings, reference)
            notes = () if reference is None else unused_of(reference, experiment)
            shapes, shape = stack_shapes(experiment.detector), slab_shape(own.detector)
            if shape not in shapes:
                raise ConfigError(
                    f"geometry {self.settings.geometry} is of {' or '.join(str(s) for s in shapes)} pixels, "
                    f"the frames of {self.path} have {shape}: give the geometry of this detector"
                )
            # files of a series share one detector and one mask: what is worked out for it is found again
            experiment = replace(experiment, detector=_same_detector(experiment.detector))
            self._prepared = _Prepared(header, experiment, _missing(header, experiment, reference is not None), notes)
        return self._prepared


def _missing(header: Header, experiment: Experiment, has_reference: bool) -> tuple[str, ...]:
    """Return what neither header nor settings nor geometry file state."""
    missing = [] if has_reference else [name for name in header.missing if name == "pixel size"]
    if abs(detector_distance(experiment.detector, experiment.beam)) < UNSET_DISTANCE:
        missing.append("distance")
    if not experiment.beam.wavelength > 0:
        missing.append("wavelength")
    return tuple(missing)

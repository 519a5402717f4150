"""Mean, standard deviation and maximum of frames, as a fold; `algorithms.calibration.average` makes images of its result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from xfelproc.errors import DataError
from xfelproc.io.nodes import Partial
from xfelproc.kernels.accumulate import accumulate_moments
from xfelproc.kernels.pixels import pixel_limits
from xfelproc.models.frames import Frame
from xfelproc.stages.calibrating import FrameCalibration
from xfelproc.stages.frame_blocks import FrameReader, join_problems, problem_arrays
from xfelproc.stages.stills import Calibrator


@dataclass(frozen=True)
class AverageFold:
    """Sums of all frames of the blocks, pixel by pixel.

    Without ``calibrate`` the values are raw. ``dark`` and ``gain`` name the arrays that it is given.
    """

    lineage: str
    calibrate: Calibrator | None = None
    dark: str | None = None
    gain: str | None = None
    calibration: str | None = None

    def accumulate(self, blocks: Iterable[FrameReader]) -> Partial:
        """Return the sums of consecutive blocks.

        Raises
        ------
        DataError
            If frames differ in shape.
        """
        sums, problems = _Sums(), []
        calibration = None if self.calibrate is None else FrameCalibration(self.calibrate, self.dark, self.gain, self.calibration)
        for reader in blocks:
            for frame in calibrated_frames(reader, calibration):
                sums.add(frame, reader.path(frame))
            problems += reader.problems
        return sums.partial() | problem_arrays(problems)

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return the sums of both.

        Raises
        ------
        DataError
            If frames differ in shape.
        """
        problems = join_problems(first, second)
        if "total" not in first or "total" not in second:
            return {**(first if "total" in first else second), **problems}
        if first["total"].shape != second["total"].shape:
            raise _other_shape(first["total"].shape, second["total"].shape)
        added = {name: first[name] + second[name] for name in ("n_frames", "count", "total", "square")}
        return {**added, "maximum": np.maximum(first["maximum"], second["maximum"]), **problems}


def calibrated_frames(reader: FrameReader, calibration: FrameCalibration | None) -> Iterator[Frame]:
    """Yield the frames of a block, calibrated if asked for; each is valid until the next one."""
    for frame in reader:
        yield frame if calibration is None else calibration.apply(frame, reader.mask(frame), reader.path(frame))


class _Sums:
    def __init__(self) -> None:
        self._n = 0
        self._arrays: Partial = {}

    def add(self, frame: Frame, path: str) -> None:
        arrays, shape = self._arrays, frame.pixels.shape
        if not arrays:
            arrays["count"] = np.zeros(shape, np.uint32)
            arrays["total"], arrays["square"] = np.zeros(shape), np.zeros(shape)
            arrays["maximum"] = np.full(shape, -np.inf, np.float32)
        if arrays["total"].shape != shape:
            raise _other_shape(arrays["total"].shape, shape, path, frame.ref.index)
        limits = pixel_limits(frame.pixels.dtype, frame.trusted)
        accumulate_moments(frame.pixels, frame.mask, limits, arrays["count"], arrays["total"], arrays["square"], arrays["maximum"])
        self._n += 1

    def partial(self) -> Partial:
        return {**self._arrays, "n_frames": np.array(self._n)}


def _other_shape(first: Sequence[int], second: Sequence[int], path: str | None = None, frame: int | None = None) -> DataError:
    return DataError(
        f"is of shape {tuple(second)} (panel, slow, fast), the frames before it are of {tuple(first)}: frames of one detector "
        "alone can be averaged; choose them by input.files or input.frames",
        path,
        frame,
    )

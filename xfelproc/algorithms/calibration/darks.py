"""Dark runs: pedestal and noise of each pixel and gain stage, and the bad pixels that they show.

Sums over frames are formed in two passes. The first adds up medians, and median deviations from them, of groups of frames. The
second adds up what is not far from the mean median: stray photons, cosmic rays and frames that are not dark are left out. Sums of
whole numbers are exact, so that they can be added in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xfelproc.algorithms.calibration.dark_pixels import MAD_TO_SIGMA, DarkPixels, bad_pixels, block_bounds, of_neighbours
from xfelproc.algorithms.calibration.stages import NO_CODE, stage_codes
from xfelproc.errors import DataError
from xfelproc.kernels.darks import add_common, add_extremes, add_medians, add_values, subtract_common
from xfelproc.models.calibration import MAX_STAGES, DetectorConstants, StageCoding
from xfelproc.models.conventions import MaskBit, PixelMask
from xfelproc.models.frames import Frame
from xfelproc.models.parameters import Parameters

Partial = dict[str, NDArray[Any]]
Floats32 = NDArray[np.float32]

LEAST_PIXELS = 0.01
"""A frame tells of a gain stage if this fraction of its pixels is in it: others are stuck pixels."""
GROUP = 11
"""Frames of which a median is taken: right as long as five of them are."""
FEWEST = 3
"""Frames of the last group, where no other is full."""
ROUNDING = 2.5
"""Raw units within which a whole number is never left out: medians of whole numbers do not tell a small scatter."""


class Darks(Parameters):
    """Pedestal, noise and bad pixels from dark frames."""

    outliers: Annotated[
        float, Field(ge=2, le=100, description="σ of the first pass from its mean beyond which a value is left out of the second")
    ] = 5.0
    min_frames: Annotated[int, Field(ge=3, description="fewest dark frames of a gain stage")] = 10
    stage: Annotated[
        int | None,
        Field(ge=0, lt=MAX_STAGES, description="gain stage of the run, where the raw values do not tell it; None: the first"),
    ] = None
    common_mode: Annotated[
        bool,
        Field(
            description="take off what blocks of 64 x 64 pixels have in common on a frame, so that the noise is that of the pixels"
        ),
    ] = True
    pixels: Annotated[DarkPixels, Field(description="which pixels are bad")] = DarkPixels()


class DarkSums:
    """Sums over the raw values of some frames, by gain stage: of one of two passes.

    Parameters
    ----------
    coding
        How raw values tell the stage; None: all are in that of ``darks``.
    first
        What the first pass found (`dark_means`), for the second; None: this is the first.
    """

    def __init__(self, darks: Darks, coding: StageCoding | None = None, first: DetectorConstants | None = None) -> None:
        self.darks, self.coding, self.first = darks, coding, first
        self._sums: Partial = {"frames": np.zeros(MAX_STAGES, dtype=np.int64)}
        self._bounds: dict[int, tuple[Floats32, Floats32]] = {}
        self._groups: dict[int, tuple[Floats32, int]] = {}
        self._shape: tuple[int, ...] | None = None if first is None or first.pedestal is None else first.pedestal.shape[1:]
        self._values: Floats32 = np.empty(self._shape or (0,), dtype=np.float32)

    def add(self, frame: Frame) -> None:
        """Add a raw frame.

        Raises
        ------
        DataError
            If it has another shape than those before it, or none of the gain stages can be told of it.
        """
        shape = frame.pixels.shape
        if self._shape is None:
            self._shape, self._values = shape, np.empty(shape, dtype=np.float32)
        if shape != self._shape:
            raise DataError(
                f"a dark frame has shape {shape}, those before it {self._shape}: give frames of one detector", frame=frame.ref.index
            )
        for stage, values in self._stages(frame):
            self._sums["frames"][stage] += 1
            if self.first is None:
                self._first_pass(stage, values)
            else:
                self._second_pass(stage, values, self.first, frame.pixels.dtype.kind in "iu")

    def partial(self) -> Partial:
        """Return the sums; `combine_darks` adds those of other frames."""
        result = dict(self._sums)
        for stage, (group, count) in self._groups.items():
            if count >= FEWEST and f"n_{stage}" not in result:
                group = group[:count].copy()
                self._level(group)
                add_medians(group, FEWEST, *self._arrays(result, stage, "mad", group.shape[1:]))
        return result

    def _stages(self, frame: Frame) -> Iterator[tuple[int, Floats32]]:
        """Give the gain stages seen in a frame, each with the values of its pixels, in an array that the next one overwrites."""
        pixels, coding, values = frame.pixels, self.coding, self._values
        if coding is None:
            values[...] = pixels
            highest = np.iinfo(pixels.dtype).max - 1 if pixels.dtype.kind == "u" else np.inf
            limits = np.minimum(frame.trusted[:, 1], highest)[:, None, None]
            values[pixels > limits] = np.nan
            yield self.darks.stage or 0, values
            return
        codes, raw = stage_codes(frame, coding), pixels
        missing = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else np.inf
        if codes is None:
            codes, raw = (pixels >> coding.shift).astype(np.uint8), pixels & np.uint32((1 << coding.shift) - 1)
        table = np.full((len(pixels), NO_CODE + 1), -1, dtype=np.int8)
        table[:, : coding.stages.shape[1]] = coding.stages
        stages = table[np.arange(len(pixels))[:, None, None], codes]
        stages[pixels == missing] = -1
        found = [stage for stage in range(coding.n_stages) if np.count_nonzero(stages == stage) >= LEAST_PIXELS * stages.size]
        if not found:
            raise DataError(
                "no pixel is in a gain stage that calibrate.gain_stages knows: correct the codes", frame=frame.ref.index
            )
        for stage in found:
            values[...] = raw
            values[stages != stage] = np.nan
            yield stage, values

    def _first_pass(self, stage: int, values: Floats32) -> None:
        group, count = self._groups.get(stage) or (np.empty((GROUP, *values.shape), dtype=np.float32), 0)
        group[count] = values
        if count + 1 == GROUP:
            self._level(group)
            add_medians(group, GROUP // 2 + 1, *self._arrays(self._sums, stage, "mad", values.shape))
        self._groups[stage] = group, (count + 1) % GROUP

    def _level(self, group: Floats32) -> None:
        """Bring the blocks of all frames of a group to their median level."""
        if not self.darks.common_mode:
            return
        slows, fasts = (block_bounds(size) for size in group.shape[2:])
        offsets = np.zeros((len(group), group.shape[1], len(slows) - 1, len(fasts) - 1))
        for values, found in zip(group[1:], offsets[1:], strict=True):
            subtract_common(values, group[0], slows, fasts, found)
        middle = np.median(offsets, axis=0)
        for values in group:
            add_common(values, slows, fasts, middle)

    def _second_pass(self, stage: int, values: Floats32, first: DetectorConstants, whole: bool) -> None:
        assert first.pedestal is not None
        assert first.noise is not None
        if stage >= len(first.pedestal):
            raise DataError(f"the first pass over the dark frames saw no gain stage {stage}: fewer than {FEWEST} frames were in it")
        if stage not in self._bounds:
            reach = np.float32(self.darks.outliers) * first.noise[stage]
            self._bounds[stage] = (
                np.ascontiguousarray(first.pedestal[stage]),
                np.maximum(reach, np.float32(ROUNDING)) if whole else reach,
            )
        if f"low_{stage}" not in self._sums:
            self._sums[f"low_{stage}"] = np.full(values.shape, np.inf, dtype=np.float32)
            self._sums[f"high_{stage}"] = np.full(values.shape, -np.inf, dtype=np.float32)
        add_extremes(values, self._sums[f"low_{stage}"], self._sums[f"high_{stage}"])
        if self.darks.common_mode:
            slows, fasts = (block_bounds(size) for size in values.shape[1:])
            offsets = np.zeros((len(values), len(slows) - 1, len(fasts) - 1))
            subtract_common(values, self._bounds[stage][0], slows, fasts, offsets)
        add_values(values, *self._bounds[stage], *self._arrays(self._sums, stage, "square", values.shape))

    @staticmethod
    def _arrays(sums: Partial, stage: int, last: str, shape: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        if f"n_{stage}" not in sums:
            sums[f"n_{stage}"] = np.zeros(shape, dtype=np.uint32)
            sums[f"total_{stage}"] = np.zeros(shape)
            sums[f"{last}_{stage}"] = np.zeros(shape)
        return sums[f"n_{stage}"], sums[f"total_{stage}"], sums[f"{last}_{stage}"]


def combine_darks(first: Mapping[str, NDArray[Any]], second: Mapping[str, NDArray[Any]]) -> Partial:
    """Return the sums over the frames of both.

    Raises
    ------
    DataError
        If they are of detectors of other shapes.
    """
    total = dict(first)
    for name, values in second.items():
        if name in total and total[name].shape != values.shape:
            raise DataError(f"dark frames of shapes {total[name].shape} and {values.shape}: give frames of one detector")
        join = {"low": np.minimum, "high": np.maximum}.get(name.partition("_")[0], np.add)
        total[name] = join(total[name], values) if name in total else values
    return total


def dark_means(partial: Mapping[str, NDArray[Any]]) -> DetectorConstants:
    """Return what the second pass needs of the first: mean of the medians and σ of each stage, as pedestal and noise.

    The σ of a pixel is at least that usual among its neighbours: a few values tell little. Stages and pixels not seen are NaN.

    Raises
    ------
    DataError
        If there are no three frames of a stage.
    """
    stages = _stages_of(partial)
    if not stages:
        raise DataError("there are no three dark frames of a gain stage together: give more frames that were taken without beam")
    shape = partial[f"n_{stages[0]}"].shape
    pedestal = np.full((stages[-1] + 1, *shape), np.nan, dtype=np.float32)
    noise = np.full_like(pedestal, np.nan)
    for stage in stages:
        n = partial[f"n_{stage}"]
        pedestal[stage] = np.divide(partial[f"total_{stage}"], n, out=np.full(shape, np.nan), where=n > 0)
        sigma = np.divide(partial[f"mad_{stage}"], n, out=np.full(shape, np.nan), where=n > 0) * MAD_TO_SIGMA
        usual, _ = of_neighbours(sigma, sigma > 0, DarkPixels().window)
        noise[stage] = np.maximum(sigma, usual)
    return DetectorConstants(pedestal=pedestal, noise=noise)


def dark_constants(
    darks: Darks,
    partial: Mapping[str, NDArray[Any]],
    first: DetectorConstants,
    static_mask: NDArray[np.uint8],
    coding: StageCoding | None = None,
) -> DetectorConstants:
    """Return pedestal, noise and bad pixels from the second pass.

    Parameters
    ----------
    partial
        Sums over all frames, formed with ``first``.
    static_mask
        (panel, slow, fast) MaskBit of the source: what is masked there is not judged; padding becomes a gap.

    Raises
    ------
    DataError
        If there are too few frames of a stage.
    """
    assert first.pedestal is not None
    pedestal = np.full_like(first.pedestal, np.nan)
    noise = np.full_like(pedestal, np.nan)
    gaps = static_mask & np.uint8(MaskBit.PADDING) != 0
    mask = np.where(gaps, np.uint32(PixelMask.GAP), np.uint32(0))
    provenance = {}
    for stage in _stages_of(partial):
        frames = int(partial["frames"][stage])
        if frames < darks.min_frames:
            raise DataError(
                f"there are {frames} dark frames of gain stage {stage}, at least {darks.min_frames} are needed: give more, or lower"
                " min_frames"
            )
        provenance[f"dark_frames_{stage}"] = str(frames)
        n, total, square = (partial[f"{name}_{stage}"].astype(np.float64) for name in ("n", "total", "square"))
        unknown = np.full(n.shape, np.nan)
        mean = np.divide(total, n, out=unknown.copy(), where=n > 0)
        variance = np.divide(square - total * np.nan_to_num(mean), n - 1, out=unknown, where=n > 1)
        noise[stage] = np.sqrt(np.maximum(variance, 0.0))
        pedestal[stage] = mean + np.rint(first.pedestal[stage].astype(np.float64))
        constant = partial[f"low_{stage}"] == partial[f"high_{stage}"]
        mask |= bad_pixels(darks.pixels, pedestal[stage], noise[stage], partial[f"n_{stage}"], frames, constant, static_mask != 0)
    return DetectorConstants(pedestal, noise, mask=mask, coding=coding, provenance=provenance)


def _stages_of(partial: Mapping[str, NDArray[Any]]) -> list[int]:
    return sorted(int(name[2:]) for name in partial if name.startswith("n_"))

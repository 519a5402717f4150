"""Darks and gains as folds over raw frames."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.calibration import CommonModeGroups, Darks, DarkSums, combine_darks, combine_gain_sums, gain_sums
from xfelproc.algorithms.calibration.stages import stage_codes
from xfelproc.errors import DataError
from xfelproc.io.calibration_file import read_calibration
from xfelproc.io.nodes import Partial
from xfelproc.kernels.pixels import pixel_limits
from xfelproc.models.calibration import DetectorConstants, StageCoding
from xfelproc.models.conventions import mask_bits
from xfelproc.models.frames import Frame
from xfelproc.stages.frame_blocks import FrameReader, join_problems, problem_arrays

PROBLEMS = ("unread_frames", "unread")


@dataclass(frozen=True)
class DarkFold:
    """Sums of dark frames by gain stage; ``first`` is the file of the first pass's means, for the second pass."""

    lineage: str
    darks: Darks
    coding: StageCoding | None = None
    first: Path | None = None

    def accumulate(self, blocks: Iterable[FrameReader]) -> Partial:
        """Return the sums of consecutive blocks.

        Raises
        ------
        DataError
            If frames differ in shape, or their gain stage cannot be told.
        """
        sums = DarkSums(self.darks, self.coding, None if self.first is None else read_calibration(self.first))
        problems = []
        for reader in blocks:
            for frame in reader:
                sums.add(frame)
            problems += reader.problems
        return sums.partial() | problem_arrays(problems)

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return the sums of both."""
        problems = join_problems(first, second)
        sums = [{name: values for name, values in part.items() if name not in PROBLEMS} for part in (first, second)]
        return combine_darks(*sums) | problems


@dataclass(frozen=True)
class GainFold:
    """What frames tell of the gain of each panel, in the first gain stage.

    ``constants`` is a file with pedestal and noise; ``groups`` are the pixels that share an offset on each frame, if any do, and
    ``gain`` (panel,) ADU a photon is what an earlier pass found.
    """

    lineage: str
    constants: Path
    coding: StageCoding | None = None
    groups: CommonModeGroups | None = None
    gain: tuple[float, ...] | None = None

    def accumulate(self, blocks: Iterable[FrameReader]) -> Partial:
        """Return the sums of consecutive blocks.

        Raises
        ------
        DataError
            If the constants are not of these frames' detector.
        """
        known = read_calibration(self.constants)
        gain = None if self.gain is None else np.array(self.gain)
        result: Partial = {}
        problems = []
        for reader in blocks:
            for frame in reader:
                adu, noise, mask = first_stage(frame, known, self.coding)
                sums = gain_sums(adu, mask, noise, self.groups, gain)
                result = combine_gain_sums(result, sums) if result else sums
            problems += reader.problems
        return result | problem_arrays(problems)

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return the sums of both."""
        problems = join_problems(first, second)
        if "sums" not in first or "sums" not in second:
            return {**(first if "sums" in first else second), **problems}
        return combine_gain_sums(first, second) | problems


def first_stage(
    frame: Frame, known: DetectorConstants, coding: StageCoding | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
    """Return raw values less the pedestal of the first gain stage (NaN: no measurement, or in another stage), noise and mask.

    All are (panel, slow, fast).

    Raises
    ------
    DataError
        If pedestal or noise are not known, or of another detector.
    """
    if known.pedestal is None or known.noise is None:
        raise DataError(
            "the gain is estimated from values less the pedestal, beyond the noise: make both by 'xfelproc calibrate dark'"
        )
    if known.pedestal.shape[1:] != frame.pixels.shape:
        raise DataError(
            f"the constants are of a detector of shape {known.pedestal.shape[1:]} (panel, slow, fast), the frames have "
            f"{frame.pixels.shape}: make them of dark frames of this detector"
        )
    raw, limits = frame.pixels, pixel_limits(frame.pixels.dtype, frame.trusted)[:, :, None, None]
    measured = (raw >= limits[:, 0]) & (raw <= limits[:, 1])
    values = raw
    if coding is not None:
        codes = stage_codes(frame, coding)
        if codes is None:
            values, codes = raw & raw.dtype.type((1 << coding.shift) - 1), (raw >> coding.shift).astype(np.uint8)
            measured = np.ones(raw.shape, dtype=np.bool_)  # limits are of one stage
        panels = np.arange(len(raw))[:, None, None] if len(coding.stages) > 1 else 0
        measured &= coding.stages[panels, np.minimum(codes, coding.stages.shape[1] - 1)] == 0
    adu = values.astype(np.float32) - known.pedestal[0]
    adu[~measured] = np.nan
    mask = frame.mask if known.mask is None else frame.mask | mask_bits(known.mask)
    unknown = ~np.isfinite(known.noise[0])  # stuck in another stage
    adu[unknown] = np.nan
    return adu, np.where(unknown, np.float32(np.nanmedian(known.noise[0])), known.noise[0]), mask

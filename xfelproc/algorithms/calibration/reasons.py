"""Why a pixel of a frame is not used."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.calibration.constants import CalibrationConstants
from xfelproc.algorithms.calibration.stages import StageConstants, stage_codes
from xfelproc.models.conventions import UNCALIBRATED, MaskBit, PixelMask
from xfelproc.models.frames import Frame

_STATIC = {
    MaskBit.BAD: PixelMask.USER,
    MaskBit.REGION: PixelMask.USER,
    MaskBit.EDGE: PixelMask.EDGE,
    MaskBit.RESOLUTION: PixelMask.RESOLUTION,
    MaskBit.CALIBRATION: PixelMask.NO_GAIN,
    MaskBit.PADDING: PixelMask.GAP,
}
"""What a bit of the mask says where a file of constants does not say more."""


def reasons_of(raw: Frame, calibrated: Frame, constants: CalibrationConstants) -> NDArray[np.uint32]:
    """Return PixelMask (panel, slow, fast) of a frame, 0 for good pixels.

    Parameters
    ----------
    calibrated
        What `Calibrate.apply` made of ``raw``.
    """
    shape = raw.pixels.shape
    known = np.zeros(shape, dtype=np.uint32) if constants.reasons is None else constants.reasons
    reasons = known.copy()
    for bit, reason in _STATIC.items():
        told = known & np.uint32(UNCALIBRATED) if bit == MaskBit.CALIBRATION else known & ~np.uint32(UNCALIBRATED)
        reasons[(constants.mask & np.uint8(bit) != 0) & (told == 0)] |= np.uint32(reason)
    value, trusted = calibrated.pixels, calibrated.trusted
    reasons[value > trusted[:, 1, None, None]] |= np.uint32(PixelMask.SATURATED)
    absent = np.isnan(value) | (value < trusted[:, 0, None, None])
    no_gain = _without_gain(raw, constants.stages) if constants.stages is not None else np.zeros(shape, dtype=np.bool_)
    reasons[absent & no_gain] |= np.uint32(PixelMask.NO_GAIN)
    reasons[absent & ~no_gain] |= np.uint32(PixelMask.NO_VALUE)
    return reasons


def _without_gain(raw: Frame, stages: StageConstants) -> NDArray[np.bool_]:
    """Return True where a pixel is in a stage of which its pedestal or gain is not known."""
    codes = stage_codes(raw, stages.coding)
    if codes is None:
        codes = (raw.pixels >> stages.coding.shift).astype(np.uint8)
    possible = codes < stages.table.shape[1]
    panels = np.arange(len(codes))[:, None, None]
    stage = np.where(possible, stages.table[panels, np.where(possible, codes, 0)], np.int8(-1))
    rows, columns = np.arange(codes.shape[1])[:, None], np.arange(codes.shape[2])
    inverse = stages.inverse_gain[np.maximum(stage, 0), panels, rows, columns]
    found: NDArray[np.bool_] = (stage >= 0) & np.isnan(inverse)
    return found

"""Calibration: raw values to photons."""

from xfelproc.algorithms.calibration.calibrate import Calibrate, CalibrationConstants
from xfelproc.algorithms.calibration.common_mode import CommonMode, CommonModeGroups
from xfelproc.algorithms.calibration.gain import (
    GainEstimate,
    combine_gain_sums,
    estimate_gain,
    estimate_gain_panels,
    gain_sums,
)

__all__ = [
    "Calibrate",
    "CalibrationConstants",
    "CommonMode",
    "CommonModeGroups",
    "GainEstimate",
    "combine_gain_sums",
    "estimate_gain",
    "estimate_gain_panels",
    "gain_sums",
]

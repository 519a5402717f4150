"""Calibration: raw values to photons."""

from xfelproc.algorithms.calibration.calibrate import Calibrate
from xfelproc.algorithms.calibration.common_mode import CommonMode, CommonModeGroups
from xfelproc.algorithms.calibration.constants import CalibrationConstants
from xfelproc.algorithms.calibration.darks import Darks, DarkSums, combine_darks, dark_constants, dark_means
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
    "DarkSums",
    "Darks",
    "GainEstimate",
    "combine_darks",
    "combine_gain_sums",
    "dark_constants",
    "dark_means",
    "estimate_gain",
    "estimate_gain_panels",
    "gain_sums",
]

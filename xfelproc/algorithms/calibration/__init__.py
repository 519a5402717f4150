"""Calibration: raw values to photons."""

from xfelproc.algorithms.calibration.calibrate import Calibrate, CalibrationConstants
from xfelproc.algorithms.calibration.gain import estimate_gain

__all__ = ["Calibrate", "CalibrationConstants", "estimate_gain"]

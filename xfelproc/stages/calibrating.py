"""Calibration of the frames a worker is at: arrays loaded once, constants made once a detector."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.io.sources.overrides import check_distance
from xfelproc.models.experiment import Detector
from xfelproc.models.frames import Frame
from xfelproc.stages.inputs import CalibrationInputs
from xfelproc.stages.stills import Calibrator


class FrameCalibration:
    """What a worker keeps of the section ``[calibrate]`` and the arrays of ``[input]`` between frames."""

    def __init__(
        self, calibrate: Calibrator, dark: str | None = None, gain: str | None = None, calibration: str | None = None
    ) -> None:
        self.calibrate = calibrate
        self._names = dark, gain, calibration
        self._inputs: CalibrationInputs | None = None
        self._constants: list[tuple[Detector, NDArray[np.uint8], Detector, Any]] = []

    def constants(self, frame: Frame, mask: NDArray[np.uint8], path: str) -> tuple[Detector, Any]:
        """Return the calibration of a frame's detector, and that detector as one object for all frames that share it.

        Parameters
        ----------
        mask
            The static mask of the frame's source.
        path
            The source, for messages.

        Raises
        ------
        DataError
            If the detector is where no detector can be, or an array does not fit it.
        ConfigError
            If an array cannot be read.
        """
        for seen, known, detector, constants in self._constants:
            if mask is known and frame.detector is seen:
                return detector, constants
        for seen, known, detector, constants in self._constants:
            if (frame.detector is seen or frame.detector == seen) and np.array_equal(mask, known):
                # another file's copies of the same: remembered, so that they are compared once a file
                self._constants = [(frame.detector, mask, detector, constants), *self._constants[:1]]
                return detector, constants
        check_distance(frame.detector, frame.beam, path, frame.ref.index)
        if self._inputs is None:
            self._inputs = CalibrationInputs.load(*self._names)
        given = self._inputs
        constants = self.calibrate.constants(frame.detector, mask, given.dark, given.gain, given.calibration)
        self._constants = [(frame.detector, mask, frame.detector, constants), *self._constants[:1]]
        return frame.detector, constants

    def apply(self, frame: Frame, mask: NDArray[np.uint8], path: str) -> Frame:
        """Return the frame in photons, in a buffer that the next call may overwrite. See `constants`."""
        detector, constants = self.constants(frame, mask, path)
        return self.calibrate.apply(replace(frame, detector=detector), constants)

"""Calibration arrays that the user names in ``[input]``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError, DataError
from xfelproc.io.calibration_file import read_calibration
from xfelproc.models.calibration import DetectorConstants


def load_array(name: str | None) -> NDArray[Any] | None:
    """Return the array of a ``.npy`` file or of ``file.h5:/path/to/dataset``; None stays None.

    Raises
    ------
    ConfigError
        If it cannot be read.
    """
    if name is None:
        return None
    path, _, inside = name.partition(":")
    try:
        if inside:
            with h5py.File(path, "r", locking=False) as file:
                return np.asarray(file[inside][()])
        return np.asarray(np.load(Path(path), allow_pickle=False))
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{name}: cannot be read as an array ({error}): give a .npy file or file.h5:/path/to/dataset") from error


def load_calibration(name: str | None) -> DetectorConstants | None:
    """Return the constants of a file; None stays None.

    Raises
    ------
    ConfigError
        If it cannot be read, or what is in it is impossible.
    """
    if name is None:
        return None
    try:
        return read_calibration(Path(name))
    except DataError as error:
        raise ConfigError(str(error)) from error


@dataclass(frozen=True)
class CalibrationInputs:
    """Arrays that the user names in ``[input]``; None: not given."""

    dark: NDArray[Any] | None
    gain: NDArray[Any] | None
    calibration: DetectorConstants | None

    @classmethod
    def load(cls, dark: str | None, gain: str | None, calibration: str | None) -> CalibrationInputs:
        """Read the files.

        Raises
        ------
        ConfigError
            If one cannot be read, or what is in it is impossible.
        """
        return cls(load_array(dark), load_array(gain), load_calibration(calibration))

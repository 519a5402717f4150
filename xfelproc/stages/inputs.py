"""Calibration arrays that the user names in ``[input]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError


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

"""Values that HDF5 files hold of each frame beside its pixels: laser on or off, event codes, delays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError


def read_frame_values(path: Path, dataset: str) -> NDArray[Any] | None:
    """Return the values of a file's frames, (n,), or one for all of them, (1,); None if the file has no such dataset.

    Numbers come as float64, text as str.

    Raises
    ------
    DataError
        If the file cannot be read, or the dataset has several values a frame, or something else than numbers and text.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            found = file.get(dataset)
            if found is None:
                return None
            if not isinstance(found, h5py.Dataset):
                raise DataError(f"{dataset} is a group, not a dataset of one value a frame", path)
            values = np.asarray(found[()])
    except (OSError, RuntimeError, KeyError) as error:
        raise DataError(f"{dataset} cannot be read: {error}", path) from error
    count = values.shape[0] if values.ndim else 1
    if values.size != count:
        raise DataError(f"{dataset} has shape {values.shape}: one value a frame is wanted", path)
    values = values.reshape(count)
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    if values.dtype.kind in "SO":
        return np.array([value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()], dtype=object)
    raise DataError(f"{dataset} holds {values.dtype}: numbers or text are wanted", path)

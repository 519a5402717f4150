"""Small HDF5 files of frames for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

GEOM = """
photon_energy = 9500
clen = 0.1
res = 10000
adu_per_photon = 1
data = /entry/data/data
dim0 = %
dim1 = ss
dim2 = fs
p0/min_fs = 0
p0/max_fs = 63
p0/min_ss = 0
p0/max_ss = 47
p0/corner_x = -32
p0/corner_y = -24
p0/fs = x
p0/ss = y
"""


def frames(n: int = 5, shape: tuple[int, ...] = (48, 64), dtype: str = "u2", seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).poisson(4, (n, *shape)).astype(dtype)


def write(path: Path, array: NDArray[Any], name: str = "/entry/data/data", compressed: bool = True, **more: Any) -> Path:
    """Write frames one a chunk; ``more`` are further datasets, '__' standing for '/'."""
    with h5py.File(path, "a") as file:
        options = {"compression": hdf5plugin.Bitshuffle(nelems=0, cname="lz4")} if compressed else {}
        file.create_dataset(name, data=array, chunks=(1, *array.shape[1:]), **options)
        for key, value in more.items():
            file.create_dataset(key.replace("__", "/"), data=value)
    return path


def geom(folder: Path, text: str = GEOM, name: str = "x.geom") -> Path:
    path = folder / name
    path.write_text(text)
    return path

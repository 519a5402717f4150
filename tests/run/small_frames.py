"""Raw frames of a small detector of two panels, in HDF5 with a CrystFEL geometry."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

GEOM = """photon_energy = 9500
clen = 0.08
res = 10000
data = /data
dim0 = %
dim1 = ss
dim2 = fs
adu_per_photon = 10
a/min_fs = 0
a/max_fs = 59
a/min_ss = 0
a/max_ss = 49
a/corner_x = -62
a/corner_y = -25
a/fs = x
a/ss = y
b/min_fs = 60
b/max_fs = 119
b/min_ss = 0
b/max_ss = 49
b/corner_x = 2
b/corner_y = -25
b/fs = x
b/ss = y
"""


def write_frames(folder: Path, frames: int = 40, seed: int = 0) -> tuple[Path, Path, np.ndarray]:
    """Write ``frames.h5`` and ``frames.geom``; return both and the values (frame, slow, fast): 10 ADU a photon."""
    values = (10 * np.random.default_rng(seed).poisson(3.0, (frames, 50, 120))).astype(np.uint16)
    with h5py.File(folder / "frames.h5", "w") as file:
        file.create_dataset("data", data=values, chunks=(1, 50, 120))
    (folder / "frames.geom").write_text(GEOM)
    return folder / "frames.h5", folder / "frames.geom", values

"""Runs of very many frames that cost next to nothing on disk: HDF5 files whose chunks are not allocated, links to a few images."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np

GEOMETRY = """photon_energy = 9000
clen = 0.1
adu_per_photon = 1
res = 10000
data = /entry/data/data
dim0 = %
dim1 = ss
dim2 = fs
"""
LINKS = 60_000
"""Names of one file: file systems allow some 65000."""


def multi_event(root: Path, files: int, frames: int, panels: int = 8) -> Path:
    """Make HDF5 files of ``frames`` frames with a geometry, and a job; return the job."""
    root.mkdir(parents=True, exist_ok=True)
    height = 512 // panels
    for number in range(files):
        with h5py.File(root / f"run_{number:04d}.h5", "w", libver="latest") as file:
            file.create_dataset("entry/data/data", shape=(frames, 512, 1024), dtype="u2", chunks=(1, 512, 1024))
            file["entry/event"] = np.arange(frames)
    text = GEOMETRY
    for panel in range(panels):
        text += f"p{panel}/min_fs = 0\np{panel}/max_fs = 1023\np{panel}/min_ss = {panel * height}\n"
        text += f"p{panel}/max_ss = {(panel + 1) * height - 1}\np{panel}/corner_x = -512\n"
        text += f"p{panel}/corner_y = {panel * height - 256}\n"
        text += f"p{panel}/fs = +1.0x\np{panel}/ss = +1.0y\n"
    (root / "detector.geom").write_text(text)
    return _job(root, f'files = ["{root}/run_*.h5"]\ngeometry = "{root}/detector.geom"\n')


def image(seed: int = 0, side: int = 64) -> bytes:
    """Return a small SMV image."""
    fields = {
        "HEADER_BYTES": "  512",
        "DIM": "2",
        "BYTE_ORDER": "little_endian",
        "TYPE": "unsigned_short",
        "SIZE1": side,
        "SIZE2": side,
        "PIXEL_SIZE": 0.1,
        "DISTANCE": 100,
        "WAVELENGTH": 1.0,
        "BEAM_CENTER_X": side * 0.05,
        "BEAM_CENTER_Y": side * 0.05,
    }
    head = "{\n" + "".join(f"{key}={value};\n" for key, value in fields.items()) + "}\n"
    pixels = np.random.default_rng(seed).poisson(3.0, (side, side)).astype("<u2") + 1
    return head.encode().ljust(512) + pixels.astype("<u2").tobytes()


def single_frames(root: Path, files: int, folders: int) -> Path:
    """Make image files of one frame in some folders, as links to a few, and a job; return the job."""
    for folder in range(folders):
        (root / f"run{folder:02d}").mkdir(parents=True, exist_ok=True)
    for number in range(files):
        path = root / f"run{number % folders:02d}" / f"lysozyme_{number // folders:07d}.img"
        if number % LINKS == 0:
            original = root / f"original{number // LINKS}"
            original.write_bytes(image(number))
        os.link(original, path)
    return _job(root, f'files = ["{root}/run*/*.img"]\n')


def _job(root: Path, given: str) -> Path:
    job = root / "job.toml"
    job.write_text(f'recipe = "stills"\n\n[input]\n{given}\n[index]\ncell = [79, 79, 38, 90, 90, 90]\nspace_group = "P 43 21 2"\n')
    return job

"""Pixel masks as files: HDF5 that CrystFEL, NeXus readers and image editors take, with the reasons as bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError
from xfelproc.io.exchange.detector_images import write_images
from xfelproc.io.sources.masks import HDF5_SUFFIXES, read_array, to_stack
from xfelproc.models.conventions import PixelMask
from xfelproc.models.experiment import Detector, Experiment

Bits = NDArray[np.uint32]


def write_mask(path: Path, mask: Bits, experiment: Experiment) -> None:
    """Write a mask: dataset ``mask`` in the layout of the frames, and NXmx's ``pixel_mask``; 0 is a good pixel.

    Parameters
    ----------
    mask
        (panel, slow, fast) of `PixelMask`.
    experiment
        Its geometry.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    names = {bit.name: int(bit) for bit in PixelMask}
    write_images(path, {"mask": mask.astype(np.uint32)}, experiment, {"reasons": json.dumps(names)})


def crystfel_lines(path: Path) -> tuple[str, ...]:
    """Return what to put at the top of a ``.geom`` file so that CrystFEL uses a mask that `write_mask` wrote."""
    return (
        "mask0_data = /mask",
        f"mask0_file = {path.absolute()}",
        "mask0_goodbits = 0x00000000",
        "mask0_badbits = 0xffffffff",
    )


def read_reasons(spec: str, detector: Detector) -> Bits:
    """Return a mask file's reasons as a stack (panel, slow, fast).

    Files of ours (masks, averages, constants) and NXmx's ``pixel_mask`` keep their bits; of any other, what is not 0 is
    `PixelMask.USER`.

    Parameters
    ----------
    spec
        HDF5 file of ours, ``file.h5:/path``, ``.npy`` or an image.

    Raises
    ------
    ConfigError
        If it cannot be read, or is of another detector.
    """
    name, _, inside = spec.partition(":/")
    ours = Path(name).suffix.lower() in HDF5_SUFFIXES and _is_ours(Path(name))
    values: NDArray[Any] = np.squeeze(read_array(f"{name}:/{inside or 'mask'}" if ours else spec))
    try:
        stack = to_stack(values[None] if values.ndim == 2 and len(detector) == 1 else values, detector)
    except ValueError as error:
        raise ConfigError(f"mask {spec}: {error}") from error
    if ours or inside.endswith("pixel_mask"):
        return stack.astype(np.uint32)
    return np.where(stack != 0, np.uint32(PixelMask.USER), np.uint32(0))


def _is_ours(path: Path) -> bool:
    try:
        with h5py.File(path, "r", locking=False) as file:
            known = {"reasons", "raw_image_offset", "n_stages"} & set(file.attrs)  # masks, averages, constants
            return bool(known) and "mask" in file
    except OSError:
        return False  # whoever reads it complains

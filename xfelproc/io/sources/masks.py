"""Masks and panel stacks: how an array of a file becomes (panel, slow, fast), and which of its pixels are never used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.conventions import MaskBit
from xfelproc.models.experiment import Detector

Array = NDArray[Any]

HDF5_SUFFIXES = (".h5", ".hdf5", ".nxs", ".cxi", ".nx5")


def slab_shape(detector: Detector) -> tuple[int, int]:
    """Return the (slow, fast) shape of the array that holds all panels at their ``raw_image_offset``."""
    slow = max(p.raw_image_offset[1] + p.image_size[1] for p in detector.panels)
    fast = max(p.raw_image_offset[0] + p.image_size[0] for p in detector.panels)
    return (slow, fast)


def stack_shapes(detector: Detector) -> tuple[tuple[int, ...], ...]:
    """Return the shapes that `to_stack` takes: the stack itself, one slab of all panels, or the panels one below another."""
    stack = detector.stack_shape
    shapes: list[tuple[int, ...]] = [stack]
    offsets = {p.raw_image_offset for p in detector.panels}
    if len(offsets) == len(detector):
        shapes.append(slab_shape(detector))
    if len({p.image_size for p in detector.panels}) == 1:
        shapes.append((stack[0] * stack[1], stack[2]))
    return tuple(dict.fromkeys(shapes))


def to_stack(array: Array, detector: Detector, out: Array | None = None) -> Array:
    """Return ``array`` as the detector's stack (panel, slow, fast); a view wherever the memory allows it.

    Parameters
    ----------
    array
        One of `stack_shapes`. A slab is cut at each panel's ``raw_image_offset``.
    detector
        The panels.
    out
        C-contiguous stack to fill when a copy is needed; its padding is left as it is.

    Raises
    ------
    ValueError
        If the array has none of these shapes; the message names them.
    """
    shapes = stack_shapes(detector)
    if array.shape not in shapes:
        wanted = " or ".join(str(s) for s in shapes)
        raise ValueError(f"the array has shape {array.shape}, the geometry of {len(detector)} panel(s) needs {wanted}")
    if array.ndim == 3 or _is_column(detector) or len({p.raw_image_offset for p in detector.panels}) < len(detector):
        return np.ascontiguousarray(array).reshape(detector.stack_shape)
    stack = np.zeros(detector.stack_shape, dtype=array.dtype) if out is None else out
    for number, panel in enumerate(detector.panels):
        (fast, slow), (n_fast, n_slow) = panel.raw_image_offset, panel.image_size
        stack[number, :n_slow, :n_fast] = array[slow : slow + n_slow, fast : fast + n_fast]
    return stack


def _is_column(detector: Detector) -> bool:
    """Return whether the panels lie one below another in the slab, in their order, all of one size."""
    n_fast, n_slow = detector.panels[0].image_size
    return all(p.image_size == (n_fast, n_slow) and p.raw_image_offset == (0, i * n_slow) for i, p in enumerate(detector.panels))


def geometry_mask(detector: Detector) -> NDArray[np.uint8]:
    """Return the mask (panel, slow, fast) that the geometry alone implies: padding and the panels' untrusted rectangles."""
    mask = np.full(detector.stack_shape, MaskBit.PADDING, dtype=np.uint8)
    for number, panel in enumerate(detector.panels):
        n_fast, n_slow = panel.image_size
        mask[number, :n_slow, :n_fast] = 0
        for fast0, slow0, fast1, slow1 in panel.mask:
            slow, fast = slice(max(0, slow0), max(0, min(slow1, n_slow))), slice(max(0, fast0), max(0, min(fast1, n_fast)))
            mask[number, slow, fast] |= np.uint8(MaskBit.REGION)
    return mask


def read_array(spec: str) -> Array:
    """Return the array of a mask or calibration file: ``.npy``, ``.npz`` (its only array), ``.h5:/path``, or an image.

    Raises
    ------
    ConfigError
        If the file does not exist, cannot be read, or does not say which array is meant.
    """
    name, _, inside = spec.partition(":/")
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file: correct the path")
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path))
        if path.suffix == ".npz":
            return _only_array(path)
        if path.suffix.lower() in HDF5_SUFFIXES:
            return _hdf5_array(path, inside)
        import fabio

        return np.asarray(fabio.open(str(path)).data)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: cannot be read as an array ({error}): give a .npy, .npz, .h5:/path or image file") from error


def _only_array(path: Path) -> Array:
    with np.load(path) as archive:
        if len(archive.files) != 1:
            raise ConfigError(f"{path}: holds the arrays {', '.join(archive.files)}: save the one that is meant alone, as .npy")
        return np.asarray(archive[archive.files[0]])


def _hdf5_array(path: Path, inside: str) -> Array:
    if not inside:
        raise ConfigError(f"{path}: name the dataset as well, {path}:/entry/mask for example")
    with h5py.File(path, "r", locking=False) as file:
        found = file.get("/" + inside)
        if not isinstance(found, h5py.Dataset):
            raise ConfigError(f"{path}: has no dataset /{inside}: list its contents with h5ls -r")
        return np.asarray(found[()])


def file_mask(settings: SourceSettings, detector: Detector) -> NDArray[np.uint8] | None:
    """Return the settings' mask file as a stack with MaskBit.BAD at bad pixels, or None if there is none.

    Raises
    ------
    ConfigError
        If the file cannot be read or its shape is not the detector's; names both shapes.
    """
    if settings.mask is None:
        if settings.mask_good is not None:
            raise ConfigError(f"mask_good = {settings.mask_good} without a mask file: give mask, or take it out")
        return None
    values = np.squeeze(read_array(settings.mask))
    if values.ndim == 2 and len(detector) == 1 and values.shape != detector.stack_shape[1:]:
        raise ConfigError(f"mask {settings.mask} has shape {values.shape}, the frames have {detector.stack_shape[1:]}")
    try:
        stack = to_stack(values[None] if values.ndim == 2 and len(detector) == 1 else values, detector)
    except ValueError as error:
        raise ConfigError(f"mask {settings.mask}: {error}") from error
    bad = stack != (0 if settings.mask_good is None else settings.mask_good)
    return np.where(bad, np.uint8(MaskBit.BAD), np.uint8(0))


def build_mask(detector: Detector, settings: SourceSettings, own: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Return the read-only static mask: the geometry's, the file's ``own`` (a stack of MaskBit) and the settings' mask file.

    Raises
    ------
    ConfigError
        As `file_mask`.
    """
    mask = geometry_mask(detector)
    if own is not None:
        mask |= own
    user = file_mask(settings, detector)
    if user is not None:
        mask |= user
    mask.flags.writeable = False
    return mask


def describe_mask(settings: SourceSettings) -> str:
    """Return in words what the settings add to the mask; empty if nothing."""
    if settings.mask is None:
        return ""
    good = "0 is good, all else is bad" if settings.mask_good is None else f"{settings.mask_good} is good, all else is bad"
    return f"mask file {settings.mask}: {good}"

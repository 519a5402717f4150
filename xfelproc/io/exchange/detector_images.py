"""Images of the detector's size (means, masks) in HDF5, as CrystFEL, DIALS and anything that reads NeXus take them.

Each is a dataset at the file's root in the layout of the frames: one array (slow, fast) of all panels where the geometry says where
they lie in it, else (panel, slow, fast). The group ``entry`` is NXmx of the same geometry; its frames are the images of floating
point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.atomic import write_atomic
from xfelproc.io.exchange.geom_write import in_slab
from xfelproc.io.exchange.nexus_read import read_nexus
from xfelproc.io.exchange.nexus_write import put_geometry
from xfelproc.io.sources.masks import slab_shape, to_stack
from xfelproc.models.experiment import Detector, Experiment

Array = NDArray[Any]


def from_stack(stack: Array, detector: Detector) -> Array:
    """Return a stack (panel, slow, fast) in the layout of the frames' array; between panels there are zeros."""
    if len(detector) == 1:
        n_fast, n_slow = detector.panels[0].image_size
        return stack[0, :n_slow, :n_fast]
    if not in_slab(detector):
        return stack
    slab: Array = np.zeros(slab_shape(detector), dtype=stack.dtype)
    for values, panel in zip(stack, detector.panels, strict=True):
        (fast, slow), (n_fast, n_slow) = panel.raw_image_offset, panel.image_size
        slab[slow : slow + n_slow, fast : fast + n_fast] = values[:n_slow, :n_fast]
    return slab


def write_images(path: Path, images: Mapping[str, Array], experiment: Experiment, attributes: Mapping[str, Any]) -> None:
    """Write images; those of floating point also as the frames of an NXmx file, and one called ``mask`` as its pixel mask.

    Parameters
    ----------
    path
        File to write; appears whole.
    images
        (panel, slow, fast) each, by name.
    experiment
        Their geometry.
    attributes
        What to say of them, at the file's root.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    detector = experiment.detector
    series = [name for name, values in images.items() if values.dtype.kind == "f"]
    with h5py.File("images.h5", "w", driver="core", backing_store=False) as file:
        for key, value in attributes.items():
            file.attrs[key] = value
        file.attrs["raw_image_offset"] = np.array([p.raw_image_offset for p in detector.panels], dtype=np.int64)
        put_geometry(file, experiment)
        for name, values in images.items():
            if name not in series:
                _put(file, name, from_stack(values, detector))
        if series:
            _put_series(file, {name: images[name] for name in series}, detector)
        if "mask" in images:
            mask = images["mask"]
            _put(file["entry/instrument/detector"], "pixel_mask", mask if len(detector) > 1 else from_stack(mask, detector))
        file.flush()
        image = file.id.get_file_image()
    write_atomic(path, image)


def _put(group: Any, name: str, values: Array) -> None:
    group.create_dataset(name, data=values, compression="gzip", compression_opts=1, shuffle=True)  # which every reader has


def _put_series(file: Any, images: Mapping[str, Array], detector: Detector) -> None:
    """Write images as the frames of ``/entry/data/data``, and each by its name as a view of them in the layout of the frames."""
    several = len(detector) > 1
    data = file["entry"].create_group("data")
    data.attrs["NX_class"], data.attrs["signal"] = "NXdata", "data"
    frames = [values if several else from_stack(values, detector) for values in images.values()]
    data.create_dataset("data", data=np.stack(frames).astype(np.float32))
    data.create_dataset("names", data=np.array(list(images), dtype="S"))
    for number, (name, values) in enumerate(images.items()):
        _put_view(file, name, number, from_stack(values, detector).shape, detector)


def _put_view(file: Any, name: str, number: int, shape: tuple[int, ...], detector: Detector) -> None:
    """Write a virtual dataset: a frame of ``/entry/data/data`` whole, or its panels at their places in a slab."""
    source = file["entry/data/data"]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)  # the bytes depend on the content alone
    space = h5py.h5s.create_simple(shape)

    def show(target: tuple[slice, ...], part: tuple[int | slice, ...]) -> None:
        here, there = h5py.h5s.create_simple(shape), h5py.h5s.create_simple(source.shape)
        here.select_hyperslab(*_bounds(target, shape))
        there.select_hyperslab(*_bounds(part, source.shape))
        properties.set_virtual(here, b".", b"/entry/data/data", there)

    if len(detector) > 1 and len(shape) == 2:
        for panel, model in enumerate(detector.panels):
            (fast, slow), (n_fast, n_slow) = model.raw_image_offset, model.image_size
            place = (slice(slow, slow + n_slow), slice(fast, fast + n_fast))
            show(place, (number, panel, slice(0, n_slow), slice(0, n_fast)))
    else:
        everything = tuple(slice(0, n) for n in shape)
        show(everything, (number, *everything))
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F32LE, space, dcpl=properties)


def _bounds(part: tuple[int | slice, ...], shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return where a hyperslab starts and how long it is."""
    slices = [slice(p, p + 1) if isinstance(p, int) else p for p in part]
    return tuple(s.start for s in slices), tuple(s.stop - s.start for s in slices)


@dataclass(frozen=True)
class DetectorImages:
    """What `write_images` wrote: images (panel, slow, fast) by name, their geometry, and what is said of them."""

    images: dict[str, Array]
    experiment: Experiment
    attributes: dict[str, Any]


def read_images(path: Path, names: Sequence[str]) -> DetectorImages:
    """Return images of a file that `write_images` wrote.

    Raises
    ------
    DataError
        If one is not there, or the file is no such file.
    """
    experiment = read_nexus(path).experiment()
    try:
        with h5py.File(path, "r", locking=False) as file:
            offsets = file.attrs["raw_image_offset"]
            attributes = {key: value for key, value in file.attrs.items() if key != "raw_image_offset"}
            arrays = {name: np.asarray(file[name][()]) for name in names}
    except (OSError, KeyError) as error:
        raise DataError(f"cannot be read ({error}): give a file that 'xfelproc average' wrote", path) from error
    places = [(int(fast), int(slow)) for fast, slow in offsets]
    panels = tuple(replace(p, raw_image_offset=place) for p, place in zip(experiment.detector.panels, places, strict=True))
    detector = replace(experiment.detector, panels=panels)
    stacks = {name: to_stack(values[None] if len(panels) == 1 else values, detector) for name, values in arrays.items()}
    return DetectorImages(stacks, replace(experiment, detector=detector), attributes)

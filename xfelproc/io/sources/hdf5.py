"""HDF5 files of frames: NXmx and Dectris masters, CXI and anything that a geometry or the user describes."""

from __future__ import annotations

from pathlib import Path

from xfelproc.errors import ConfigError, DataError
from xfelproc.io.exchange.geom import GeomFile, read_geom
from xfelproc.io.exchange.nexus_read import is_nexus, read_nexus
from xfelproc.io.sources.base import FrameSource
from xfelproc.io.sources.hdf5_file import Hdf5Pool
from xfelproc.io.sources.hdf5_geom import GeomDescription
from xfelproc.io.sources.hdf5_layout import (
    Layout,
    Part,
    chunk_frames,
    find_frames,
    layout_of_geom,
    segments_of,
    slots_of_detector,
    what_looks_like_frames,
    whole_dataset,
)
from xfelproc.io.sources.hdf5_source import Hdf5Source, PlainDescription, check_dtype
from xfelproc.io.sources.nexus import describe_nexus
from xfelproc.io.sources.overrides import load_reference
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.experiment import Experiment


def open_hdf5(path: str | Path, settings: SourceSettings | None = None) -> FrameSource:
    """Open the frames of an HDF5 file; reads metadata, never pixels.

    A CrystFEL geometry in ``settings.geometry`` describes the file, unless the file is a NeXus or Dectris master without
    the dataset that the geometry names: then only the panels are taken from it.

    Raises
    ------
    DataError
        If the file cannot be opened, or does not hold what the geometry describes.
    ConfigError
        If something needed is neither in the file nor in the settings.
    """
    chosen = settings or SourceSettings()
    where = str(path)
    pool = Hdf5Pool()
    file = pool.file(where)
    nexus = is_nexus(file)
    if chosen.geometry is not None and chosen.geometry.suffix == ".geom":
        geom = read_geom(chosen.geometry)
        data_path = chosen.data_path or geom.panels[0].data
        if not nexus or (data_path and "%" not in data_path and data_path in file):
            return _open_with_geom(where, geom, chosen, pool)
    if nexus:
        contents = read_nexus(where, file)
        layout, description = describe_nexus(where, contents, chosen, pool)
        check_dtype(layout, where)
        stages = None
        if chosen.gain_data:
            stages, _ = describe_nexus(where, contents, chosen.model_copy(update={"data_path": chosen.gain_data}), pool)
        return Hdf5Source(where, layout, description, pool, stages)
    if chosen.geometry is not None:
        return _open_with_detector(where, chosen, pool)
    raise ConfigError(
        f"{where}: nothing in the file says where its panels are ({what_looks_like_frames(where, pool)}): "
        "name a .geom, .expt or NeXus file in input.geometry, or with inspect --geometry"
    )


def _open_with_geom(path: str, geom: GeomFile, settings: SourceSettings, pool: Hdf5Pool) -> FrameSource:
    layout = layout_of_geom(path, geom, geom.nominal, pool, settings.data_path)
    if not layout.n_frames:
        raise DataError("the file holds no frames", path)
    check_dtype(layout, path)
    # the geometry is in the description: applying it again as a reference would undo what the file's own values did to it
    own = settings.model_copy(update={"geometry": None})
    stages = layout_of_geom(path, geom, geom.nominal, pool, settings.gain_data) if settings.gain_data else None
    return Hdf5Source(path, layout, GeomDescription(path, geom, own, layout.parts[0]), pool, stages)


def _open_with_detector(path: str, settings: SourceSettings, pool: Hdf5Pool) -> FrameSource:
    """Open plain HDF5 frames whose panels a DIALS or NeXus file describes."""
    reference = load_reference(settings)
    assert reference is not None
    layout = _plain_layout(path, settings.data_path or find_frames(path, pool), reference, pool)
    stages = _plain_layout(path, settings.gain_data, reference, pool) if settings.gain_data else None
    return Hdf5Source(path, layout, PlainDescription(path, reference, settings), pool, stages)


def _plain_layout(path: str, name: str, reference: Experiment, pool: Hdf5Pool) -> Layout:
    """Return where the panels lie in a dataset of which the file says nothing."""
    dataset = pool.dataset(path, name)
    axes = len(dataset.shape)
    if axes < 2:
        raise DataError(f"{name} has shape {dataset.shape}: frames need two axes or more", path)
    n = len(reference.detector)
    frame_axis = None if axes == 2 or (axes == 3 and n > 1 and dataset.shape == reference.detector.stack_shape) else 0
    shape = tuple(int(s) for a, s in enumerate(dataset.shape) if a != frame_axis)
    slots = slots_of_detector(reference.detector, shape, path)
    part = Part(tuple(segments_of(dataset, path, frame_axis)), slots, frame_axis, shape)
    whole = whole_dataset(dataset, path, (part,))
    layout = Layout((part,), dataset.dtype, reference.detector.stack_shape, chunk_frames(dataset, frame_axis), dataset=whole)
    check_dtype(layout, path)
    return layout

"""HDF5 files of frames: NXmx and Dectris masters, CXI and anything that a geometry or the user describes."""

from __future__ import annotations

from pathlib import Path

from xfelproc.errors import ConfigError, DataError
from xfelproc.io.exchange.geom import read_geom
from xfelproc.io.sources.base import FrameSource
from xfelproc.io.sources.hdf5_file import Hdf5Pool
from xfelproc.io.sources.hdf5_geom import GeomDescription
from xfelproc.io.sources.hdf5_layout import layout_of_geom
from xfelproc.io.sources.hdf5_source import Hdf5Source, check_dtype
from xfelproc.io.sources.settings import SourceSettings


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
    pool.file(where)
    if chosen.geometry is not None and chosen.geometry.suffix == ".geom":
        return _open_with_geom(where, chosen, pool)
    raise ConfigError(f"{where}: nothing says where its panels are: give input.geometry")


def _open_with_geom(path: str, settings: SourceSettings, pool: Hdf5Pool) -> FrameSource:
    assert settings.geometry is not None
    geom = read_geom(settings.geometry)
    detector = geom.detector()
    layout = layout_of_geom(path, geom, detector, pool, settings.data_path)
    if not layout.n_frames:
        raise DataError("the file holds no frames", path)
    check_dtype(layout, path)
    # the geometry is in the description: applying it again as a reference would undo what the file's own values did to it
    own = settings.model_copy(update={"geometry": None})
    return Hdf5Source(path, layout, GeomDescription(path, geom, own, layout.parts[0]), pool)

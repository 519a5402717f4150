"""Readers of frames: `open_source` finds the one for a file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from xfelproc.errors import DataError
from xfelproc.io.sources.base import FrameSource, SourceSummary
from xfelproc.io.sources.compression import is_wrapped
from xfelproc.io.sources.detect import detect
from xfelproc.io.sources.settings import SourceSettings

__all__ = ["FrameSource", "SourceSettings", "SourceSummary", "open_source"]


def open_source(path: str | Path, settings: SourceSettings | None = None) -> FrameSource:
    """Return the frames of a file; its format is told by its content, not by its name.

    Parameters
    ----------
    path
        Image file (also wrapped by gzip, bzip2 or xz), HDF5 file or HDF5 master file.
    settings
        What to use in the place of what the file says.

    Raises
    ------
    DataError
        If the file is missing, empty, damaged, or of no known format.
    ConfigError
        If the settings do not fit the file.
    """
    settings = SourceSettings() if settings is None else settings
    kind = detect(Path(path))
    # each reader is imported when the first file of its format is opened
    if kind == "hdf5":
        if is_wrapped(Path(path)):
            raise DataError("HDF5 inside gzip, bzip2 or xz cannot be read frame by frame: unwrap it first", path)
        source: FrameSource = import_module("xfelproc.io.sources.hdf5").open_hdf5(path, settings)
        return source
    if kind == "cbf":
        from xfelproc.io.sources.cbf_source import CbfSource

        return CbfSource(path, settings)
    if kind == "smv":
        from xfelproc.io.sources.smv import SmvSource

        return SmvSource(path, settings)
    if kind == "marccd":
        from xfelproc.io.sources.marccd import MarCcdSource

        return MarCcdSource(path, settings)
    from xfelproc.io.sources.fabio_formats import FabioSource

    return FabioSource(path, settings)

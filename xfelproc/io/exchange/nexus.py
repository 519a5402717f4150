"""Geometry in NeXus (NXmx) files: read and write."""

from __future__ import annotations

from pathlib import Path

from xfelproc.io.exchange.nexus_read import NexusFile, is_nexus, read_nexus
from xfelproc.io.exchange.nexus_write import write_nexus_geometry
from xfelproc.models.experiment import Experiment

__all__ = ["NexusFile", "is_nexus", "read_nexus", "read_nexus_geometry", "write_nexus_geometry"]


def read_nexus_geometry(path: str | Path) -> Experiment:
    """Return detector, beam, goniometer and scan of an NXmx or Dectris master; a wavelength that is not known is NaN.

    Raises
    ------
    DataError
        If the file cannot be opened, or its geometry is not complete.
    """
    return read_nexus(path).experiment()

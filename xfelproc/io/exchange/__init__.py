"""Files of other programs: geometries, models, reflections."""

from __future__ import annotations

from pathlib import Path

from xfelproc.errors import DataError
from xfelproc.models.experiment import Experiment


def load_geometry(path: str | Path) -> Experiment:
    """Return the geometry in a file: CrystFEL .geom, DIALS .expt/.json (as they are, .gz, .bz2 or .xz), or NeXus.

    What the file does not say is left so that it shows: a wavelength that is not known is NaN.

    Raises
    ------
    DataError
        If the file cannot be read, or its suffix is of none of these.
    """
    name = Path(path).name.lower()
    if name.endswith(".geom"):
        from xfelproc.io.exchange.geom import read_geom

        geom = read_geom(path)
        return Experiment(geom.beam(), geom.detector())
    plain = name.removesuffix(".gz").removesuffix(".bz2").removesuffix(".xz")
    if plain.endswith((".expt", ".json")):
        from xfelproc.io.exchange.dials_expt import read_expt

        return read_expt(path)[0]
    if name.endswith((".nxs", ".h5", ".hdf5", ".nx5", ".cxi")):
        from xfelproc.io.exchange.nexus_read import read_nexus

        return read_nexus(path).experiment()
    raise DataError("not a geometry: .geom, .expt, .json, .nxs and .h5 files are read", path)

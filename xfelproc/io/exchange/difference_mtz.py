"""MTZ files of differences between two sets of merged data, for difference maps."""

from __future__ import annotations

import numpy as np

from xfelproc.errors import DataError
from xfelproc.io.exchange.mtz import MtzHeader, new_mtz
from xfelproc.models.difference_tables import DifferenceTable

COLUMNS = (
    ("FreeR_flag", "I", "free"),
    ("DF", "F", "amplitude"),
    ("SIGDF", "Q", "sigma_amplitude"),
    ("WDF", "W", "weight"),
    ("DI", "R", "intensity"),
    ("SIGDI", "Q", "sigma"),
    ("F", "F", "own_amplitude"),
    ("SIGF", "Q", "sigma_own_amplitude"),
    ("FREF", "F", "reference_amplitude"),
    ("SIGFREF", "Q", "sigma_reference_amplitude"),
)
"""Labels, types and columns of DifferenceTable. DI is no intensity: programs that look for one may not take it."""


def difference_mtz(table: DifferenceTable, header: MtzHeader) -> bytes:
    """Return the bytes of an MTZ of differences; see `COLUMNS`.

    Raises
    ------
    DataError
        If there is no reflection.
    """
    if not len(table):
        raise DataError("there is no reflection that both groups measured, so there is no MTZ of differences to write")
    mtz = new_mtz(header)
    columns = [np.asarray(table["hkl"][:, i], dtype=np.float32) for i in range(3)]
    for label, kind, name in COLUMNS:
        mtz.add_column(label, kind, dataset_id=1)
        columns.append(table[name].astype(np.float32))
    mtz.set_data(np.column_stack(columns))
    mtz.sort_order = [1, 2, 3, 0, 0]
    return bytes(mtz.write_to_bytes())

"""Free-R flags of MTZ and mmCIF files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError

LABELS = ("FreeR_flag", "FREE", "RFREE", "FREER", "FreeRflag", "R-free-flags", "Rfree-flags", "RFREE_FLAG")
"""Names of the column, those of CCP4, Phenix and CNS; letters may be large or small."""


@dataclass(frozen=True)
class FlagColumn:
    """Flags as a file has them: indices (n, 3), values (n,; NaN: none), cell (Å, degrees), Hermann-Mauguin symbol."""

    hkl: NDArray[np.int32]
    values: NDArray[np.float64]
    cell: tuple[float, ...]
    space_group: str
    label: str


def read_free_flags(path: Path) -> FlagColumn:
    """Return the free-R flags of an MTZ, or of the first block of an mmCIF file that has any.

    Raises
    ------
    DataError
        If the file cannot be read, or has no flags, no cell or no space group.
    """
    if not path.is_file():
        raise DataError("there is no such file", path)
    try:
        mtz = gemmi.read_mtz_file(str(path)) if _is_mtz(path) else _from_cif(path)
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise DataError(f"cannot be read as MTZ or mmCIF: {error}", path) from error
    labels = mtz.column_labels()
    wanted = {label.lower() for label in LABELS}
    found = [label for label in labels if label.lower() in wanted]
    if not found:
        raise DataError(f"it has no free-R flags: no column {', '.join(LABELS)} (columns: {', '.join(labels)})", path)
    if mtz.spacegroup is None or not mtz.cell.is_crystal():
        raise DataError("it does not state cell and space group: set them in the file's header", path)
    data = np.array(mtz, copy=True)
    values = data[:, labels.index(found[0])].astype(np.float64)
    hkl = np.rint(data[:, :3]).astype(np.int32)
    return FlagColumn(hkl, values, tuple(mtz.cell.parameters), mtz.spacegroup.xhm(), found[0])


def _is_mtz(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"MTZ "


def _from_cif(path: Path) -> gemmi.Mtz:
    """Return the first block of an mmCIF file with flags; ``_refln.status`` f is the test set."""
    blocks = gemmi.as_refln_blocks(gemmi.cif.read(str(path)))
    for block in blocks:
        if "status" in block.column_labels() or "pdbx_r_free_flag" in block.column_labels():
            return gemmi.CifToMtz().convert_block_to_mtz(block)
    raise ValueError("no block has _refln.pdbx_r_free_flag or _refln.status")

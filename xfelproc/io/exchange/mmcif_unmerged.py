"""The unmerged observations as a block of an mmCIF file (``diffrn_refln``), piece by piece from an unmerged MTZ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError

ROWS_AT_ONCE = 1 << 15
DATA_OFFSET = 80
"""Bytes before the first row of an MTZ."""
ITEMS = ("diffrn_id", "id", "index_h", "index_k", "index_l", "intensity_net", "intensity_sigma", "pdbx_image_id")


def unmerged_block(path: Path, entry: str) -> Iterator[str]:
    """Yield the text of a block of an unmerged MTZ of ours: indices as observed, I, SIGI, and the batch as image.

    Parameters
    ----------
    path
        Unmerged MTZ.
    entry
        Name of the entry.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    try:
        mtz = gemmi.read_mtz_file(str(path), with_data=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"cannot be read as MTZ: {error}", path) from error
    group, labels = mtz.spacegroup, mtz.column_labels()
    document = gemmi.cif.Document()
    block = document.add_new_block("unmerged")
    block.set_pair("_entry.id", entry)
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    cell = {name: f"{value:.4f}" for name, value in zip(names, mtz.cell.parameters, strict=True)}
    block.set_pairs("_cell.", {"entry_id": entry, **cell})
    symmetry = {"entry_id": entry, "space_group_name_H-M": group.hm, "Int_Tables_number": str(group.number)}
    block.set_pairs("_symmetry.", symmetry)
    block.set_pair("_exptl_crystal.id", "1")
    block.set_pairs("_diffrn.", {"id": "1", "crystal_id": "1"})
    wavelength = f"{mtz.datasets[-1].wavelength:.5f}"
    block.set_pairs("_diffrn_radiation_wavelength.", {"id": "1", "wavelength": wavelength, "wt": "1.0"})
    yield document.as_string()
    yield "\nloop_\n" + "".join(f"_diffrn_refln.{item}\n" for item in ITEMS)
    rows = np.memmap(path, dtype="<f4", mode="r", offset=DATA_OFFSET, shape=(mtz.nreflections, len(labels)))
    columns = [labels.index(label) for label in ("M/ISYM", "I", "SIGI", "BATCH")]
    back = _operators_back(group)
    for first in range(0, len(rows), ROWS_AT_ONCE):
        yield _lines(np.array(rows[first : first + ROWS_AT_ONCE], dtype=np.float64), columns, back, first)


def _operators_back(group: gemmi.SpaceGroup) -> NDArray[np.float64]:
    """Return (2 n, 3, 3) matrices M that take an index of the asymmetric unit to the one observed, h M, by M/ISYM - 1."""
    forward = [np.array(op.rot) / op.DEN for op in group.operations().sym_ops]
    return np.array([sign * np.linalg.inv(matrix) for matrix in forward for sign in (1.0, -1.0)])


def _lines(rows: NDArray[np.float64], columns: list[int], back: NDArray[np.float64], first: int) -> str:
    isym, intensity, sigma, batch = (rows[:, i] for i in columns)
    matrices = back[isym.astype(np.int64) % 256 - 1]
    hkl = np.rint(np.einsum("ni,nij->nj", rows[:, :3], matrices)).astype(np.int64)
    values = zip(*hkl.T.tolist(), intensity.tolist(), sigma.tolist(), batch.astype(np.int64).tolist(), strict=True)
    return "".join(f"1 {first + i} {h} {k} {ell} {v:.6g} {s:.5g} {b}\n" for i, (h, k, ell, v, s, b) in enumerate(values, 1))

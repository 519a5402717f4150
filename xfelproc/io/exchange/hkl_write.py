"""Reflection lists of CrystFEL (``.hkl``, version 2.0), as process_hkl and partialator write them.

Symmetry is the name CrystFEL has for the Laue class, Friedel mates merged; its default of the unique axis is c, another one is told
by ``_uaa`` or ``_uab``, and ``_H`` says that a trigonal lattice has hexagonal axes, ``_R`` that it has rhombohedral ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.geometry.miller import find_space_group

Floats = NDArray[np.float64]
ROWS_AT_ONCE = 1 << 16


def laue_symbol(space_group: str) -> str:
    """Return CrystFEL's name of a space group's Laue class.

    Raises
    ------
    ConfigError
        If there is no such space group.
    """
    group = find_space_group(space_group)
    name = str(group.laue_str())
    if name == "2/m":
        return f"{name}_ua{_unique_axis(group)}"
    if name.startswith("-3"):
        axes = "R" if group.ext == "R" else "H"
        if name == "-3m" and axes == "H":
            return f"{_trigonal_mirror(group)}_H"
        return f"{name}_{axes}"
    return name


def _unique_axis(group: gemmi.SpaceGroup) -> str:
    for op in group.operations().sym_ops:
        rotation = np.array(op.rot) // op.DEN
        if not np.array_equal(rotation, np.eye(3)):
            proper = rotation if np.linalg.det(rotation) > 0 else -rotation
            return "abc"[int(np.argmax(np.diag(proper)))]
    raise DataError(f"space group {group.xhm()} has no unique axis")


def _trigonal_mirror(group: gemmi.SpaceGroup) -> str:
    """Return -3m1, with twofolds along a (321), or -31m, with twofolds between (312)."""
    along_a = np.array([1, 0, 0])
    for op in group.operations().sym_ops:
        rotation = np.array(op.rot) // op.DEN
        proper = rotation * round(float(np.linalg.det(rotation)))
        if np.array_equal(proper @ along_a, along_a) and not np.array_equal(proper, np.eye(3)):
            return "-3m1"
    return "-31m"


def hkl_pieces(
    hkl: NDArray[np.int32], intensity: Floats, sigma: Floats, n: NDArray[np.int32], space_group: str, notes: tuple[str, ...] = ()
) -> Iterator[str]:
    """Yield the text of a reflection list.

    Parameters
    ----------
    hkl
        (m, 3) indices.
    intensity, sigma, n
        (m,) merged intensity, standard deviation and number of observations; rows without an intensity are left out.
    space_group
        Hermann-Mauguin symbol, whose Laue class the list has.
    notes
        Lines after the end of the list, where CrystFEL keeps them.

    Raises
    ------
    DataError
        If no row has an intensity.
    """
    rows = np.flatnonzero(np.isfinite(intensity) & np.isfinite(sigma) & (n > 0))
    if not len(rows):
        raise DataError("no reflection has an intensity, so there is no reflection list to write")
    yield f"CrystFEL reflection list version 2.0\nSymmetry: {laue_symbol(space_group)}\n"
    yield "   h    k    l          I    phase   sigma(I)   nmeas\n"
    for first in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[first : first + ROWS_AT_ONCE]
        columns = zip(*hkl[some].T.tolist(), intensity[some].tolist(), sigma[some].tolist(), n[some].tolist(), strict=True)
        yield "".join(f"{h:4d} {k:4d} {ell:4d} {i:10.2f} {'-':>8} {s:10.2f} {m:7d}\n" for h, k, ell, i, s, m in columns)
    yield "End of reflections\n" + "".join(f"{note}\n" for note in notes)

"""Free-R flags that stay: drawn by a hash of the index, or taken over from a file and extended (Brünger 1992, Nature 355, 472).

Flags count from 0 and 0 is the test set (CCP4's way). Symmetry mates and Friedel mates share a flag; so do reflections that a law
of the lattice's own system exchanges (`geometry.miller.free_flags`), and on request those of pseudo-merohedral laws as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.downstream.twinning import MAX_OBLIQUITY, holohedral_rotations, turned
from xfelproc.errors import DataError
from xfelproc.geometry.miller import Indices, find_space_group, holohedral_group, mix, pack, to_asu

Flags = NDArray[np.int32]
MAX_LENGTH_CHANGE, MAX_ANGLE_CHANGE = 0.05, 3.0
"""Relative and in degrees: a cell that differs by more is another crystal form, whose flags mean nothing here."""


@dataclass(frozen=True)
class GivenFlags:
    """Flags of a file: ``hkl`` (n, 3), ``flag`` (n,) from 0 with 0 the test set, and the number of their values.

    ``binary``: the file told test from working reflections and no more.
    """

    hkl: Indices
    flag: Flags
    n_values: int
    binary: bool
    cell: tuple[float, ...]
    space_group: str
    source: str = ""


@dataclass(frozen=True)
class Extended:
    """Flags of all reflections (n,); how many have the file's, and how many groups of mates have several flags in the file."""

    flag: Flags
    n_known: int
    n_conflicts: int


def normalised_flags(
    hkl: Indices, values: NDArray[np.float64], cell: Sequence[float], space_group: str, source: str = ""
) -> GivenFlags:
    """Return flags of a file in CCP4's way.

    Files of CCP4 count from 0, 0 the test set. Files of Phenix, CNS and SHELX have two values: the rarer one is the test set.

    Raises
    ------
    DataError
        If there are fewer than two values.
    """
    known = np.isfinite(values)
    hkl, flag = hkl[known], np.rint(values[known]).astype(np.int32)
    found, count = np.unique(flag, return_counts=True)
    if len(found) < 2:
        raise DataError(f"its free flags have {len(found)} value(s): there is no test set in it", source)
    if len(found) == 2:
        test = int(found[np.argmin(count)])
        n_values = max(2, round(len(flag) / int(count.min())))
        flag = np.where(flag == test, 0, 1).astype(np.int32)
        return GivenFlags(hkl, flag, n_values, True, tuple(cell), space_group, source)
    if int(found[0]) != 0:
        raise DataError(f"its free flags count from {found[0]}: the test set (0, CCP4's way) is not in it", source)
    return GivenFlags(hkl, flag, int(found[-1]) + 1, False, tuple(cell), space_group, source)


def check_crystal(given: GivenFlags, cell: Sequence[float], group: gemmi.SpaceGroup) -> list[str]:
    """Return words about a file of another symmetry.

    Raises
    ------
    DataError
        If its cell is that of another crystal form or setting.
    """
    lengths = np.abs(np.array(given.cell[:3]) / np.array(cell[:3]) - 1.0)
    angles = np.abs(np.array(given.cell[3:6]) - np.array(cell[3:6]))
    if lengths.max() > MAX_LENGTH_CHANGE or angles.max() > MAX_ANGLE_CHANGE:
        shown = " ".join(f"{v:.2f}" for v in given.cell)
        here = " ".join(f"{v:.2f}" for v in cell)
        raise DataError(
            f"its cell ({shown}) is not that of these data ({here}): another crystal form or setting; reindex the file, or leave "
            "merge.free_from out",
            given.source,
        )
    other = find_space_group(given.space_group)
    if other.laue_str() != group.laue_str():
        return [
            f"free flags: {Path(given.source).name} is of {other.xhm()} (Laue class {other.laue_str()}), the data of {group.xhm()} "
            f"({group.laue_str()}); mates got the flag that most of them have"
        ]
    return []


def lattice_rotations(cell: Sequence[float], group: gemmi.SpaceGroup, twin_laws: bool) -> list[NDArray[np.float64]]:
    """Return rotations (3, 3; h' = h R) beyond the lattice's own system, under whose orbits a flag is to be the same."""
    rotations = [np.eye(3)]
    if twin_laws:
        laws = gemmi.find_twin_laws(gemmi.UnitCell(*(float(v) for v in cell)), group, MAX_OBLIQUITY, True)
        own = holohedral_rotations(group)
        every = [np.array(op.rot) / op.DEN for op in laws]
        rotations += [r for r in every if not any(np.array_equal(r, other) for other in own)]
    return rotations


def orbit_keys(hkl: Indices, group: gemmi.SpaceGroup, rotations: Sequence[NDArray[np.float64]]) -> NDArray[np.int64]:
    """Return one number (n,) for all reflections that the lattice's system, or one of the rotations, takes to each other."""
    holohedry = group
    if group.is_reference_setting():
        holohedry = find_space_group(holohedral_group(group.crystal_system_str(), group.centring_type()))
    keys = [pack(to_asu(turned(hkl, rotation), holohedry)[0]) for rotation in rotations]
    least: NDArray[np.int64] = np.min(keys, axis=0)
    return least


def drawn_flags(hkl: Indices, cell: Sequence[float], group: gemmi.SpaceGroup, n_values: int, twin_laws: bool = False) -> Flags:
    """Return flags 0 ... n_values - 1 of reflections (n, 3), a hash of the index: the same in every run and to any resolution."""
    keys = orbit_keys(hkl, group, lattice_rotations(cell, group, twin_laws))
    drawn: Flags = (mix(keys.astype(np.uint64)) % np.uint64(n_values)).astype(np.int32)
    return drawn


def extend_flags(
    hkl: Indices, given: GivenFlags, cell: Sequence[float], group: gemmi.SpaceGroup, twin_laws: bool = False
) -> Extended:
    """Return the flags of a file for the reflections of these data.

    Reflections of the file keep their flag, whatever mate of them it lists; mates with several flags get the most frequent (the
    lowest of equals). Others get that of a reflection of the file that the lattice exchanges with them, and those without one are
    drawn, with as many values as the file has.

    Parameters
    ----------
    hkl
        (n, 3) indices.
    given
        See `normalised_flags`, `check_crystal`.
    cell, group
        Of these data.
    twin_laws
        Pseudo-merohedral twin laws count among what the lattice exchanges.
    """
    flag, n_conflicts = _taken_over(pack(to_asu(hkl, group)[0]), pack(to_asu(given.hkl, group)[0]), given.flag)
    known = flag >= 0
    rotations = lattice_rotations(cell, group, twin_laws)
    related, _ = _taken_over(orbit_keys(hkl, group, rotations), orbit_keys(given.hkl, group, rotations), given.flag)
    drawn = drawn_flags(hkl, cell, group, given.n_values, twin_laws)
    if given.binary:
        drawn = np.minimum(drawn, 1)
    flag = np.where(known, flag, np.where(related >= 0, related, drawn)).astype(np.int32)
    return Extended(flag, int(np.count_nonzero(known)), n_conflicts)


def _taken_over(wanted: NDArray[np.int64], key: NDArray[np.int64], flag: Flags) -> tuple[Flags, int]:
    """Return the most frequent flag of each key (-1: none), and how many keys have several."""
    if not len(key):
        return np.full(len(wanted), -1, dtype=np.int32), 0
    pairs, count = np.unique(np.column_stack([key, flag]), axis=0, return_counts=True)
    order = np.lexsort([pairs[:, 1], -count, pairs[:, 0]])
    pairs = pairs[order]
    first = np.flatnonzero(np.append(True, pairs[1:, 0] != pairs[:-1, 0]))
    keys, flags = pairs[first, 0], pairs[first, 1]
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, flags[place], -1).astype(np.int32), len(pairs) - len(first)

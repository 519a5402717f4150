"""Miller indices under a space group: reduction to the asymmetric unit, possible reflections, flags of the free set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError
from xfelproc.geometry.cells import b_matrix
from xfelproc.kernels.merging import in_asu, map_to_asu

Indices = NDArray[np.int32]
N_ASU_CASES = 12
KEY_OFFSET = 1 << 20

HOLOHEDRAL_GROUPS = {
    "triclinic": "1",
    "monoclinic": "2",
    "orthorhombic": "2 2 2",
    "tetragonal": "4 2 2",
    "rhombohedral": "3 2:H",
    "trigonal": "3 2 1",
    "hexagonal": "6 2 2",
    "cubic": "4 3 2",
}


def find_space_group(symbol: str) -> gemmi.SpaceGroup:
    """Return the space group of a Hermann-Mauguin symbol.

    Raises
    ------
    ConfigError
        If there is no such group.
    """
    group = gemmi.find_spacegroup_by_name(symbol)
    if group is None:
        raise ConfigError(f"space group {symbol!r} is not known: write its Hermann-Mauguin symbol, as in 'P 43 21 2'")
    return group


def holohedral_group(crystal_system: str, centring: str) -> str:
    """Return the symbol of the Sohncke group with the lattice's full rotational symmetry, without screw axes: a proposal.

    ``crystal_system`` is one of triclinic, monoclinic, orthorhombic, tetragonal, rhombohedral, trigonal, hexagonal, cubic;
    ``centring`` one of P, A, B, C, I, F, R. A trigonal or hexagonal lattice with P has 622, one with R has 32 (hexagonal axes).

    Raises
    ------
    ConfigError
        If there is no such lattice.
    """
    system = crystal_system.lower()
    if system in ("trigonal", "hexagonal", "rhombohedral"):
        system = "rhombohedral" if centring == "R" else "hexagonal"
    if system not in HOLOHEDRAL_GROUPS:
        raise ConfigError(f"crystal system {crystal_system!r} is not known: one of {', '.join(HOLOHEDRAL_GROUPS)}")
    if system == "monoclinic" and centring not in ("P", "C"):
        return find_space_group(f"{centring} 1 2 1").xhm()
    return find_space_group(f"{centring} {HOLOHEDRAL_GROUPS[system]}").xhm()


@cache
def _asu_case(symbol: str) -> int:
    """Return the case of `in_asu` that is gemmi's (CCP4's) asymmetric unit of a space group.

    Compared on all indices within ±4, which tells the cases apart. Raises ConfigError for a setting with a unit of its own.
    """
    asu = gemmi.ReciprocalAsu(find_space_group(symbol))
    span = range(-4, 5)
    grid = list(product(span, span, span))
    inside = [asu.is_in(list(index)) for index in grid]
    for case in range(N_ASU_CASES):
        if all(in_asu(*index, case) == expected for index, expected in zip(grid, inside, strict=True)):
            return case
    raise ConfigError(f"space group setting {symbol!r} is not supported in merging: use the standard setting, and reindex")


def to_asu(hkl: Indices, space_group: gemmi.SpaceGroup) -> tuple[Indices, NDArray[np.int32]]:
    """Return equivalents in CCP4's asymmetric unit, (n, 3), and isym: odd for I(+), even for I(-)."""
    reduced, isym = map_to_asu(np.ascontiguousarray(hkl, dtype=np.int32), *asu_operators(space_group))
    return reduced, isym


def asu_operators(space_group: gemmi.SpaceGroup) -> tuple[Indices, int]:
    """Return the rotations (m, 3, 3) of a space group and the case of its asymmetric unit, as the kernels want them.

    Raises
    ------
    ConfigError
        If the setting has an asymmetric unit of its own.
    """
    operators = np.array([np.array(op.rot) // op.DEN for op in space_group.operations().sym_ops], dtype=np.int32)
    return operators, _asu_case(space_group.xhm())


def pack(hkl: Indices) -> NDArray[np.int64]:
    """Return one integer for each index (n, 3), increasing with h, then k, then l."""
    wide = np.asarray(hkl, dtype=np.int64) + KEY_OFFSET
    packed: NDArray[np.int64] = (wide[:, 0] << 42) | (wide[:, 1] << 21) | wide[:, 2]
    return packed


def unpack(keys: NDArray[np.int64]) -> Indices:
    """Return the indices (n, 3) of `pack`."""
    low = (1 << 21) - 1
    wide = np.stack([keys >> 42, (keys >> 21) & low, keys & low], axis=-1) - KEY_OFFSET
    return np.ascontiguousarray(wide, dtype=np.int32)


def inverse_d2(hkl: Indices, cell: Sequence[float]) -> NDArray[np.float64]:
    """Return 1/d² in 1/Å² of indices (n, 3) in a cell (Å, degrees)."""
    q = np.asarray(hkl, dtype=np.float64) @ b_matrix(cell).T
    squared: NDArray[np.float64] = np.einsum("ij,ij->i", q, q)
    return squared


def possible_reflections(cell: Sequence[float], space_group: gemmi.SpaceGroup, d_min: float, d_max: float) -> Indices:
    """Return the unique reflections (n, 3) between the limits (Å), without systematic absences."""
    unit_cell = gemmi.UnitCell(*(float(v) for v in cell))
    found: Indices = np.asarray(gemmi.make_miller_array(unit_cell, space_group, d_min, d_max), dtype=np.int32).reshape(-1, 3)
    return found


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 well-mixed bits of each value (the finaliser of SplitMix64, Steele, Lea & Flood 2014, OOPSLA)."""
    x = values + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def free_flags(
    hkl: Indices, space_group: gemmi.SpaceGroup, fraction: float, d: NDArray[np.float64] | None = None
) -> NDArray[np.int32]:
    """Return the flag 0 ... n - 1 of each reflection (CCP4's way: 0 is the free set), n the rounded inverse of ``fraction``.

    The flag is a hash of the index alone, reduced under the lattice's holohedry, so that it is the same in every run and for
    reflections that a twin law or an indexing ambiguity exchanges. With ``d`` (Å) given the hash is that of a shell of the
    thickness 0.2 % in 1/d³: whole thin shells are free.
    """
    n = max(2, round(1.0 / fraction))
    if d is None:
        holohedry = space_group  # of an unusual setting its own group: the table of holohedries is for the usual ones
        if space_group.is_reference_setting():
            holohedry = find_space_group(holohedral_group(space_group.crystal_system_str(), space_group.centring_type()))
        reduced, _ = to_asu(hkl, holohedry)
        key = pack(reduced)
    else:
        key = np.floor(3.0 * np.log(1.0 / np.asarray(d, dtype=np.float64)) / 0.002).astype(np.int64)
    flags: NDArray[np.int32] = (mix(key.astype(np.uint64)) % np.uint64(n)).astype(np.int32)
    return flags

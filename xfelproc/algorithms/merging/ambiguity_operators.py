"""Indexing ambiguity: the rotations of the lattice that the intensities do not have, as settings among which each lattice chooses.

A still shows little more than the lattice, so where the lattice has more rotations than the crystal each shot is indexed in one of
several settings at random. The lattice's rotations are found from its twofold axes (Le Page 1982, J. Appl. Cryst. 15, 255; by
gemmi), so those of cells that happen to be special are among them; one setting stands for each coset of the crystal's rotations
(Flack 1987, Acta Cryst. A43, 564).

Operators are matrices R in units of 1/24 that act on indices as row vectors, ``hkl' = hkl R / 24``. Intensities with the
rotations H are the same for R and R H, so that settings are the left cosets R H.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.cells import metric_tensor
from xfelproc.geometry.lattice_symmetry import space_group, symmetrized_cell
from xfelproc.kernels.ambiguity import canonical_keys

Matrices = NDArray[np.int64]
DEN = gemmi.Op.DEN


@dataclass(frozen=True, eq=False)
class Settings:
    """The settings of a lattice; the first one is the lattice as it is.

    ``names`` (as "k,h,-l") and ``matrices`` (k, 3, 3) in units of 1/24; ``crystal`` (m, 3, 3) are the rotations of the crystal,
    ``lattice`` (k m, 3, 3) those of the lattice.
    """

    names: tuple[str, ...]
    matrices: Matrices
    crystal: Matrices
    lattice: Matrices

    def __len__(self) -> int:
        return len(self.names)

    @property
    def common(self) -> Matrices:
        """The rotations that the crystal has in every setting: the largest normal subgroup of the lattice in the crystal's."""
        own = _texts(self.crystal)
        kept = [r for r in self.crystal if all(_text(_product(_product(g, r), _inverse(g))) in own for g in self.lattice)]
        return np.array(kept, dtype=np.int64)

    def find(self, matrix: Matrices) -> int:
        """Return the number of the setting that an operator of the lattice leads to."""
        own = _texts(self.crystal)
        return next(i for i, known in enumerate(self.matrices) if _text(_product(_inverse(known), matrix)) in own)

    def after(self, setting: int) -> NDArray[np.int64]:
        """Return, for each setting c, that of ``R_c R_setting``, (k,)."""
        return np.array([self.find(_product(known, self.matrices[setting])) for known in self.matrices])

    def relabelings(self) -> NDArray[np.int64]:
        """Return the renamings (n, k) of settings that no intensities can tell apart, the identity first.

        Data put into settings c are as consistent as in ``R_c R_n``, where R_n turns the crystal's rotations into themselves.
        """
        own = _texts(self.crystal)
        found = []
        for number, matrix in enumerate(self.matrices):
            turned = [_product(_product(_inverse(matrix), r), matrix) for r in self.crystal]
            if all(_text(r) in own for r in turned):
                found.append(self.after(number))
        return np.array(found, dtype=np.int64)

    def differences(self) -> list[NDArray[np.int64]]:
        """Return sets of alternatives to each setting c, one (k, n) for each double coset other than the crystal's own.

        Row c holds the settings of ``R_c r R_d`` with all rotations r of the crystal: what c may be mistaken for by d.
        """
        seen: set[int] = {0}
        found = []
        for number, matrix in enumerate(self.matrices):
            if number in seen:
                continue
            turned = [_product(r, matrix) for r in self.crystal]
            seen |= {self.find(r) for r in turned}
            rows = [sorted({self.find(_product(known, r)) for r in turned}) for known in self.matrices]
            found.append(np.array(rows, dtype=np.int64))
        return found

    def merged(self, numbers: Sequence[int]) -> Settings:
        """Return the settings that are left if the crystal also has the rotations of some of them."""
        group = _closed(np.concatenate([self.crystal, self.matrices[list(numbers)]]))
        return _cosets(group, self.lattice, self.matrices)

    def keys(self, hkl: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return a number (n,) for each index, the same for what the crystal's rotations and Friedel's law make equivalent."""
        return canonical_keys(np.ascontiguousarray(hkl, dtype=np.int32), self.crystal // DEN)

    def unique(self, hkl: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
        """Return the number (n,) of each index among those that differ under `common`, a table, and the keys of reflections.

        The table (n_numbers, k) holds the number of the unique reflection of the crystal that an index is in each setting: where
        it is among the keys, which are sorted.
        """
        keys = canonical_keys(np.ascontiguousarray(hkl, dtype=np.int32), self.common // DEN)
        _, first, number = np.unique(keys, return_index=True, return_inverse=True)
        some = np.asarray(hkl, dtype=np.int64)[first]
        moved = [self.keys(reindexed(some, matrix)) for matrix in self.matrices]
        every, table = np.unique(np.stack(moved, axis=1), return_inverse=True)
        return number.astype(np.int32), table.reshape(len(some), len(self)).astype(np.int32), every


def reindexed(hkl: NDArray[np.int64] | NDArray[np.int32], matrix: Matrices) -> NDArray[np.int32]:
    """Return indices (n, 3) in another setting.

    Raises
    ------
    ValueError
        If they are no indices there: the reflection is one that the lattice's centring does not have.
    """
    wide = np.asarray(hkl, dtype=np.int64) @ matrix
    moved, rest = np.divmod(wide, DEN)
    if np.any(rest):
        bad = np.asarray(hkl)[np.any(rest != 0, axis=1)][0]
        raise ValueError(f"index {tuple(bad.tolist())} is not one of the lattice that the operator is of")
    return np.ascontiguousarray(moved.astype(np.int32))


def find_settings(cell: Sequence[float], group: str, max_obliquity: float = 2.0) -> Settings:
    """Return the settings of a lattice; one alone where there is no ambiguity.

    Parameters
    ----------
    cell
        a, b, c (Å), α, β, γ (degrees), in the setting of the space group.
    group
        Symbol of the space group.
    max_obliquity
        Largest angle in degrees between a twofold axis of the lattice and the normal of its net.

    Raises
    ------
    ValueError
        If the space group is not known.
    """
    found = space_group(group)
    ideal = symmetrized_cell(tuple(float(v) for v in cell), group)
    crystal = np.unique(_rotations(found.operations().derive_symmorphic().sym_ops), axis=0)
    unit_cell = gemmi.UnitCell(*ideal)
    others = gemmi.find_twin_laws(unit_cell, found, max_obliquity, True)
    named = gemmi.find_twin_laws(unit_cell, found, max_obliquity, False)
    lattice = np.concatenate([crystal, _rotations(others)]) if others else crystal
    first = [DEN * np.eye(3, dtype=np.int64), *_rotations(named)]
    return _cosets(crystal, lattice, np.array(first))


def strain(cell: Sequence[float], matrix: Matrices) -> float:
    """Return the largest relative change of the length of a reciprocal vector by an operator: 0 where the lattice has it."""
    metric = np.linalg.inv(metric_tensor([float(v) for v in cell]))
    half = np.linalg.inv(np.linalg.cholesky(metric))
    r = matrix / DEN
    return float(np.max(np.abs(np.sqrt(np.linalg.eigvalsh(half @ r @ metric @ r.T @ half.T)) - 1.0)))


def _cosets(crystal: Matrices, lattice: Matrices, preferred: Matrices) -> Settings:
    """Return one operator for each coset, of ``preferred`` where there is one of it."""
    matrices: list[Matrices] = []
    seen: set[bytes] = set()
    for matrix in [*preferred, *lattice]:
        if _text(matrix) in seen:
            continue
        seen |= {_text(_product(matrix, r)) for r in crystal}
        matrices.append(matrix)
    names = tuple(_triplet(matrix) for matrix in matrices)
    return Settings(names, np.array(matrices, dtype=np.int64), crystal, lattice)


def _rotations(operators: Sequence[gemmi.Op]) -> Matrices:
    return np.array([op.rot for op in operators], dtype=np.int64).reshape(-1, 3, 3)


def _closed(matrices: Matrices) -> Matrices:
    """Return the group that matrices generate."""
    known = {_text(m): m for m in matrices}
    while True:
        products = [_product(a, b) for a in known.values() for b in known.values()]
        more = {_text(m): m for m in products}
        if more.keys() <= known.keys():
            return np.array([known[text] for text in sorted(known)], dtype=np.int64)
        known |= more


def _product(first: Matrices, second: Matrices) -> Matrices:
    product: Matrices = first @ second // DEN
    return product


def _inverse(matrix: Matrices) -> Matrices:
    inverse: Matrices = np.rint(np.linalg.inv(matrix / DEN) * DEN).astype(np.int64)
    return inverse


def _text(matrix: Matrices) -> bytes:
    return np.ascontiguousarray(matrix, dtype=np.int64).tobytes()


def _texts(matrices: Matrices) -> set[bytes]:
    return {_text(m) for m in matrices}


def _triplet(matrix: Matrices) -> str:
    operator = gemmi.Op()
    operator.rot = matrix.tolist()
    operator.tran = [0, 0, 0]
    return str(operator.as_hkl().triplet())

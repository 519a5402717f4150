"""The 44 lattice characters: which Bravais lattices a reduced cell is near to, and how near.

The table is that of International Tables for Crystallography A, section 9.2.5 (de Wolff). A form is (A, B, C, D, E, F) =
(a·a, b·b, c·c, b·c, a·c, a·b); each character is a linear condition on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xfelproc.geometry.cells import Floats
from xfelproc.geometry.lattice_symmetry import Cell, space_group, symmetrized_metric
from xfelproc.geometry.reduction import cell_of_metric, reduced_basis

_TABLE = """
1 I cF A,A,A,A/2,A/2,A/2 1-11,11-1,-111
2 I hR A,A,A,D,D,D 1-10,-101,-1-1-1
3 II cP A,A,A,0,0,0 100,010,001
5 II cI A,A,A,-A/3,-A/3,-A/3 101,110,011
4 II hR A,A,A,D,D,D 1-10,-101,-1-1-1
6 II tI A,A,A,D,D,-A-2D 011,101,110
7 II tI A,A,A,-A-2E,E,E 101,110,011
8 II oI A,A,A,D,E,-A-D-E -1-10,-10-1,0-1-1
9 I hR A,A,C,A/2,A/2,A/2 100,-110,-1-13
10 I mC A,A,C,D,D,F 110,1-10,00-1
11 II tP A,A,C,0,0,0 100,010,001
12 II hP A,A,C,0,0,-A/2 100,010,001
13 II oC A,A,C,0,0,F 110,-110,001
15 II tI A,A,C,-A/2,-A/2,0 100,010,112
16 II oF A,A,C,D,D,-A-2D -1-10,1-10,112
14 II mC A,A,C,D,D,F 110,-110,001
17 II mC A,A,C,D,E,-A-D-E 1-10,110,-10-1
18 I tI A,B,B,A/4,A/2,A/2 0-11,1-1-1,100
19 I oI A,B,B,D,A/2,A/2 -100,0-11,-111
20 I mC A,B,B,D,E,E 011,01-1,-100
21 II tP A,B,B,0,0,0 010,001,100
22 II hP A,B,B,-B/2,0,0 010,001,100
23 II oC A,B,B,D,0,0 011,0-11,100
24 II hR A,B,B,A/6-B/2,-A/3,-A/3 121,0-11,100
25 II mC A,B,B,D,E,E 011,0-11,100
26 I oF A,B,C,A/4,A/2,A/2 100,-120,-102
27 I mC A,B,C,D,A/2,A/2 -120,-100,0-11
28 I mC A,B,C,D,A/2,2D -100,-102,010
29 I mC A,B,C,D,2D,A/2 100,1-20,00-1
30 I mC A,B,C,B/2,E,2E 010,01-2,-100
31 I aP A,B,C,D,E,F 100,010,001
32 II oP A,B,C,0,0,0 100,010,001
40 II oC A,B,C,-B/2,0,0 0-10,012,-100
35 II mP A,B,C,D,0,0 0-10,-100,00-1
36 II oC A,B,C,0,-A/2,0 100,-10-2,010
33 II mP A,B,C,0,E,0 100,010,001
38 II oC A,B,C,0,0,-A/2 -100,120,00-1
34 II mP A,B,C,0,0,F -100,00-1,0-10
42 II oI A,B,C,-B/2,-A/2,0 -100,0-10,112
41 II mC A,B,C,-B/2,E,0 0-1-2,0-10,-100
37 II mC A,B,C,D,-A/2,0 102,100,010
39 II mC A,B,C,D,0,-A/2 -1-20,-100,00-1
43 II mC A,B,C,D,E,-A/2-B/2-D-E;D=-B/2-F/2 110,-1-1-2,-100
44 II aP A,B,C,D,E,F 100,010,001
"""

GROUPS = {
    "aP": "P 1",
    "mP": "P 1 2 1",
    "mC": "C 1 2 1",
    "oP": "P 2 2 2",
    "oC": "C 2 2 2",
    "oI": "I 2 2 2",
    "oF": "F 2 2 2",
    "tP": "P 4 2 2",
    "tI": "I 4 2 2",
    "hP": "P 6 2 2",
    "hR": "R 3 2:H",
    "cP": "P 4 3 2",
    "cI": "I 4 3 2",
    "cF": "F 4 3 2",
}
"""The rotation group of the holohedry of each Bravais lattice."""

HIGHEST_FIRST = ("cF", "cI", "cP", "hP", "hR", "tI", "tP", "oF", "oI", "oC", "oP", "mC", "mP", "aP")


@dataclass(frozen=True, eq=False)
class LatticeCharacter:
    """A row of the table: the projector on the forms that obey it, and the transformation to the conventional basis."""

    number: int
    bravais: str
    positive: bool
    projector: Floats
    transform: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class BravaisFit:
    """How a lattice fits a Bravais lattice.

    ``penalty`` (0-999) is 100 times the largest distortion that imposing the symmetry costs: of a length in percent or of an
    angle in degrees. ``transform`` takes the basis asked about to the conventional basis; ``cell`` is the symmetrised cell.
    """

    bravais: str
    character: int
    penalty: float
    transform: NDArray[np.int64]
    cell: Cell

    @property
    def space_group(self) -> str:
        """Rotation group of the holohedry."""
        return GROUPS[self.bravais]


def _linear(text: str) -> Floats:
    """Return the coefficients (6,) of an expression such as ``-A/2-2D`` on (A, B, C, D, E, F)."""
    row = np.zeros(6)
    for raw in text.replace("-", "+-").split("+"):
        term = raw.strip()
        if not term or term == "0":
            continue
        sign = -1.0 if term[0] == "-" else 1.0
        body, _, divisor = term.lstrip("-").partition("/")
        factor = float(body[:-1]) if len(body) > 1 else 1.0
        row["ABCDEF".index(body[-1])] += sign * factor / float(divisor or 1.0)
    return row


def _projector(conditions: str) -> Floats:
    """Return the orthogonal projector (6, 6) on the forms with (A, ..., F) equal to these expressions."""
    first, _, more = conditions.partition(";")
    equations = np.array([_linear(text) for text in first.split(",")]) - np.eye(6)
    if more:
        name, _, text = more.partition("=")
        extra = _linear(text)
        extra["ABCDEF".index(name)] -= 1.0
        equations = np.vstack([equations, extra])
    return np.asarray(np.eye(6) - np.linalg.pinv(equations) @ equations, dtype=np.float64)


def _matrix(text: str) -> NDArray[np.int64]:
    rows = []
    for part in text.split(","):
        digits = part.replace("-", " -")
        values: list[int] = []
        for token in digits.split():
            sign = -1 if token[0] == "-" else 1
            body = token.lstrip("-")
            values += [sign * int(body[0]), *[int(d) for d in body[1:]]]
        rows.append(values)
    return np.array(rows, dtype=np.int64)


@lru_cache(maxsize=1)
def lattice_characters() -> tuple[LatticeCharacter, ...]:
    """Return the 44 characters in the order of the table."""
    found = []
    for line in _TABLE.split("\n"):
        if line:
            number, kind, bravais, conditions, matrix = line.split()
            transform = _matrix(matrix)
            if round(float(np.linalg.det(transform))) < 0:
                transform = -transform
            found.append(LatticeCharacter(int(number), bravais, kind == "I", _projector(conditions), transform))
    return tuple(found)


@lru_cache(maxsize=1)
def _candidate_transforms() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return all (n, 3, 3) matrices of determinant 1 with entries -1, 0, 1; the rows they are made of; their rows' numbers."""
    rows = np.array(list(product((-1, 0, 1), repeat=3)), dtype=np.int64)
    rows = rows[np.any(rows != 0, axis=1)]
    triples = np.array(list(permutations(range(len(rows)), 3)))
    matrices = rows[triples]
    determinant = np.rint(np.linalg.det(matrices)).astype(np.int64)
    chosen = determinant == 1
    return np.ascontiguousarray(matrices[chosen]), rows, np.ascontiguousarray(triples[chosen])


_SIX = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


@lru_cache(maxsize=1)
def _projectors() -> Floats:
    return np.array([character.projector for character in lattice_characters()])


def nearly_reduced(g: Floats, slack: float) -> NDArray[np.int64]:
    """Return transforms (n, 3, 3) to the bases that are as short as the reduced one, to a relative ``slack`` of each length.

    Errors of measurement decide which of them is the reduced one; a symmetry may show in another. The signs are those of a
    reduced form (products all positive, or none), to the same slack.
    """
    transforms, rows, numbers = _candidate_transforms()
    norm = np.sqrt(np.sum(rows @ g * rows, axis=1))
    short = norm[:, None] <= np.sqrt(np.diag(g)) * (1.0 + slack)
    chosen = short[numbers[:, 0], 0] & short[numbers[:, 1], 1] & short[numbers[:, 2], 2]
    transforms = transforms[chosen].astype(np.float64)
    forms = transforms @ g @ transforms.transpose(0, 2, 1)
    scale = np.sqrt(np.einsum("nii->ni", forms))
    cosines = np.stack(
        [
            forms[:, 1, 2] / (scale[:, 1] * scale[:, 2]),
            forms[:, 0, 2] / (scale[:, 0] * scale[:, 2]),
            forms[:, 0, 1] / (scale[:, 0] * scale[:, 1]),
        ],
        axis=1,
    )
    kept = np.all(cosines >= -2 * slack, axis=1) | np.all(cosines <= 2 * slack, axis=1)
    return np.asarray(transforms[kept], dtype=np.int64)


class LatticeFits:
    """How the lattice of a primitive basis (rows a, b, c) fits the Bravais lattices; each is worked out when asked for.

    ``slack`` is the relative error of lengths within which other bases than the Niggli-reduced one are tried.
    """

    def __init__(self, basis: ArrayLike, slack: float = 0.03) -> None:
        reduced, self._t0 = reduced_basis(basis)
        self._g = reduced @ reduced.T
        self._bases = nearly_reduced(self._g, slack)
        forms = self._bases @ self._g @ self._bases.transpose(0, 2, 1)
        scale = np.sqrt(np.einsum("nii->ni", forms))
        sixes = np.stack([forms[:, i, j] for i, j in _SIX], axis=1)
        size = np.stack([scale[:, i] * scale[:, j] for i, j in _SIX], axis=1)
        projectors = _projectors()
        self._off = np.max(np.abs(sixes - np.matmul(sixes, projectors)) / size, axis=2)

    def character(self, index: int, max_penalty: float) -> BravaisFit | None:
        """Return the fit to a row of the table (from 0), None if its penalty is above ``max_penalty``."""
        character = lattice_characters()[index]
        if character.bravais == "aP":
            if character.positive != bool(np.all(self._g[np.triu_indices(3, 1)] > 0)):
                return None
            return BravaisFit("aP", character.number, 0.0, self._t0, cell_of_metric(self._g))
        off = self._off[index]
        best: BravaisFit | None = None
        for k in np.argsort(off, kind="stable")[:4]:
            if off[k] > 0.06 * max_penalty / 100.0:
                break
            transform = _standard(character.transform @ self._bases[k], self._g, character.bravais)
            penalty, cell = distortion(transform @ self._g @ transform.T, GROUPS[character.bravais])
            if penalty <= max_penalty and (best is None or penalty < best.penalty - 1e-9):
                best = BravaisFit(character.bravais, character.number, penalty, transform @ self._t0, cell)
        return best

    def bravais(self, name: str, max_penalty: float) -> BravaisFit | None:
        """Return the best fit to a Bravais lattice such as ``tP``, None if its penalty is above ``max_penalty``."""
        indices = [k for k, character in enumerate(lattice_characters()) if character.bravais == name]
        fits = [fit for k in indices if (fit := self.character(k, max_penalty)) is not None]
        return min(fits, key=lambda fit: fit.penalty, default=None)

    def highest(self, max_penalty: float) -> BravaisFit:
        """Return the fit of highest symmetry with a penalty of at most ``max_penalty``."""
        for name in HIGHEST_FIRST:
            fit = self.bravais(name, max_penalty)
            if fit is not None:
                return fit
        raise AssertionError("every lattice is triclinic")


def bravais_fits(basis: ArrayLike, max_penalty: float = 999.0, slack: float = 0.03) -> tuple[BravaisFit, ...]:
    """Return how the lattice of a primitive basis fits each of the 44 characters, the smallest penalty first.

    Characters whose penalty is above ``max_penalty`` are left out.
    """
    fits = LatticeFits(basis, slack)
    found = [fit for k in range(len(lattice_characters())) if (fit := fits.character(k, max_penalty)) is not None]
    return tuple(sorted(found, key=lambda fit: fit.penalty))


def _standard(transform: NDArray[np.int64], g: Floats, bravais: str) -> NDArray[np.int64]:
    """Return the conventional basis with β not acute (monoclinic), a ≤ b ≤ c (orthorhombic; a ≤ b where C-centred)."""
    if bravais[0] == "m":
        beta = transform[0] @ g @ transform[2]
        return transform * np.array([[-1], [-1], [1]]) if beta > 0 else transform
    if bravais[0] != "o":
        return transform
    length = np.einsum("ij,jk,ik->i", transform, g, transform)
    if bravais == "oC":
        length[2] = np.inf
    ordered = transform[np.argsort(length, kind="stable")]
    return ordered if round(float(np.linalg.det(ordered))) > 0 else ordered * np.array([[1], [1], [-1]])


def distortion(metric: Floats, group: str) -> tuple[float, Cell]:
    """Return the penalty (0-999) of imposing a space group on a metric, and the cell that results.

    The penalty is 100 times the largest change, of a length in percent or an angle in degrees.
    """
    before = np.array(cell_of_metric(metric))
    after = cell_of_metric(symmetrized_metric(metric, group))
    change = np.abs(before - after)
    change[:3] *= 100.0 / before[:3]
    return min(999.0, 100.0 * float(np.max(change))), after


def bravais_of(group: str) -> str:
    """Return the Bravais type (such as ``tP``) of a space group's symbol."""
    found = space_group(group)
    system = found.crystal_system_str()
    centring = "R" if found.ext == "R" else found.centring_type()
    if system in ("trigonal", "hexagonal"):
        return "hR" if centring == "R" else "hP"
    letter = {"triclinic": "a", "monoclinic": "m", "orthorhombic": "o", "tetragonal": "t", "cubic": "c"}[system]
    if centring != "P" and system == "monoclinic":
        return "mC"
    return letter + ("C" if centring in "AB" else centring)

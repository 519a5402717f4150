"""CrystFEL unit cell files (.cell)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gemmi

from xfelproc.errors import DataError
from xfelproc.io.atomic import write_atomic
from xfelproc.models.frames import CellTarget

Cell = tuple[float, float, float, float, float, float]

_HEADER = "CrystFEL unit cell file version"
_ROTATIONS = {
    "triclinic": "1",
    "orthorhombic": "2 2 2",
    "tetragonal": "4 2 2",
    "hexagonal": "6 2 2",
    "cubic": "4 3 2",
}
_MONOCLINIC = {"a": "2 1 1", "b": "1 2 1", "c": "1 1 2"}
_LENGTHS = {"A": 1.0, "nm": 10.0, "m": 1e10}
_ANGLES = {"deg": 1.0, "rad": 57.29577951308232}


@dataclass(frozen=True)
class CellFile:
    """A lattice: type, centring (P A B C I F R H), unique axis (a, b, c or ""), and the cell in Å and degrees, if given."""

    lattice_type: str
    centering: str
    unique_axis: str = ""
    cell: Cell | None = None

    def space_group(self) -> str:
        """Return the symbol of the lattice's rotations alone ("P 4 2 2"): the file knows no more."""
        if self.centering == "H":
            return "R 3 2:H"
        if self.lattice_type == "rhombohedral" or self.centering == "R":
            return "R 3 2:R"
        rotations = _MONOCLINIC[self.unique_axis or "b"] if self.lattice_type == "monoclinic" else _ROTATIONS[self.lattice_type]
        symbol = f"{self.centering} {rotations}"
        return symbol if gemmi.find_spacegroup_by_name(symbol) is not None else f"{self.centering} 1"

    def target(self) -> CellTarget:
        """Return what indexing needs to know."""
        return CellTarget(self.cell, self.space_group())


def read_cell_file(path: str | Path) -> CellFile:
    """Read a CrystFEL unit cell file.

    Raises
    ------
    DataError
        If it is missing or malformed (the message names the line).
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"cannot read the cell file ({error.strerror}): check the path", path) from error
    if not lines or not lines[0].startswith(_HEADER):
        raise DataError(f"not a CrystFEL cell file: its first line is not '{_HEADER} 1.0'", path)
    words: dict[str, str] = {"lattice_type": "triclinic", "centering": "P", "unique_axis": ""}
    numbers: dict[str, float] = {}
    for number, line in enumerate(lines[1:], 2):
        content = line.split(";", 1)[0].strip()
        if not content:
            continue
        key, separator, value = (part.strip() for part in content.partition("="))
        if not separator or key not in {*words, "a", "b", "c", "al", "be", "ga"}:
            raise DataError(f"line {number} is not understood: {content!r}", path)
        if key in words:
            words[key] = value
        else:
            numbers[key] = _value(value, _LENGTHS if key in "abc" else _ANGLES, number, path)
    return _checked(words, numbers, path)


def _value(text: str, units: dict[str, float], number: int, path: object) -> float:
    parts = text.split()
    try:
        value = float(parts[0]) * units[parts[1] if len(parts) > 1 else next(iter(units))]
    except (ValueError, IndexError, KeyError):
        raise DataError(f"line {number}: {text!r} is not a number with one of the units {', '.join(units)}", path) from None
    if not 0 < value < 1e6:
        raise DataError(f"line {number}: {text!r} is not possible", path)
    return value


def _checked(words: dict[str, str], numbers: dict[str, float], path: object) -> CellFile:
    lattice, centering, unique = words["lattice_type"], words["centering"], words["unique_axis"]
    if (
        lattice not in {*_ROTATIONS, "monoclinic", "rhombohedral"}
        or centering not in tuple("PABCIFRH")
        or unique not in ("", "a", "b", "c", "*")
    ):
        raise DataError(f"lattice_type {lattice!r}, centering {centering!r}, unique_axis {unique!r} are not a lattice", path)
    cell: Cell | None = None
    if numbers:
        missing = [key for key in ("a", "b", "c", "al", "be", "ga") if key not in numbers]
        if missing:
            raise DataError(f"the cell has no {', '.join(missing)}: give all six, or none", path)
        cell = (numbers["a"], numbers["b"], numbers["c"], numbers["al"], numbers["be"], numbers["ga"])
    return CellFile(lattice, centering, unique.replace("*", ""), cell)


def write_cell_file(cell: CellFile, path: str | Path) -> None:
    """Write a CrystFEL unit cell file; it appears whole."""
    lines = [f"{_HEADER} 1.0", "", f"lattice_type = {cell.lattice_type}", f"centering = {cell.centering}"]
    lines += [f"unique_axis = {cell.unique_axis}"] if cell.unique_axis else []
    if cell.cell is not None:
        lines += [""] + [f"{key} = {value!r} A" for key, value in zip(("a", "b", "c"), cell.cell[:3], strict=True)]
        lines += [f"{key} = {value!r} deg" for key, value in zip(("al", "be", "ga"), cell.cell[3:], strict=True)]
    write_atomic(Path(path), ("\n".join(lines) + "\n").encode())

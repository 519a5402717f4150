from __future__ import annotations

from pathlib import Path

import gemmi
import pytest

from xfelproc.errors import DataError
from xfelproc.io.exchange.cell_file import CellFile, read_cell_file, write_cell_file

HEAD = "CrystFEL unit cell file version 1.0\n"


def test_kept(tmp_path: Path) -> None:
    cell = CellFile("tetragonal", "P", "c", (79.1, 79.1, 38.0, 90.0, 90.0, 90.0))
    write_cell_file(cell, tmp_path / "a.cell")
    assert read_cell_file(tmp_path / "a.cell") == cell
    assert cell.target().space_group == "P 4 2 2"


def test_units_and_comments(tmp_path: Path) -> None:
    (tmp_path / "a.cell").write_text(HEAD + "; x\na = 7.9 nm ; y\nb=80 A\nc = 81\nal = 90\nbe = 1.6 rad\nga = 90 deg\n")
    cell = read_cell_file(tmp_path / "a.cell")
    assert cell.cell == pytest.approx((79, 80, 81, 90, 91.673247, 90))
    assert cell.lattice_type == "triclinic"


@pytest.mark.parametrize("lattice", ["triclinic", "monoclinic", "orthorhombic", "tetragonal", "hexagonal", "rhombohedral", "cubic"])
@pytest.mark.parametrize("centering", ["P", "I", "C", "F", "R", "H"])
def test_every_lattice_has_a_known_space_group(lattice: str, centering: str) -> None:
    if (lattice, centering) in {
        ("hexagonal", "P"),
        ("rhombohedral", "R"),
        ("cubic", "F"),
        ("orthorhombic", "C"),
        ("hexagonal", "H"),
    }:
        assert gemmi.find_spacegroup_by_name(CellFile(lattice, centering, "b").space_group()) is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "first line"),
        (HEAD + "a = 10 A\n", "no b, c"),
        (HEAD + "a = ten A\n", "line 2"),
        (HEAD + "a = -3 A\n", "not possible"),
        (HEAD + "q = 10 A\n", "line 2"),
        (HEAD + "lattice_type = round\n", "not a lattice"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.cell").write_text(text)
    with pytest.raises(DataError, match=words):
        read_cell_file(tmp_path / "a.cell")


@pytest.mark.peer
def test_examples(shared_data: Path) -> None:
    lysozyme = read_cell_file(shared_data / "stills_nanobragg" / "lyso.cell")
    assert lysozyme.cell == (79.1, 79.1, 38.0, 90, 90, 90)
    hexagonal = read_cell_file(shared_data / "geoms" / "crystfel_cell-example.cell")
    assert hexagonal.space_group() == "R 3 2:H"

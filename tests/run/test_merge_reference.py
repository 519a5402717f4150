"""Intensities that lattices are scaled to: read, calculated, reindexed, or not used with a word."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np
import pytest

from xfelproc.algorithms.merging.lattice_block import UniqueReflections
from xfelproc.algorithms.merging.reduction import pack, possible_reflections
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.errors import DataError
from xfelproc.io.exchange.model_intensities import has_coordinates, model_intensities
from xfelproc.run.merge_reference import given_reference

CELL = (31.0, 42.0, 53.0, 90.0, 90.0, 90.0)
GROUP = "P 21 21 21"


def intensity(hkl: np.ndarray) -> np.ndarray:
    return 10.0 + np.abs(hkl) @ np.array([100.0, 10.0, 1.0])


def written(path: Path, order: tuple[int, int, int] = (0, 1, 2), cell: tuple[float, ...] = CELL, space_group: str = GROUP) -> Path:
    """Write intensities to an MTZ whose axes are those of CELL in another order."""
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup, mtz.cell = gemmi.SpaceGroup(space_group), gemmi.UnitCell(*[cell[i] for i in order], 90.0, 90.0, 90.0)
    mtz.add_dataset("reference")
    mtz.add_column("IMEAN", "J")
    hkl = possible_reflections(CELL, gemmi.SpaceGroup(GROUP), 4.0, 50.0)
    mtz.set_data(np.column_stack([hkl[:, list(order)], intensity(hkl)]).astype(np.float32))
    mtz.write_to_file(str(path))
    return path


def unique() -> UniqueReflections:
    group = gemmi.SpaceGroup(GROUP)
    return UniqueReflections.of(np.sort(pack(possible_reflections(CELL, group, 3.5, 50.0))), CELL, group)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_every_setting_is_brought_to_that_of_the_lattices(tmp_path: Path, order: tuple[int, int, int]) -> None:
    found = given_reference(Merge(reference=str(written(tmp_path / "r.mtz", order))), CELL, GROUP)
    reflections = unique()
    values = found.intensities(reflections, GROUP)
    inside = reflections.inverse_d2 < 4.0**-2
    np.testing.assert_allclose(values[inside], intensity(reflections.hkl[inside]), rtol=1e-6)
    assert np.all(np.isnan(values[reflections.inverse_d2 > 1.001 * 4.0**-2]))
    assert bool(found.words) == (order != (0, 1, 2))
    assert not found.words or "is in another setting" in found.words[0]


def test_another_crystal_form_is_not_used_with_a_word(tmp_path: Path) -> None:
    other = given_reference(Merge(reference=str(written(tmp_path / "a.mtz", cell=(35.0, 42.0, 53.0)))), CELL, GROUP)
    assert "its cell is 35.00 42.00 53.00" in other.words[0]
    assert "merged without it" in other.words[0]
    assert len(other.intensities(unique(), GROUP)) == 0
    lower = given_reference(Merge(reference=str(written(tmp_path / "b.mtz", space_group="P 1 1 21"))), CELL, GROUP)
    assert "another crystal form" in lower.words[0]
    assert given_reference(Merge(), CELL, GROUP).data is None


def test_structure_factors_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    structure, rng = gemmi.Structure(), np.random.default_rng(0)
    structure.cell, structure.spacegroup_hm = gemmi.UnitCell(*CELL), GROUP
    model, chain = gemmi.Model(1), gemmi.Chain("A")
    for number in range(300):
        residue, atom = gemmi.Residue(), gemmi.Atom()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(str(number + 1))
        atom.name, atom.element, atom.b_iso = "CA", gemmi.Element("C"), 20.0
        atom.pos = gemmi.Position(*(rng.random(3) * CELL[:3] * np.array([0.5, 0.5, 0.5])))
        residue.add_atom(atom)
        chain.add_residue(residue)
    model.add_chain(chain)
    structure.add_model(model)
    path = tmp_path / "model.pdb"
    structure.write_pdb(str(path))
    structure.make_mmcif_document().write_file(str(tmp_path / "model.cif"))
    assert has_coordinates(path)
    assert has_coordinates(tmp_path / "model.cif")
    assert not has_coordinates(written(tmp_path / "r.mtz"))
    wet = model_intensities(path, 3.0)
    monkeypatch.setattr("xfelproc.io.exchange.model_intensities.K_SOLVENT", 0.0)
    dry = model_intensities(path, 3.0)
    structure = gemmi.read_structure(str(path))
    structure.setup_cell_images()
    calculator = gemmi.StructureFactorCalculatorX(structure.cell)
    direct = [abs(calculator.calculate_sf_from_model(structure[0], h)) for h in dry.hkl[::20].tolist()]
    np.testing.assert_allclose(np.sqrt(dry.intensity[::20]), direct, rtol=0.02, atol=0.02 * np.mean(direct))
    # solvent weakens what is at low resolution
    low = wet.inverse_d2 < 12.0**-2
    assert wet.intensity[low].sum() < 0.8 * dry.intensity[low].sum()
    given = given_reference(Merge(reference=str(path), d_min=3.0), CELL, GROUP)
    assert np.all(np.isfinite(given.intensities(unique(), GROUP)))


def test_what_is_no_crystal_is_said(tmp_path: Path) -> None:
    path = tmp_path / "empty.pdb"
    path.write_text("REMARK nothing\n", encoding="utf-8")
    with pytest.raises(DataError, match="no atoms, no cell or no space group"):
        model_intensities(path, 3.0)

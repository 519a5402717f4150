"""Files that merging leaves, of simulated merged intensities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pytest

from tests.algorithms.downstream.wilson_data import Simulated, simulated
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.errors import DataError
from xfelproc.io.exchange.free_flags import read_free_flags
from xfelproc.io.exchange.merged_file import read_merged
from xfelproc.io.exchange.mtz import MtzHeader, half_mtz, merged_mtz
from xfelproc.run.downstream import Finished, finish, table_of, write_table_one

CELL = (60.0, 60.0, 70.0, 90.0, 90.0, 120.0)
HEADER = MtzHeader(CELL, "P 3", 1.0)


@pytest.fixture(scope="module")
def data() -> Simulated:
    return simulated(CELL, "P 3", d_min=4.0)


def finished(data: Simulated, folder: Path, rows: Any = slice(None), **settings: Any) -> tuple[Finished, gemmi.Mtz]:
    found = finish(data.merged.select(rows), HEADER, Merge(**settings), folder)
    return found, gemmi.read_mtz_file(str(folder / "merged.mtz"))


def read(content: bytes, folder: Path) -> gemmi.Mtz:
    (folder / "read.mtz").write_bytes(content)
    return gemmi.read_mtz_file(str(folder / "read.mtz"))


def flags(mtz: gemmi.Mtz) -> dict[tuple[int, ...], int]:
    hkl = mtz.make_miller_array().tolist()
    return {tuple(h): int(f) for h, f in zip(hkl, np.array(mtz.column_with_label("FreeR_flag")), strict=True)}


def test_mtz_has_intensities_amplitudes_and_differences(data: Simulated, tmp_path: Path) -> None:
    found, mtz = finished(data, tmp_path)
    assert mtz.column_labels()[3:6] == ["FreeR_flag", "IMEAN", "SIGIMEAN"]
    types = {column.label: column.type for column in mtz.columns}
    assert [types[label] for label in ("F", "SIGF", "DANO", "SIGDANO", "F(+)", "SIGF(+)", "F(-)", "SIGF(-)")] == list("FQDQGLGL")
    amplitude, intensity = (np.array(mtz.column_with_label(label)) for label in ("F", "IMEAN"))
    strong = intensity > 20 * np.array(mtz.column_with_label("SIGIMEAN"))
    np.testing.assert_allclose(amplitude[strong] ** 2, intensity[strong], rtol=0.01)
    plus, minus, difference = (np.array(mtz.column_with_label(label)) for label in ("F(+)", "F(-)", "DANO"))
    both = np.isfinite(difference)
    assert np.count_nonzero(both) > 1000
    np.testing.assert_allclose(difference[both], (plus - minus)[both], rtol=1e-3, atol=1e-3 * amplitude.max())
    assert found.analysis["wilson"]["b_factor"] == pytest.approx(25.0, abs=5 * found.analysis["wilson"]["b_sigma"])
    assert found.warnings == ()
    kept = read_merged(tmp_path / "merged.h5")
    np.testing.assert_allclose(kept.merged["intensity"], data.merged["intensity"])


def test_missing_reflections_are_listed_on_request(data: Simulated, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).random(len(data.merged)) < 0.7
    rows[[0, -1]] = True
    rows |= data.merged["d"] < 4.01
    few = finished(data, tmp_path, rows)[1]
    whole = finished(data, tmp_path, rows, list_missing=True)[1]
    assert few.nreflections == np.count_nonzero(rows)
    assert whole.nreflections == pytest.approx(len(data.merged), abs=2)
    hkl = [tuple(h) for h in whole.make_miller_array().tolist()]
    assert hkl == sorted(hkl)
    assert np.count_nonzero(np.isfinite(np.array(whole.column_with_label("IMEAN")))) == few.nreflections
    assert np.count_nonzero(np.isfinite(np.array(whole.column_with_label("F")))) <= few.nreflections
    known = flags(whole)
    assert all(known[h] == f for h, f in flags(few).items())


def test_flags_come_from_a_file_and_are_the_same_in_every_group(data: Simulated, tmp_path: Path) -> None:
    old = tmp_path / "old.mtz"
    rng = np.random.default_rng(3)
    low = data.merged.select(data.merged["d"] > 5.0)
    low = low.replace(free=rng.integers(0, 10, len(low)))
    old.write_bytes(merged_mtz(low, HEADER))
    first, one = finished(data, tmp_path, slice(0, None, 2), free_from=str(old))
    _, two = finished(data, tmp_path, slice(0, None, 3), free_from=str(old))
    given = {tuple(h): f for h, f in zip(low["hkl"].tolist(), low["free"].tolist(), strict=True)}
    assert all(given.get(h, f) == f for h, f in flags(one).items())
    assert all(flags(two).get(h, f) == f for h, f in flags(one).items())
    assert set(flags(one).values()) == set(range(10))
    assert first.analysis["free"]["n_known"] == sum(h in given for h in flags(one))


def test_flags_of_mmcif_and_of_phenix_are_read(data: Simulated, tmp_path: Path) -> None:
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = gemmi.SpaceGroup("P 3")
    mtz.add_dataset("x")
    mtz.set_cell_for_all(gemmi.UnitCell(*CELL))
    mtz.add_column("R-free-flags", "I")
    test = np.random.default_rng(1).random(len(data.merged)) < 0.1
    mtz.set_data(np.column_stack([data.merged["hkl"], test]).astype(np.float32))
    mtz.write_to_file(str(tmp_path / "phenix.mtz"))
    found, made = finished(data, tmp_path, free_from=str(tmp_path / "phenix.mtz"))
    values = np.array(list(flags(made).values()))
    np.testing.assert_array_equal(values == 0, test)
    assert found.analysis["free"]["n_test"] == np.count_nonzero(test)
    cif = gemmi.MtzToCif()
    cif.spec_lines = ["H H index_h", "K H index_k", "L H index_l", "FreeR_flag I pdbx_r_free_flag", "IMEAN J intensity_meas"]
    (tmp_path / "made.cif").write_text(cif.write_cif_to_string(made))
    column = read_free_flags(tmp_path / "made.cif")
    np.testing.assert_array_equal(column.values, values)


def test_files_without_flags_are_refused_with_words(data: Simulated, tmp_path: Path) -> None:
    halves = tmp_path / "x.mtz"
    halves.write_bytes(half_mtz(data.merged, 1, HEADER))
    mtz = gemmi.read_mtz_file(str(halves))
    mtz.remove_column(mtz.column_labels().index("FreeR_flag"))
    mtz.write_to_file(str(halves))
    with pytest.raises(DataError, match=r"x\.mtz.*no free-R flags"):
        finished(data, tmp_path, free_from=str(halves))
    with pytest.raises(DataError, match="no such file"):
        finished(data, tmp_path, free_from=str(tmp_path / "none.mtz"))
    (tmp_path / "bad.mtz").write_bytes(b"MTZ nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        finished(data, tmp_path, free_from=str(tmp_path / "bad.mtz"))


def test_half_sets_have_their_own_file(data: Simulated, tmp_path: Path) -> None:
    merged = data.merged.replace(half2=np.where(np.arange(len(data.merged)) % 3 == 0, np.nan, data.merged["half2"]))
    one, two = (read(half_mtz(merged, half, HEADER), tmp_path) for half in (1, 2))
    assert one.nreflections == len(merged)
    assert two.nreflections == np.count_nonzero(np.isfinite(merged["half2"]))
    np.testing.assert_allclose(np.array(one.column_with_label("IMEAN")), merged["half1"], rtol=1e-6)
    assert not np.isnan(np.array(two.column_with_label("SIGIMEAN"))).any()
    unknown = read(half_mtz(merged.replace(sigma_half1=np.zeros(len(merged))), 1, HEADER), tmp_path)
    assert np.isnan(np.array(unknown.column_with_label("SIGIMEAN"))).all()


def test_a_few_reflections_are_written_without_amplitudes(data: Simulated, tmp_path: Path) -> None:
    found, mtz = finished(data, tmp_path, slice(0, 12))
    assert mtz.nreflections == 12
    assert np.isnan(np.array(mtz.column_with_label("F"))).all()
    assert "too few" in found.warnings[0]
    assert found.analysis["wilson"] is None


def test_table_one_says_the_figures(data: Simulated, tmp_path: Path) -> None:
    found = finished(data, tmp_path)[0]
    shell = {"d_max": 30.0, "d_min": 4.0, "n_unique": 2376, "n_observations": 23760, "completeness": 0.99, "multiplicity": 10.0}
    shell |= {"i_over_sigma": 12.0, "cc_half": 0.998, "cc_star": 0.9995, "r_split": 0.05, "r_meas": -1.0, "r_pim": float("nan")}
    empty = {**shell, "n_unique": 0}
    record: dict[str, Any] = {
        "space_group": "P 3",
        "cell": list(CELL),
        "n_lattices_used": 200,
        "overall": shell,
        "shells": [shell, {**shell, "d_max": 4.5}, empty],
        "warnings": [],
    }
    record = found.added_to(record)
    write_table_one(record, [], tmp_path)
    text = (tmp_path / "table1.txt").read_text()
    rows = {row["name"]: (row["overall"], row["outermost"]) for row in record["table_one"]}
    assert rows["Unique reflections"] == ("2,376", "2,376")
    assert rows["R_split (%)"] == ("5.00", "5.00")
    assert rows["Resolution (Å)"] == ("30.00-4.00", "4.50-4.00")
    assert rows["R_meas"] == ("-", "-")
    assert rows["Wilson B (Å²)"][0].startswith(f"{found.analysis['wilson']['b_factor']:.1f} ±")
    assert "Wilson B" in text
    assert table_of(record).text() == text


def test_composition_is_that_of_the_wilson_plot(data: Simulated, tmp_path: Path) -> None:
    protein, nucleic = (
        finished(data, tmp_path, composition=name)[0].analysis["wilson"]["b_factor"] for name in ("protein", "nucleic_acid")
    )
    assert protein != nucleic
    assert protein == pytest.approx(nucleic, abs=5.0)


def test_pseudo_merohedral_mates_share_their_flag_on_request(tmp_path: Path) -> None:
    cell, header = (60.0, 50.0, 60.0, 90.0, 108.0, 90.0), MtzHeader((60.0, 50.0, 60.0, 90.0, 108.0, 90.0), "P 1 21 1", 1.0)
    merged = simulated(cell, "P 1 21 1", d_min=5.0).merged
    for wanted in (True, False):
        finish(merged, header, Merge(free_twin_laws=wanted), tmp_path)
        found = flags(gemmi.read_mtz_file(str(tmp_path / "merged.mtz")))
        # -l,-k,-h and the twofold along b: (h, k, l) and (l, k, h) share a flag
        same = [found[h, k, ell] == found[ell, k, h] for h, k, ell in found if (ell, k, h) in found and h != ell]
        assert len(same) > 100
        assert all(same) == wanted

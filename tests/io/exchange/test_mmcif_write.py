from __future__ import annotations

import gemmi
import numpy as np
import pytest

from xfelproc.errors import DataError
from xfelproc.io.exchange.merged_file import MergedData, merged_bytes, read_merged
from xfelproc.io.exchange.mmcif_write import Deposition, mmcif_pieces
from xfelproc.models.tables import AmplitudeTable, MergedTable

CELL = (79.1, 79.1, 38.0, 90.0, 90.0, 90.0)
ROW = {
    "d_max": 30.0,
    "d_min": 2.0,
    "n_possible": 6,
    "n_unique": 5,
    "n_observations": 50,
    "completeness": 0.8333,
    "multiplicity": 10.0,
    "i_over_sigma": 7.5,
    "cc_half": 0.99,
    "cc_star": 0.9975,
    "r_split": 0.06,
    "r_merge": 0.1,
    "r_meas": -3.0,
    "r_pim": float("nan"),
}


def data() -> MergedData:
    n, rng = 6, np.random.default_rng(1)
    values = {name: rng.normal(100.0, 20.0, n) for name in ("intensity", "intensity_plus", "intensity_minus")}
    sigmas = {name: rng.uniform(1.0, 3.0, n) for name in ("sigma", "sigma_plus", "sigma_minus")}
    for column in (*values.values(), *sigmas.values()):
        column[5] = np.nan
    values["intensity_minus"][2], sigmas["sigma_minus"][2] = np.nan, np.inf
    hkl = np.array([[1, 0, 1], [2, 1, 0], [4, 0, 0], [3, 2, 1], [5, 4, 7], [6, 1, 2]])
    merged = MergedTable(None, hkl=hkl, free=[3, 0, 1, 19, 0, 0], multiplicity=[10] * 5 + [0], **values, **sigmas)
    roots = {
        "amplitude": np.sqrt(values["intensity"]),
        "sigma": np.full(n, 0.5),
        "amplitude_plus": np.sqrt(values["intensity_plus"]),
        "sigma_plus": np.full(n, 0.5),
    }
    nothing = dict.fromkeys(("amplitude_minus", "sigma_minus", "anomalous", "sigma_anomalous"), np.full(n, np.nan))
    return MergedData(merged, AmplitudeTable(None, **roots, **nothing), CELL, "P 43 21 2", 1.3051, ("a note", "another"))


def text() -> str:
    said = Deposition(ROW, [ROW, ROW | {"n_unique": 0}], "0.1.0", {"frames_total": 60, "lattices_merged": 48}, 25.25)
    return "".join(mmcif_pieces(data(), said))


def test_gemmi_reads_what_was_written() -> None:
    document = gemmi.cif.read_string(text())
    (block,) = gemmi.as_refln_blocks(document)
    assert block.spacegroup.xhm() == "P 43 21 2"
    assert block.cell.approx(gemmi.UnitCell(*CELL), 1e-4)
    assert block.wavelength == pytest.approx(1.3051)
    found, merged = block, data().merged
    np.testing.assert_array_equal(found.make_miller_array(), merged["hkl"])
    np.testing.assert_allclose(found.make_float_array("intensity_meas"), merged["intensity"], rtol=1e-5)
    known = np.where(np.isfinite(merged["sigma_minus"]), merged["sigma_minus"], np.nan)
    np.testing.assert_allclose(found.make_float_array("pdbx_I_minus_sigma"), known, rtol=1e-5)
    np.testing.assert_allclose(found.make_float_array("F_meas_au"), np.sqrt(merged["intensity"]), rtol=1e-5)
    assert list(block.block.find_values("_refln.status")) == ["o", "f", "o", "o", "f", "x"]
    assert "pdbx_F_minus" not in block.column_labels()


def test_mtz_made_of_it_has_the_columns_of_ours() -> None:
    (block,) = gemmi.as_refln_blocks(gemmi.cif.read_string(text()))
    mtz = gemmi.CifToMtz().convert_block_to_mtz(block)
    labels = mtz.column_labels()
    assert {"FreeR_flag", "I(+)", "SIGI(+)", "I(-)", "SIGI(-)", "F(+)", "SIGF(+)"} <= set(labels)
    intensities = gemmi.Intensities()
    intensities.import_mtz(mtz, gemmi.DataType.Mean)
    assert len(intensities.value_array) == 5


def test_statistics_and_counts_are_said_and_nonsense_is_not() -> None:
    block = gemmi.cif.read_string(text()).sole_block()
    assert block.find_value("_reflns.pdbx_R_split") == "0.0600"
    assert block.find_value("_reflns.percent_possible_obs") == "83.33"
    assert block.find_value("_reflns.B_iso_Wilson_estimate") == "25.25"
    assert block.find_value("_reflns.pdbx_Rrim_I_all") == "?"  # a negative R
    assert block.find_value("_reflns.pdbx_Rpim_I_all") == "?"
    assert len(block.find_loop("_reflns_shell.d_res_high")) == 1  # the other shell is empty
    assert block.find_value("_diffrn.pdbx_serial_crystal_experiment") == "Y"
    assert block.find_value("_pdbx_serial_crystallography_data_reduction.lattices_merged") == "48"


def test_file_of_merged_data_keeps_everything() -> None:
    given = data()
    content = merged_bytes(given)
    assert merged_bytes(given) == content


def test_file_of_merged_data_is_read_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    given, path = data(), tmp_path_factory.mktemp("merged") / "merged.h5"
    path.write_bytes(merged_bytes(given))
    found = read_merged(path)
    assert (found.cell, found.space_group, found.wavelength, found.notes) == (CELL, "P 43 21 2", 1.3051, ("a note", "another"))
    for column in MergedTable.SCHEMA:
        np.testing.assert_array_equal(found.merged[column.name], given.merged[column.name])
    for column in AmplitudeTable.SCHEMA:
        np.testing.assert_array_equal(found.amplitudes[column.name], given.amplitudes[column.name])
    path.write_bytes(merged_bytes(given)[:2000])
    with pytest.raises(DataError, match="truncated"):
        read_merged(path)


def test_nothing_measured_is_no_file() -> None:
    given = data()
    empty = MergedData(given.merged.select(slice(5, 6)), given.amplitudes.select(slice(5, 6)), CELL, "P 1", 1.0)
    with pytest.raises(DataError, match="no reflection"):
        list(mmcif_pieces(empty, Deposition(ROW, [], "0.1.0")))

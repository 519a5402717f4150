"""Statistics of intensities of real crystals, merged by gemmi."""

from __future__ import annotations

import lzma
from pathlib import Path

import gemmi
import numpy as np
import pytest

from xfelproc.algorithms.downstream.analysis import Analysis, analyse
from xfelproc.models.tables import AmplitudeTable, MergedTable

pytestmark = pytest.mark.peer


def analysed(intensities: gemmi.Intensities) -> tuple[MergedTable, AmplitudeTable, Analysis]:
    intensities.remove_systematic_absences()
    intensities.merge_in_place(gemmi.DataType.Mean)
    hkl, group, cell = intensities.miller_array, intensities.spacegroup, intensities.unit_cell
    value, sigma = intensities.value_array, intensities.sigma_array
    centric = group.operations().centric_flag_array(hkl)
    merged = MergedTable(
        None,
        hkl=hkl,
        d=cell.calculate_d_array(hkl),
        intensity=value,
        sigma=sigma,
        multiplicity=intensities.nobs_array,
        centric=centric,
    )
    return (merged, *analyse(merged, cell.parameters, group))


def test_a_small_molecule(shared_data: Path) -> None:
    mtz = gemmi.read_mtz_file(str(shared_data / "unmerged_mtz" / "AUTOMATIC_DEFAULT_scaled_unmerged_1.mtz"))
    intensities = gemmi.Intensities()
    intensities.import_mtz(mtz, gemmi.DataType.Unmerged)
    merged, amplitudes, found = analysed(intensities)
    assert found.l_test is not None
    assert found.l_test.mean_abs.value == pytest.approx(0.5, abs=0.03)
    assert found.moments is not None
    assert found.moments.acentric is not None
    assert found.moments.acentric.value == pytest.approx(2.0, abs=0.3)
    assert found.wilson is not None
    assert 1.0 < found.wilson.b_factor < 15.0
    # the lattice is hexagonal by accident, with operators that have fractions in the centred cell
    assert all(law.obliquity < 1.0 and "/2" in law.operator for law in found.twin_laws)
    assert np.all(np.isfinite(amplitudes["amplitude"]) == (merged["intensity"] / merged["sigma"] >= -4))
    strong = merged["intensity"] > 20 * merged["sigma"]
    np.testing.assert_allclose(amplitudes["amplitude"][strong] ** 2, merged["intensity"][strong], rtol=0.02)


def test_a_centric_cubic_zeolite(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "XDS_ASCII.HKL"
    path.write_bytes(lzma.decompress((shared_data / "xds_lta" / "XDS_ASCII.HKL.xz").read_bytes()))
    intensities = gemmi.Intensities()
    intensities.import_xds(gemmi.read_xds_ascii(str(path)))
    merged, amplitudes, found = analysed(intensities)
    assert len(merged) == 880
    assert found.l_test is None  # all are centric
    assert found.twin_laws == ()
    assert found.anisotropy is not None
    assert found.anisotropy.n_free == 0
    assert found.moments is not None
    assert found.moments.centric is not None
    assert 1.8 < found.moments.centric.value < 4.0
    assert np.all(np.isfinite(amplitudes["amplitude"]))

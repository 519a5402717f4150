"""Merging against gemmi and XDS on their own data."""

from __future__ import annotations

import lzma
from pathlib import Path

import gemmi
import numpy as np
import pytest

from xfelproc.algorithms.merging import Merge, from_scaled, merge_observations
from xfelproc.algorithms.merging.observed import ALL, WITHIN
from xfelproc.algorithms.merging.reduction import inverse_d2
from xfelproc.io.exchange.mtz import read_unmerged
from xfelproc.run.merging_given import GivenMerged

pytestmark = pytest.mark.peer

PLAIN = Merge(partiality="unity", scale=False, outlier_cut=0.0, error_intensity=0.0, error_partiality=0.0, n_shells=8)


@pytest.fixture(scope="module")
def unmerged_file(shared_data: Path) -> Path:
    return shared_data / "unmerged_mtz" / "AUTOMATIC_DEFAULT_scaled_unmerged_1.mtz"


def test_unmerged_mtz_merges_as_in_gemmi(unmerged_file: Path) -> None:
    data = read_unmerged(unmerged_file)
    batches, lattice = np.unique(data.batch, return_inverse=True)
    half = (np.arange(len(batches)) % 2).astype(np.uint8)
    observations = from_scaled(data.hkl, data.intensity, data.sigma, lattice, inverse_d2(data.hkl, data.cell), half)
    result = merge_observations(observations, data.cell, data.space_group, PLAIN)

    theirs = gemmi.Intensities()
    theirs.import_mtz(gemmi.read_mtz_file(str(unmerged_file)), gemmi.DataType.Unmerged)
    theirs.remove_systematic_absences()
    theirs.prepare_for_merging(gemmi.DataType.Mean)
    statistics = theirs.calculate_merging_stats(None)[0]
    overall = result.overall
    assert overall["n_observations"][0] == statistics.all_refl
    assert overall["n_unique"][0] == statistics.unique_refl
    assert overall["r_merge"][0] == pytest.approx(statistics.r_merge(), rel=1e-3)
    assert overall["r_meas"][0] == pytest.approx(statistics.r_meas(), rel=1e-3)
    assert overall["r_pim"][0] == pytest.approx(statistics.r_pim(), rel=1e-3)
    assert overall["cc_half_sigma_tau"][0] == pytest.approx(statistics.cc_half(), abs=1e-5)
    assert overall["cc_half"][0] == pytest.approx(statistics.cc_half(), abs=2e-3), "halves of batches against the σ-τ form"

    theirs.merge_in_place(gemmi.DataType.Mean)
    assert np.array_equal(theirs.miller_array, result.merged["hkl"])
    assert np.array_equal(theirs.nobs_array, result.merged["multiplicity"])
    assert result.merged["intensity"] == pytest.approx(theirs.value_array, rel=1e-5, abs=1e-4)
    single = result.merged["multiplicity"] == 1
    assert np.all(result.merged["sigma"] >= 0.999999 * theirs.sigma_array), "the spread can only widen counting's σ"
    assert np.any(single)


@pytest.mark.parametrize("anomalous", [False, True])
@pytest.mark.parametrize("absences", [False, True])
def test_every_shell_is_that_of_gemmi_merge(unmerged_file: Path, anomalous: bool, absences: bool) -> None:
    """As ``gemmi merge --stats`` prints them, with and without ``--anom`` and ``--no-sysabs``."""
    found = GivenMerged.of(unmerged_file, 10, absences)
    theirs = gemmi.Intensities()
    theirs.import_mtz(gemmi.read_mtz_file(str(unmerged_file)), gemmi.DataType.Unmerged)
    theirs.unit_cell = gemmi.UnitCell(*found.file.cell)
    if not absences:
        theirs.remove_systematic_absences()
    theirs.prepare_for_merging(gemmi.DataType.Anomalous if anomalous else gemmi.DataType.Mean)
    binner = gemmi.Binner()
    binner.setup(10, gemmi.Binner.Method.Dstar3, theirs)
    kind = WITHIN if anomalous else ALL
    tables = (found.observed.shells(kind), found.observed.overall(kind))
    for ours, expected in zip(tables, (theirs.calculate_merging_stats(binner), theirs.calculate_merging_stats(None)), strict=True):
        for row, shell in enumerate(expected):
            counts = [int(ours[name][row]) for name in ("n_observations", "n_unique", "n_repeated")]
            assert counts == [shell.all_refl, shell.unique_refl, shell.stats_refl]
            for name in ("r_merge", "r_meas", "r_pim"):
                assert ours[name][row] == pytest.approx(getattr(shell, name)(), rel=1e-4, nan_ok=True)
            assert ours["cc_half_sigma_tau"][row] == pytest.approx(shell.cc_half(), abs=1e-4, nan_ok=True)


def test_anomalous_pairs_are_gemmis(unmerged_file: Path) -> None:
    data = read_unmerged(unmerged_file)
    half = np.zeros(data.batch.max() + 1, dtype=np.uint8)
    observations = from_scaled(data.hkl, data.intensity, data.sigma, data.batch, inverse_d2(data.hkl, data.cell), half)
    merged = merge_observations(observations, data.cell, data.space_group, PLAIN).merged
    theirs = gemmi.Intensities()
    theirs.import_mtz(gemmi.read_mtz_file(str(unmerged_file)), gemmi.DataType.Unmerged)
    theirs.remove_systematic_absences()
    theirs.prepare_for_merging(gemmi.DataType.Anomalous)
    theirs.merge_in_place(gemmi.DataType.Anomalous)
    at = {tuple(h): i for i, h in enumerate(merged["hkl"].tolist())}
    for name, sign in (("plus", 1), ("minus", -1)):
        rows = theirs.isign_array == sign
        ours = np.array([at[tuple(h)] for h in theirs.miller_array[rows].tolist()])
        assert merged[f"intensity_{name}"][ours] == pytest.approx(theirs.value_array[rows], rel=1e-5, abs=1e-4)
        assert np.count_nonzero(merged[f"n_{name}"]) == np.count_nonzero(rows)


def test_xds_ascii_merges_as_in_correct(shared_data: Path) -> None:
    """CORRECT.LP: 15210 accepted observations, 880 unique, R_merge 0.309, R_meas 0.321, CC1/2 96.6 %."""
    with lzma.open(shared_data / "xds_lta" / "XDS_ASCII.HKL.xz", "rt") as lines:
        text = lines.read().splitlines()
    header = [line for line in text if line.startswith("!")]
    cell = tuple(float(v) for line in header if "UNIT_CELL_CONSTANTS" in line for v in line.split("=")[1].split())
    number = int(next(line for line in header if "SPACE_GROUP_NUMBER" in line).split("=")[1])
    rows = np.array([line.split() for line in text if not line.startswith("!")], dtype=np.float64)
    rows = rows[rows[:, 4] > 0]
    hkl = rows[:, :3].astype(np.int32)
    batch = rows[:, 7].astype(np.int64)
    half = np.random.default_rng(1).integers(0, 2, batch.max() + 1).astype(np.uint8)
    observations = from_scaled(hkl, rows[:, 3], rows[:, 4], batch, inverse_d2(hkl, cell), half)
    result = merge_observations(observations, cell, gemmi.find_spacegroup_by_number(number).xhm(), PLAIN)
    overall = result.overall
    assert overall["n_observations"][0] == 15210
    assert overall["n_unique"][0] == 880
    # XDS divides by the sum of the observations
    assert overall["r_merge_recorded"][0] == pytest.approx(0.309, abs=5e-4)
    assert overall["r_meas_recorded"][0] == pytest.approx(0.321, abs=5e-4)
    assert overall["cc_half"][0] == pytest.approx(0.966, abs=0.02)

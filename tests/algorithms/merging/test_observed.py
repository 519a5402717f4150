"""Statistics over observations, and the merging of given ones, against gemmi's."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest
from numpy.typing import NDArray

from xfelproc.algorithms.merging.given import absence_words, given_statistics, halves_of_batches
from xfelproc.algorithms.merging.observed import ALL, WITHIN, ObservedStatistics, ReflectionSums
from xfelproc.algorithms.merging.reduction import inverse_d2, pack, possible_reflections, to_asu
from xfelproc.algorithms.merging.statistics import shell_edges

CELL = (40.0, 50.0, 60.0, 90.0, 90.0, 90.0)
GROUP = gemmi.SpaceGroup("P 21 21 21")
SHELLS = 4
N = 3000


class Data:
    def __init__(self) -> None:
        rng = np.random.default_rng(11)
        unique = np.concatenate([possible_reflections(CELL, GROUP, 4.0, 20.0), [[1, 0, 0], [0, 0, 3]]]).astype(np.int32)
        rows = np.sort(rng.integers(0, len(unique), N))
        true = rng.exponential(100.0, len(unique))
        operators = [np.array(op.rot) // op.DEN for op in GROUP.operations().sym_ops]
        turned = np.array([operators[n] for n in rng.integers(0, len(operators), N)])
        self.observed = (np.einsum("ni,nij->nj", unique[rows], turned) * rng.choice([-1, 1], (N, 1))).astype(np.int32)
        asu, isym = to_asu(self.observed, GROUP)
        self.sigma = rng.uniform(1.0, 30.0, N).astype(np.float32)
        self.value = (true[rows] + self.sigma * rng.standard_normal(N)).astype(np.float32)
        order = np.argsort(pack(asu), kind="stable")
        self.observed, self.sigma, self.value = self.observed[order], self.sigma[order], self.value[order]
        self.hkl, self.isym = asu[order].astype(np.float32), isym[order].astype(np.float32)
        self.half = rng.integers(0, 2, N).astype(np.uint8)

    def sums(self, rows: slice = slice(None)) -> ReflectionSums:
        parts = (self.hkl, self.isym, self.value, self.sigma)
        return ReflectionSums.of(*(part[rows] for part in parts), GROUP, self.half[rows])


@pytest.fixture(scope="module")
def data() -> Data:
    return Data()


def gemmis(data: Data, kind: gemmi.DataType, rows: NDArray[np.bool_] | slice = slice(None)) -> gemmi.Intensities:
    hkl = np.ascontiguousarray(data.observed[rows])
    found = gemmi.Intensities()
    # a file, since indices in memory have no ISYM
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = GROUP
    mtz.set_cell_for_all(gemmi.UnitCell(*CELL))
    mtz.add_dataset("d").wavelength = 1.0
    for label, letter in (("M/ISYM", "Y"), ("BATCH", "B"), ("I", "J"), ("SIGI", "Q")):
        mtz.add_column(label, letter)
    ones = np.ones(len(hkl))
    mtz.set_data(np.column_stack([hkl, ones, ones, data.value[rows], data.sigma[rows]]).astype(np.float32))
    mtz.switch_to_asu_hkl()
    batch = gemmi.Mtz.Batch()
    batch.cell = gemmi.UnitCell(*CELL)
    mtz.batches.append(batch)
    found.import_mtz(mtz, gemmi.DataType.Unmerged)
    found.prepare_for_merging(kind)
    return found


@pytest.mark.parametrize(("ours", "theirs"), [(ALL, gemmi.DataType.Mean), (WITHIN, gemmi.DataType.Anomalous)])
def test_every_shell_is_gemmis(data: Data, ours: int, theirs: gemmi.DataType) -> None:
    found = gemmis(data, theirs)
    d = inverse_d2(data.observed, CELL) ** -0.5
    edges = shell_edges(d.min(), d.max(), SHELLS)
    statistics = ObservedStatistics(CELL, edges)
    for rows in (slice(0, _cut(data, 1000)), slice(_cut(data, 1000), N)):
        statistics.add(data.sums(rows))
    binner = gemmi.Binner()
    binner.setup(SHELLS, gemmi.Binner.Method.Dstar3, found)
    expected = [*found.calculate_merging_stats(binner), found.calculate_merging_stats(None)[0]]
    shells, overall = statistics.shells(ours), statistics.overall(ours)
    for row, theirs_here in enumerate(expected):
        here = {name: values[row] for name, values in shells.items()} if row < SHELLS else {n: v[0] for n, v in overall.items()}
        counts = (theirs_here.all_refl, theirs_here.unique_refl, theirs_here.stats_refl)
        assert (here["n_observations"], here["n_unique"], here["n_repeated"]) == counts
        for name in ("r_merge", "r_meas", "r_pim"):
            assert here[name] == pytest.approx(getattr(theirs_here, name)(), rel=1e-9)
        assert here["cc_half_sigma_tau"] == pytest.approx(theirs_here.cc_half(), rel=1e-9)


def _cut(data: Data, near: int) -> int:
    while np.array_equal(data.hkl[near], data.hkl[near - 1]):
        near += 1
    return near


def test_merged_ones_are_gemmis(data: Data) -> None:
    merged, _, shells, overall = given_statistics(data.sums(), CELL, GROUP, SHELLS)
    found = gemmis(data, gemmi.DataType.Mean)
    found.merge_in_place(gemmi.DataType.Mean)
    np.testing.assert_array_equal(merged["hkl"], found.miller_array)
    np.testing.assert_array_equal(merged["multiplicity"], found.nobs_array)
    np.testing.assert_allclose(merged["intensity"], found.value_array, rtol=1e-12)
    np.testing.assert_allclose(merged["sigma"], found.sigma_array, rtol=1e-12)
    assert overall["n_observations"][0] == N == shells["n_observations"].sum()
    assert overall["chi2"][0] == pytest.approx(1.0, abs=0.1)
    assert 0.9 < overall["completeness"][0] <= 1.0
    assert np.isnan(overall["r_meas_recorded"][0])
    assert np.isnan(overall["cc_control"][0])
    one = gemmis(data, gemmi.DataType.Mean, data.half == 0)
    one.merge_in_place(gemmi.DataType.Mean)
    known = np.isfinite(merged["half1"])
    np.testing.assert_allclose(merged["half1"][known], one.value_array, rtol=1e-12)


def test_forbidden_reflections_are_told_of(data: Data) -> None:
    sums = data.sums()
    (words,) = absence_words(sums, GROUP, dropped=True)
    assert "P 21 21 21 forbids" in words
    assert "left out" in words
    allowed = sums.select(np.any(sums.hkl != [1, 0, 0], axis=1) & np.any(sums.hkl != [0, 0, 3], axis=1))
    assert absence_words(allowed, GROUP, dropped=False) == ()


def test_halves_are_by_batch() -> None:
    batch = np.repeat(np.arange(1, 1001, dtype=np.float32), 2)
    half = halves_of_batches(batch)
    assert np.array_equal(half[::2], half[1::2])
    assert 0.45 < half.mean() < 0.55


def test_nothing_at_all() -> None:
    assert len(ReflectionSums.concatenate([]).hkl) == 0
    statistics = ObservedStatistics(CELL, shell_edges(2.0, 10.0, 2))
    assert np.all(np.isnan(statistics.shells()["r_meas"]))

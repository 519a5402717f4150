"""The negative control from pixels: found among the rows, scaled as these, merged in halves."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest

from xfelproc.algorithms.merging.off_lattice import OffLattice, off_lattice_warnings
from xfelproc.algorithms.merging.reduction import inverse_d2, pack, possible_reflections, to_asu
from xfelproc.algorithms.merging.statistics import shell_edges
from xfelproc.models.tables import ShellTable

CELL = (40.0, 50.0, 60.0, 90.0, 90.0, 90.0)
GROUP = gemmi.SpaceGroup("P 2 2 2")
N_LATTICES, EACH = 60, 120


class Run:
    def __init__(self, signal: float) -> None:
        rng = np.random.default_rng(6)
        unique = possible_reflections(CELL, GROUP, 5.0, 20.0)
        self.lattice = np.repeat(np.arange(N_LATTICES), EACH)
        row = np.concatenate([rng.choice(len(unique), EACH, replace=False) for _ in range(N_LATTICES)])
        turn = rng.choice([-1, 1], (len(row), 1)) * np.array([[1, 1, 1], [-1, -1, 1]])[rng.integers(0, 2, len(row))]
        self.hkl = (unique[row] * turn).astype(np.int32)
        asu, isym = to_asu(self.hkl, GROUP)
        factor = rng.uniform(0.2, 3.0, len(row))
        self.rows = np.zeros((len(row), 15), dtype=np.float32)
        self.rows[:, :3], self.rows[:, 3], self.rows[:, 4] = asu, isym, self.lattice + 1
        self.rows[:, 6], self.rows[:, 7], self.rows[:, 8], self.rows[:, 11] = 1.0 / factor, factor / 0.4, 0.5, 0.8
        self.rows = self.rows[np.argsort(pack(asu), kind="stable")]
        bias = signal * np.random.default_rng(1).normal(size=len(unique))[row]
        self.intensity = (factor * bias + rng.normal(size=len(row))).astype(np.float32)
        self.d = inverse_d2(unique, CELL) ** -0.5

    def control(self, every: int = 1) -> OffLattice:
        half = (self.lattice % 2).astype(np.uint8)
        some = slice(None, None, every)
        return OffLattice.of(self.hkl[some], self.lattice[some], self.intensity[some], half[some], GROUP)

    def shells(self, control: OffLattice) -> tuple[ShellTable, ShellTable]:
        chunks = np.array_split(self.rows, 7)
        passed = np.concatenate(list(control.watched(chunks)))
        assert passed is not self.rows
        np.testing.assert_array_equal(passed, self.rows)
        edges = shell_edges(self.d.min(), self.d.max(), 4)
        table = ShellTable(4, d_max=1 / edges[:-1], d_min=1 / edges[1:])
        return control.added_to(table, ShellTable(1), CELL)


def test_noise_does_not_correlate_and_a_bias_does() -> None:
    noise, bias = Run(0.0), Run(1.0)
    control = noise.control()
    shells, overall = noise.shells(control)
    assert np.all(control.found[:, 0] > 0), "chunks that divide a reflection lose none"
    n = overall["n_off_lattice"][0]
    assert n == shells["n_off_lattice"].sum() > 200
    assert abs(overall["cc_off_lattice"][0]) < 3.5 / np.sqrt(n)
    assert off_lattice_warnings(overall) == []
    _, overall = bias.shells(bias.control())
    assert overall["cc_off_lattice"][0] > 0.5
    assert "correlate by 0." in off_lattice_warnings(overall)[0]


def test_means_are_weighted_and_on_the_common_scale() -> None:
    run = Run(1.0)
    control = run.control(every=3)
    run.shells(control)
    hkl, means = control.halves()
    at = {(*h, s, b): r for *h, s, b, r in zip(*run.rows[:, :3].T, run.rows[:, 3], run.rows[:, 4], run.rows, strict=True)}
    asu, isym = to_asu(run.hkl, GROUP)
    for g in range(0, len(hkl), 20):
        for half in (0, 1):
            values, weights = [], []
            for i in range(0, len(run.hkl), 3):
                if np.array_equal(asu[i], hkl[g]) and run.lattice[i] % 2 == half:
                    row = at[(*asu[i].tolist(), isym[i], run.lattice[i] + 1)]
                    values.append(run.intensity[i] / (row[7] * row[8] * row[11]))
                    weights.append(row[6] ** -2.0)
            expected = np.average(values, weights=weights) if values else np.nan
            assert means[g, half] == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_what_was_not_merged_is_left_out() -> None:
    run = Run(0.0)
    control = run.control()
    run.rows = run.rows[::2]
    run.shells(control)
    assert 0.45 < np.mean(control.found[:, 0] > 0) < 0.55
    nothing = OffLattice.of(run.hkl[:0], run.lattice[:0], run.intensity[:0], np.zeros(0, np.uint8), GROUP)
    shells, overall = run.shells(nothing)
    assert np.all(np.isnan(shells["cc_off_lattice"]))
    assert overall["n_off_lattice"][0] == 0
    assert off_lattice_warnings(overall) == []

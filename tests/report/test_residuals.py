from __future__ import annotations

import numpy as np
import pytest

from tests.run.combine_runs import detector, unit_of
from xfelproc.algorithms.metrology.state import LevelOutcome
from xfelproc.models.frames import UnitResult
from xfelproc.models.tables import IndexedTable, SpotTable
from xfelproc.report.metrology import MetrologyData, outcome_rows, page, section, shifts_page
from xfelproc.report.residuals import ResidualFold, cells_a_side, panel_statistics, residual_sums


def planted(panel: int, at: tuple[float, float], off: tuple[float, float], n: int = 10, used: bool = True) -> UnitResult:
    spots = SpotTable(n, panel=[panel] * n, fast=[at[0] + off[0]] * n, slow=[at[1] + off[1]] * n)
    empty = unit_of(np.random.default_rng(0), 0, 1)
    indexed = IndexedTable(n, spot=np.arange(n), fast_calc=[at[0]] * n, slow_calc=[at[1]] * n, delta_psi=[0.2] * n, used=[used] * n)
    return UnitResult(empty.frames, spots, empty.lattices, indexed, empty.reflections)


def test_radial_and_transverse() -> None:
    d = detector()
    # the beam meets the plane at x = y = 0; on panel 1 (right, top) this place is straight to the right of it
    at = (50.0, 105.0)
    for off, expected in (((0.3, 0.0), (0.3, 0.0)), ((0.0, -0.2), (0.0, 0.2))):
        table = panel_statistics(d, residual_sums(d, (0.0, 0.0, 1.0), planted(1, at, off)))
        assert table["n_spots"].tolist() == [0, 10, 0, 0, 10]
        found = [table[name][1] for name in ("mean_radial", "mean_transverse")]
        assert found == pytest.approx(expected, abs=1e-6)
        assert table["rmsd_radial"][-1] == pytest.approx(abs(expected[0]), abs=1e-6)
        assert table["mean_psi"][1] == pytest.approx(0.2)
        assert np.isnan(table["rmsd_fast"][0])


def test_outliers_do_not_count() -> None:
    d = detector()
    assert residual_sums(d, (0.0, 0.0, 1.0), planted(1, (5.0, 5.0), (1.0, 1.0), used=False)).sum() == 0


def test_sums_are_those_of_all_units() -> None:
    d = detector()
    rng = np.random.default_rng(4)
    units = [unit_of(rng, 10 * k, 10) for k in range(4)]
    fold = ResidualFold(d)
    assert cells_a_side(d) == 4

    class Block:
        def __init__(self, result: UnitResult) -> None:
            self.result = lambda: result

    halves = [fold.accumulate(map(Block, part)) for part in (units[:2], units[2:])]
    total = fold.combine(*halves)["residuals"]
    assert np.allclose(total, fold.accumulate(map(Block, units))["residuals"])
    off = np.concatenate([(u.spots["fast"][u.indexed["spot"]] - u.indexed["fast_calc"])[u.indexed["used"]] for u in units])
    table = panel_statistics(d, total)
    assert table["n_spots"][-1] == len(off)
    assert table["rmsd_fast"][-1] == pytest.approx(np.sqrt(np.mean(off**2)))
    both = table["rmsd_radial"][-1] ** 2 + table["rmsd_transverse"][-1] ** 2
    assert both == pytest.approx(table["rmsd_fast"][-1] ** 2 + table["rmsd_slow"][-1] ** 2)


def test_the_section() -> None:
    d = detector()
    sums = residual_sums(d, (0.0, 0.0, 1.0), unit_of(np.random.default_rng(2), 0, 30))
    plain = section(MetrologyData(d, sums))
    assert "Residuals by panel" in plain
    assert "Shifts by level" not in plain
    parameter = {"level": 1, "group": "q<0>", "parameter": "fast", "unit": "mm", "value": 0.1, "sigma": 0.01, "n_spots": 7}
    half = {"level": 1, "group": "q0", "parameter": "fast", "difference": 0.002, "sigma": 0.001}
    data = MetrologyData(
        d, sums, recorded=d.shifted((0.1, 0.0, 0.0)), before=sums, parameters=[parameter], halves=[half], notes=["a < b"]
    )
    text = section(data)
    for word in ("before", "after", "Shifts by level", "q&lt;0&gt;", "a &lt; b", "Half-sets", "Panels moved"):
        assert word in text
    assert shifts_page("x", d, d.shifted((0.1, 0.2, 0.3)), (0.0, 0.0, 1.0)).count("<html") == page("x", text).count("<html") == 1


def test_nothing_of_a_single_panel() -> None:
    d = detector()
    one = type(d)(d.panels[:1])
    assert section(MetrologyData(one, np.zeros((1, 8, 8, 11)))) == ""


def test_a_run_without_indexed_spots() -> None:
    d = detector()
    table = panel_statistics(d, np.zeros((4, 4, 4, 11)))
    assert np.isnan(table["rmsd_radial"]).all()
    assert "–" in section(MetrologyData(d, np.zeros((4, 4, 4, 11))))


def test_rows_of_refined_levels() -> None:
    moves = np.arange(12.0).reshape(2, 6)
    sigma = np.full((2, 6), 0.1)
    sigma[0, 2] = 0.0
    tied = np.array([False, True])
    outcome = LevelOutcome(
        1,
        detector(),
        ("a", "b"),
        np.array([1, 1], np.int32),
        np.array([50, 3]),
        tied,
        moves,
        moves,
        sigma,
        sigma,
        sigma[:, :2],
        sigma[:, :2],
        moves,
        sigma,
        1.0,
        (),
        True,
    )
    rows = outcome_rows([outcome])
    assert [row["parameter"] for row in rows["parameters"]] == ["fast", "slow", "about_fast", "about_slow", "about_normal"]
    assert {row["group"] for row in rows["halves"]} == {"a"}
    assert rows["parameters"][1] == {
        "level": 1,
        "group": "a",
        "parameter": "slow",
        "unit": "mm",
        "value": 1.0,
        "sigma": 0.1,
        "n_spots": 50,
    }
    assert (rows["halves"][2]["unit"], rows["halves"][2]["difference"], rows["halves"][2]["sigma"]) == ("mrad", 3000.0, 100.0)

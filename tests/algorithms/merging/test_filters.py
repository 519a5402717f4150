"""Lattices and observations that are left out: precisely those that were planted, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.algorithms.merging.synthetic import CELL, halves, observe
from xfelproc.algorithms.merging import Merge, MergeResult, merge_observations, prepare
from xfelproc.algorithms.merging.filters import cell_deviations, lost_record, nothing_left
from xfelproc.algorithms.merging.lattice_block import LatticeFacts
from xfelproc.algorithms.merging.observations import chosen_rows
from xfelproc.algorithms.merging.panels import PanelLimits
from xfelproc.errors import ConfigError
from xfelproc.models.conventions import HC
from xfelproc.models.experiment import Detector, Panel
from xfelproc.models.tables import ReflectionTable

N = 30


def test_deviations_of_cells() -> None:
    cells = np.tile(CELL, (4, 1)) + np.array([[0.0] * 6, [0.791, 0, 0, 0, 0, 0], [0, 0, -0.76, 0, 0, 0], [0, 0, 0, 0, 0.5, -1]])
    assert cell_deviations(cells, np.array(CELL)) == pytest.approx([0.0, 0.01, 0.02, np.radians(1.0)])


@pytest.fixture(scope="module")
def table() -> ReflectionTable:
    return observe(N, 100, d_min=4.0)[0]


def facts() -> LatticeFacts:
    """Cells that scatter by 0.1 %, two of them wrong by 1 %; photon energies that scatter by 10 eV, two of them by 300 eV."""
    rng, known = np.random.default_rng(4), LatticeFacts.unknown(N, CELL)
    cell = known.cell * 1.0
    cell[:, :2] *= 1.0 + 1e-3 * rng.standard_normal((N, 1))
    cell[:, 2] *= 1.0 + 1e-3 * rng.standard_normal(N)
    cell[[7, 9], :3] = np.array(CELL[:3]) * [[1.01, 1.01, 1.0], [1.0, 1.0, 0.99]]
    energy = 9500.0 + 10.0 * rng.standard_normal(N)
    energy[[3, 8]] = 9200.0, 9800.0
    return replace(known, cell=cell, wavelength=HC / energy)


def left_out(table: ReflectionTable, settings: Merge) -> tuple[MergeResult, list[int]]:
    result = merge_observations(prepare(table, halves(N), settings), CELL, "P 43 21 2", settings, facts=facts())
    gone = np.flatnonzero(~result.lattices["used"]).tolist()
    assert not np.any(np.isin(result.unmerged["lattice"][result.unmerged["flags"] == 1], gone))
    return result, gone


@pytest.mark.parametrize(
    ("settings", "planted"),
    [
        (Merge(), []),
        (Merge(max_cell_deviation=0.006), [7, 9]),
        (Merge(max_cell_mahalanobis=5.0), [7, 9]),
        (Merge(max_cell_mahalanobis=20.0), []),
        (Merge(energy_range=(9400.0, 9600.0)), [3, 8]),
        (Merge(energy_range=(9400.0, 9900.0)), [3]),
        (Merge(max_energy_deviation=8.0), [3, 8]),
    ],
)
def test_precisely_those_planted_leave(table: ReflectionTable, settings: Merge, planted: list[int]) -> None:
    assert left_out(table, settings)[1] == planted


def test_each_has_a_reason_and_the_first_counts(table: ReflectionTable) -> None:
    few = table.select((table["lattice"] != 4) | (np.arange(len(table)) % 10 == 0))
    settings = Merge(min_observations=50, max_cell_deviation=0.006, max_cell_mahalanobis=5.0, max_energy_deviation=8.0)
    result, gone = left_out(few, settings)
    assert gone == [3, 4, 7, 8, 9]
    assert result.quality["left_out"] == {
        "few": 1,
        "correlation": 0,
        "cell": 2,
        "mahalanobis": 0,
        "energy": 2,
        "delta_cc": 0,
        "stretch": 0,
    }
    assert [w for w in result.warnings if "left out" in w] == [
        "1 lattices have fewer observations than merge.min_observations: left out",
        "2 lattices have another cell (merge.max_cell_deviation): left out",
        "2 lattices have another photon energy (merge.energy_range, merge.max_energy_deviation): left out",
    ]


def test_energies_are_in_order() -> None:
    with pytest.raises(ValueError, match=r"energy_range = \[9600.0, 9400.0\] eV: give the lower energy"):
        Merge(energy_range=(9600.0, 9400.0))


def detector(n: int = 3) -> Detector:
    return Detector(tuple(Panel(f"p{i}", (1, 0, 0), (0, 1, 0), (0, 0, -100), (0.1, 0.1), (100, 60)) for i in range(n)))


def test_panels_and_edges(table: ReflectionTable) -> None:
    rng = np.random.default_rng(1)
    n = len(table)
    placed = table.replace(panel=rng.integers(0, 3, n), fast=rng.uniform(0, 100, n), slow=rng.uniform(0, 60, n))
    settings = Merge(exclude_panels=("p1",), panel_edge=5.0)
    rows, lost = chosen_rows(placed, settings, PanelLimits.of(settings, detector()))
    kept = placed.select(rows)
    assert set(kept["panel"]) == {0, 2}
    assert kept["fast"].min() > 5 < kept["slow"].min()
    assert kept["fast"].max() < 95
    assert kept["slow"].max() < 55
    assert lost.tolist() == [0, np.count_nonzero(placed["panel"] == 1), n - len(rows) - lost[1]]
    assert lost[2] == pytest.approx((1 - 0.9 * 50 / 60) * np.count_nonzero(placed["panel"] != 1), rel=0.1)
    # without a detector panels have numbers
    assert len(prepare(placed, halves(N), Merge(exclude_panels=(1,)))) == n - lost[1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Merge(exclude_panels=("q5",)), "there is no panel 'q5': they are called p0, p1, p2$"),
        (Merge(exclude_panels=(3,)), "there is no panel 3: the detector has 3, counted from 0"),
    ],
)
def test_panels_that_are_not_there(settings: Merge, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PanelLimits.of(settings, detector())


def test_edges_need_a_detector(table: ReflectionTable) -> None:
    with pytest.raises(ConfigError, match="need a detector"):
        PanelLimits.of(Merge(panel_edge=3.0), None)
    settings = Merge(panel_edge=3.0)
    with pytest.raises(ConfigError, match="on panel 3, and the detector has 3"):
        chosen_rows(table.replace(panel=np.full(len(table), 3)), settings, PanelLimits.of(settings, detector()))


def test_observations_without_signal_leave() -> None:
    """Each lattice has signal to a resolution of its own; beyond it is noise."""
    table, _ = observe(N, 400, d_min=3.0, seed=2)
    rng = np.random.default_rng(7)
    limit = np.where(np.arange(N) % 2, 4.0, 3.5)[table["lattice"]]
    noise = table["d"] < limit
    noisy = table.replace(
        intensity=np.where(noise, rng.normal(0.0, 10.0, len(table)), np.maximum(table["intensity"], 30.0)),
        sigma=np.where(noise, 10.0, table["sigma"]),
    )
    kept = prepare(noisy, halves(N), Merge(significance=0.5))
    assert len(kept) < len(table)
    finest = np.array([1 / np.sqrt(kept.inverse_d2[kept.lattice == i].max()) for i in range(N)])
    assert np.abs(finest - np.where(np.arange(N) % 2, 4.0, 3.5)).max() < 0.15
    assert len(prepare(noisy, halves(N), Merge(significance=50.0))) == 0


def test_what_left_nothing_is_named() -> None:
    text = nothing_left(12, np.array([0, 2, 0, 0, 10, 0]), np.array([5, 0, 30, 0]))
    assert text == (
        "nothing to merge: none of 12 lattices is left; of the lattices, 2 have fewer observations than merge.min_observations;"
        " 10 have a cell unlike the others' (merge.max_cell_mahalanobis); of the observations, 5 are flagged by integration, or"
        " beyond the resolution limits (merge.exclude, merge.d_min, merge.d_max); 30 are near an edge of their panel"
        " (merge.panel_edge). Loosen what took most, and run the same command again"
    )
    assert lost_record(np.array([5, 0, 30, 0])) == {"flagged": 5, "panel": 0, "edge": 30, "significance": 0}

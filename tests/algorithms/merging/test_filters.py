"""Lattices that are left out before merging, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.algorithms.merging.synthetic import CELL, halves, observe
from xfelproc.algorithms.merging import Merge, merge_observations, prepare
from xfelproc.algorithms.merging.filters import cell_deviations
from xfelproc.algorithms.merging.lattice_block import LatticeFacts


def test_deviations_of_cells() -> None:
    cells = np.tile(CELL, (4, 1)) + np.array([[0.0] * 6, [0.791, 0, 0, 0, 0, 0], [0, 0, -0.76, 0, 0, 0], [0, 0, 0, 0, 0.5, -1]])
    assert cell_deviations(cells, np.array(CELL)) == pytest.approx([0.0, 0.01, 0.02, np.radians(1.0)])


def test_lattices_are_left_out_with_reasons() -> None:
    table, _ = observe(30, 100, d_min=4.0)
    table = table.select((table["lattice"] != 4) | (np.arange(len(table)) % 10 == 0))
    settings = Merge(min_observations=50, max_cell_deviation=0.01)
    facts = LatticeFacts.unknown(30, CELL)
    cell = facts.cell.copy()
    cell[[7, 9], 0] *= 1.02
    observations = prepare(table, halves(30), settings)
    result = merge_observations(observations, CELL, "P 43 21 2", settings, facts=replace(facts, cell=cell))
    assert np.flatnonzero(~result.lattices["used"]).tolist() == [4, 7, 9]
    assert result.quality["left_out"] == {"few": 1, "correlation": 0, "cell": 2}
    assert [w for w in result.warnings if "left out" in w] == [
        "1 lattices have fewer observations than merge.min_observations: left out",
        "2 lattices have another cell (merge.max_cell_deviation): left out",
    ]
    assert not np.any(np.isin(result.unmerged["lattice"][result.unmerged["flags"] == 1], [4, 7, 9]))

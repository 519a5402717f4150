"""ΔCC1/2: against merging again without each lattice, of stretches, and what a cut takes."""

from __future__ import annotations

from dataclasses import replace

import gemmi
import numpy as np
import pytest

from tests.algorithms.merging.synthetic import CELL, halves, observe
from xfelproc.algorithms.merging import Merge, merge_observations, prepare
from xfelproc.algorithms.merging.cycle import accumulate_block
from xfelproc.algorithms.merging.filters import Consensus
from xfelproc.algorithms.merging.in_memory import ScaledBlocks, block_in_memory, scale_blocks
from xfelproc.algorithms.merging.influence import Cut, Stretch, influences, low_limit, merged_by_variances
from xfelproc.algorithms.merging.lattice_block import LatticeFacts
from xfelproc.algorithms.merging.lattice_models import Reason
from xfelproc.kernels.influence import half_correlation
from xfelproc.models.tables import ReflectionTable

N = 40
GIVEN = {"max_cycles": 4, "error_intensity": 0.05, "error_partiality": 0.03}
"""Errors that are given: where they are fitted, lattices that fit badly lose their weight, and do no harm."""
GROUP = gemmi.SpaceGroup("P 43 21 2")


def with_bad_lattices(bad: list[int]) -> ReflectionTable:
    """Observations of lattices of which some are more than half of another structure."""
    table, _ = observe(N, 400, d_min=4.0, seed=3)
    rng = np.random.default_rng(9)
    intensity = table["intensity"] * 1.0
    for lattice in bad:
        rows = np.flatnonzero(table["lattice"] == lattice)
        some = rows[rng.random(len(rows)) < 0.6]
        intensity[some] = rng.permutation(intensity[some])
    return table.replace(intensity=intensity)


def scaled(bad: list[int], settings: Merge) -> ScaledBlocks:
    facts = LatticeFacts.unknown(N, CELL)
    facts = replace(facts, unit=np.arange(N, dtype=np.int32) // 4, number=np.arange(N, dtype=np.int32) % 4)
    block, state = block_in_memory(prepare(with_bad_lattices(bad), halves(N), settings), facts, CELL, GROUP, settings)
    return scale_blocks([block], state, consensus=Consensus.of(facts.cell, facts.wavelength, "P 43 21 2"))


@pytest.fixture(scope="module")
def result() -> ScaledBlocks:
    return scaled([5, 17], Merge(**GIVEN))


def without(result: ScaledBlocks, rows: np.ndarray) -> float:
    """CC1/2 of the same models and weights without some lattices, all summed again."""
    state, (block,), (models,) = result.state, result.blocks, result.models
    last = replace(
        state.reference, expected=state.reference.last_expected, limit=state.reference.last_limit, factor=state.reference.factor
    )
    before = replace(state, reference=last, errors=state.last_errors, cycle=0)
    sums = accumulate_block(block, replace(models, used=models.used & ~rows), before)
    reference = last.next(sums, state.typical, 0.0, last.factor)
    # the shells are those of all data
    merged, whole = merged_by_variances(replace(state, reference=reference)), merged_by_variances(state)
    twice = reference.count >= 2
    error = reference.chi2[twice] / (reference.count[twice] - 1) / reference.weight[twice]
    columns = np.ones(len(error)), merged.mean[twice], merged.mean[twice] ** 2, error
    sums_of_shells = np.stack([np.bincount(whole.shell[twice], values, minlength=10) for values in columns], axis=1)
    return float(half_correlation(sums_of_shells))


def test_influences_are_those_of_merging_again(result: ScaledBlocks) -> None:
    found = influences(result.blocks[0], result.models[0], result.state)
    whole = without(result, np.zeros(N, dtype=bool))
    assert whole == pytest.approx(half_correlation(merged_by_variances(result.state).sums), rel=1e-4, abs=1e-7)
    for lattice in (0, 5, 11, 39):
        assert found[lattice] == pytest.approx(whole - without(result, np.arange(N) == lattice), rel=1e-4, abs=1e-7)
    assert set(np.argsort(found)[:2]) == {5, 17}


def test_a_stretch_is_all_its_lattices_whatever_blocks_they_are_in(result: ScaledBlocks) -> None:
    (block,), (models,), state = result.blocks, result.models, result.state
    stretch = Stretch(state)
    stretch.add(block, models, 3, 9)
    one = stretch.influence()
    rows = (np.arange(N) >= 3) & (np.arange(N) < 9)
    assert one == pytest.approx(without(result, np.zeros(N, dtype=bool)) - without(result, rows), rel=1e-4, abs=1e-7)
    parts = [np.arange(0, 6), np.arange(6, N)]
    stretch.add(block.select_lattices(parts[0]), models.select(parts[0]), 3, 6)
    stretch.add(block.select_lattices(parts[1]), models.select(parts[1]), 0, 3)
    assert stretch.influence() == pytest.approx(one, rel=1e-9)
    assert np.isnan(stretch.influence())


def test_a_cut_takes_those_that_do_harm_and_scales_again() -> None:
    settings = Merge(**GIVEN, delta_cc_half_cut=4.0)
    result = scaled([5, 17], settings)
    reason = result.models[0].reason
    assert np.flatnonzero(reason == Reason.DELTA_CC).tolist() == [5, 17]
    assert np.all(result.models[0].delta_cc_half[[5, 17]] < 0)
    assert np.count_nonzero(scaled([], settings).models[0].reason) == 0


def test_the_table_tells_of_each_lattice() -> None:
    settings = Merge(**GIVEN, delta_cc_half_cut=4.0)
    observations = prepare(with_bad_lattices([5, 17]), halves(N), settings)
    merged = merge_observations(observations, CELL, "P 43 21 2", settings)
    rows = merged.lattices
    assert np.flatnonzero(rows["reason"]).tolist() == np.flatnonzero(~rows["used"]).tolist() == [5, 17]
    assert np.all(np.isfinite(rows["delta_cc_half"]))
    assert merged.quality["left_out"]["delta_cc"] == 2
    assert rows["d_min"][0] == pytest.approx(1 / np.sqrt(observations.inverse_d2[observations.lattice == 0].max()), rel=1e-3)
    silent = merge_observations(observations, CELL, "P 43 21 2", Merge(**GIVEN, delta_cc_half=False))
    assert np.all(np.isnan(silent.lattices["delta_cc_half"]))


def test_limits_are_below_zero() -> None:
    values = np.array([-1.0, 0.0, 1.0, 2.0, 3.0, np.nan])
    assert low_limit(values, 1.0) == pytest.approx(1.0 - 1.4826)
    assert low_limit(values + 100.0, 1.0) == 0.0
    assert low_limit(values, None) == -np.inf
    assert low_limit(np.array([np.nan]), 1.0) == -np.inf


def test_stretches_are_cut_where_there_are_some_to_compare() -> None:
    bounds = np.array([[0, 2], [2, 4], [4, 6], [6, 8], [8, 9]])
    values = np.array([0.1, 0.12, -0.5, 0.09, 0.1])
    assert Cut.of_stretches(-np.inf, bounds, values, 5.0).stretches == ((4, 6),)
    assert Cut.of_stretches(-np.inf, bounds[:3], values[:3], 5.0).stretches == ()
    assert Cut.of_stretches(-np.inf, bounds, values, None).stretches == ()
    assert not Cut()

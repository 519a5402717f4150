"""The cycles of scaling over blocks of lattices."""

import pickle

import gemmi
import numpy as np
import pytest

from tests.algorithms.merging.synthetic import CELL, halves, observe
from xfelproc.algorithms.merging import Merge, prepare
from xfelproc.algorithms.merging.cycle import CycleState
from xfelproc.algorithms.merging.in_memory import block_in_memory, scale_blocks
from xfelproc.algorithms.merging.lattice_block import LatticeBlock, LatticeFacts, concatenate_blocks
from xfelproc.algorithms.merging.lattice_models import LatticeModels, concatenate_models
from xfelproc.algorithms.merging.output import output_block
from xfelproc.models.conventions import ReflectionFlag

GROUP = gemmi.SpaceGroup("P 43 21 2")
SETTINGS = Merge(max_cycles=6)


@pytest.fixture(scope="module")
def scaled():
    table, truth = observe(40, 300)
    facts = LatticeFacts.unknown(40, CELL)
    block, state = block_in_memory(prepare(table, halves(40), SETTINGS), facts, CELL, GROUP, SETTINGS)
    return truth, block, state, scale_blocks([block], state)


def test_scales_and_intensities_are_those_of_the_truth(scaled):
    truth, _, state, result = scaled
    log_ratio = np.log(result.models[0].scale / truth.scale)
    assert np.std(log_ratio) < 0.15
    final = result.state.reference
    measured = final.count >= 2
    true = truth.lookup(state.unique.hkl[measured])
    assert np.corrcoef(true, final.intensity[measured])[0, 1] > 0.98


def test_two_blocks_give_what_one_gives(scaled):
    _, block, state, result = scaled
    parts = [block.select_lattices(np.arange(25)), block.select_lattices(np.arange(25, 40))]
    apart = scale_blocks(parts, state)
    assert apart.state.cycle == result.state.cycle
    # scales and partialities are in single precision: sums that differ in the last bit may round them the other way
    np.testing.assert_allclose(apart.state.reference.intensity, result.state.reference.intensity, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(concatenate_models(apart.models).scale, result.models[0].scale, rtol=1e-6)
    joined = concatenate_blocks(parts)
    for name, values in block.arrays().items():
        np.testing.assert_array_equal(joined.arrays()[name], values, err_msg=name)


def test_state_and_models_survive_files_and_pickles(scaled):
    _, block, _, result = scaled
    state = CycleState.from_arrays(result.state.arrays(), SETTINGS)
    assert state.finished == result.state.finished
    assert pickle.loads(pickle.dumps(state)).cycle == state.cycle
    models = LatticeModels.from_arrays(result.models[0].arrays())
    np.testing.assert_array_equal(models.parameters, result.models[0].parameters)
    assert len(LatticeBlock.from_arrays(block.arrays())) == len(block)


def test_output_has_the_sums_of_its_rows(scaled):
    _, block, _, result = scaled
    rows, lattices, sums = output_block(block, result.models[0], result.state, first_lattice=7)
    assert rows["lattice"].min() == 7
    assert len(lattices) == 40
    kept = rows["flags"] & int(ReflectionFlag.OUTLIER) == 0
    assert sums["count"].sum() == lattices["n_observations"].sum()
    assert kept.sum() == sums["count"].sum()
    np.testing.assert_allclose(
        np.exp(np.log(lattices["scale"]) @ lattices["n_observations"] / lattices["n_observations"].sum()), 1.0
    )

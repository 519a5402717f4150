"""Post-refinement of simulated lattices whose true models are known, and what each of its parameters does."""

from typing import Any

import gemmi
import numpy as np
import pytest

from xfelproc.algorithms.merging import Merge, prepare
from xfelproc.algorithms.merging.in_memory import ScaledBlocks, block_in_memory, scale_blocks
from xfelproc.algorithms.merging.lattice_block import LatticeFacts
from xfelproc.simulation.observations import ObservationSimulator

N = 60
GROUP = gemmi.SpaceGroup("P 43 21 2")


@pytest.fixture(scope="module")
def simulated():
    simulator = ObservationSimulator.of(d_min=2.6, misset=0.004)
    return simulator, simulator.simulate(0, N)


def scaled(simulated: Any, **settings: Any) -> ScaledBlocks:
    simulator, found = simulated
    merge, cell, zeros = Merge(max_cycles=4, **settings), simulator.settings.cell, np.zeros(N, dtype=np.int32)
    columns = found.block()
    facts = LatticeFacts(
        columns["A"],
        np.tile(cell, (N, 1)),
        columns["wavelength"],
        np.zeros(N),
        zeros,
        np.arange(N, dtype=np.int32),
        zeros.astype(np.int16),
    )
    block, state = block_in_memory(prepare(found.table(), found.crystals.half, merge), facts, cell, GROUP, merge)
    return scale_blocks([block], state)


@pytest.fixture(scope="module")
def refined(simulated):
    return scaled(simulated)


def truth_cc(simulated: Any, result: ScaledBlocks) -> float:
    simulator, reference = simulated[0], result.state.reference
    true = {tuple(h): v for h, v in zip(simulator.structure.hkl.tolist(), simulator.structure.mean.tolist(), strict=True)}
    seen = reference.weight > 0
    values = [true[tuple(h)] for h in result.state.unique.hkl[seen].tolist()]
    return float(np.corrcoef(values, reference.intensity[seen])[0, 1])


def rotation_errors(simulated: Any, result: ScaledBlocks) -> tuple[float, float]:
    """Median rotation to the truth about the axes across the beam, radians: before and after."""
    crystals, block = simulated[1].crystals, result.blocks[0]
    turn = np.einsum("nij,njk->nik", crystals.true_A, np.linalg.inv(block.A))
    true = 0.5 * np.stack([turn[:, 2, 1] - turn[:, 1, 2], turn[:, 0, 2] - turn[:, 2, 0]], axis=1)
    left = true - result.models[0].rotation
    return float(np.median(np.linalg.norm(true, axis=1))), float(np.median(np.linalg.norm(left, axis=1)))


def test_rotations_and_intensities_come_nearer_to_the_truth(simulated, refined):
    before, after = rotation_errors(simulated, refined)
    assert after < 0.3 * before
    assert truth_cc(simulated, refined) > truth_cc(simulated, scaled(simulated, post_refine=False)) + 0.002


def test_without_post_refinement_widths_and_rotations_stay(simulated):
    models = scaled(simulated, post_refine=False).models[0]
    assert not models.rotation.any()
    assert np.ptp(models.width[:, 0]) == 0.0


def test_widths_are_those_of_the_crystals(simulated, refined):
    true = simulated[1].crystals.width
    log_ratio = np.log(refined.models[0].width[:, 0] / true)
    assert np.std(log_ratio) < 0.5 * np.std(np.log(true))


def test_restraints_hold(simulated, refined):
    assert np.abs(scaled(simulated, rotation_restraint=1e-6).models[0].rotation).max() < 1e-6
    widths = scaled(simulated, width_restraint=1e-3).models[0].width
    assert np.std(np.log(widths[:, 0])) < 0.1 * np.std(np.log(refined.models[0].width[:, 0]))


def test_cells_are_refined_where_they_differ(simulated, refined):
    assert np.std(refined.models[0].strain) < 1e-4
    assert scaled(simulated, refine_cell=False).models[0].strain.shape == (N, 0)
    simulator = ObservationSimulator.of(d_min=2.6, misset=0.004, cell_spread=0.001, cell_known=False)
    given = simulator, simulator.simulate(0, N)
    result = scaled(given)
    np.testing.assert_allclose(result.state.population.spread[6:], 0.001, rtol=0.5)
    stated, true = (np.linalg.norm(a, axis=1) for a in (result.blocks[0].A, given[1].crystals.true_A))
    change = true / stated - 1.0
    assert np.corrcoef(result.models[0].strain[:, 0], 0.5 * (change[:, 0] + change[:, 1]))[0, 1] > 0.8
    assert truth_cc(given, result) > truth_cc(given, scaled(given, refine_cell=False))
    assert np.abs(scaled(given, refine_cell=True, cell_restraint=1e-7).models[0].strain).max() < 1e-6


def test_lattices_of_another_structure_leave_by_themselves():
    simulator = ObservationSimulator.of(d_min=2.6, outlier_lattices=0.1)
    given = simulator, simulator.simulate(0, N)
    result = scaled(given)
    np.testing.assert_array_equal(result.models[0].used, ~given[1].crystals.outlier.astype(bool))

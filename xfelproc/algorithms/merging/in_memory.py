"""All cycles over blocks that are in memory: what a run does with files, in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import gemmi
import numpy as np

from xfelproc.algorithms.merging.cycle import CycleState, accumulate_block, advance, begin_block, refine_block, start
from xfelproc.algorithms.merging.filters import Consensus, filtered
from xfelproc.algorithms.merging.influence import ROUNDS, Cut, influences, low_limit
from xfelproc.algorithms.merging.lattice_block import LatticeBlock, LatticeFacts, UniqueReflections, keys_of, make_block
from xfelproc.algorithms.merging.lattice_models import LatticeModels
from xfelproc.algorithms.merging.observations import Observations
from xfelproc.algorithms.merging.reference import Floats, Sums, add_sums
from xfelproc.algorithms.merging.sample import Sample, begin, priorities
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.algorithms.merging.symmetry_notes import without_absences


@dataclass(frozen=True)
class ScaledBlocks:
    """Blocks with their final models, and the state that is finished."""

    blocks: tuple[LatticeBlock, ...]
    models: tuple[LatticeModels, ...]
    state: CycleState


def scale_blocks(
    blocks: Sequence[LatticeBlock],
    state: CycleState,
    watch: Callable[[CycleState], None] | None = None,
    consensus: Consensus | None = None,
) -> ScaledBlocks:
    """Return blocks scaled from a state of `cycle.start`; ``watch`` is called after each cycle.

    Without a ``consensus`` no lattice is left out for its cell or photon energy.
    """
    models = [filtered(block, begin_block(block, state), consensus, state.settings) for block in blocks]
    rounds = 0
    while True:
        parts: list[Sums] = [accumulate_block(b, m, state) for b, m in zip(blocks, models, strict=True)]
        state = advance(state, reduce(add_sums, parts))
        if watch is not None:
            watch(state)
        if not state.finished:
            models = [refine_block(b, m, state) for b, m in zip(blocks, models, strict=True)]
            continue
        cut, values = _cut(blocks, models, state)
        if rounds == ROUNDS or not any(cut.takes(v) for v in values):
            return ScaledBlocks(tuple(blocks), tuple(models), state)
        refined = [refine_block(b, m, state) for b, m in zip(blocks, models, strict=True)]
        models = [cut.applied(b, m, v) for b, m, v in zip(blocks, refined, values, strict=True)]
        rounds += 1


def _cut(blocks: Sequence[LatticeBlock], models: Sequence[LatticeModels], state: CycleState) -> tuple[Cut, list[Floats]]:
    """Return what is to be left out for its ΔCC1/2, and that of the lattices of each block."""
    asked = state.settings.delta_cc_half_cut
    if asked is None:
        return Cut(), []
    values = [influences(b, m, state) for b, m in zip(blocks, models, strict=True)]
    return Cut(low_limit(np.concatenate(values), asked)), values


def block_in_memory(
    observations: Observations, facts: LatticeFacts, cell: Sequence[float], group: gemmi.SpaceGroup, settings: Merge
) -> tuple[LatticeBlock, CycleState]:
    """Return observations as one block, systematic absences left out, and the state to start from."""
    observations, _ = without_absences(observations, group)
    beginning = begin(Sample.of(observations, priorities(0, observations.n_lattices)), settings)
    unique = UniqueReflections.of(keys_of(observations.hkl, group)[0], cell, group)
    return make_block(observations, facts, unique, group), start(unique, beginning, settings, group)

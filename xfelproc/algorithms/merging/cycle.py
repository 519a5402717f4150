"""Scaling and post-refinement, block by block of lattices: what a cycle does to a block, and what all blocks yield.

A run goes: `start`; then for each block `begin_block` and `accumulate_block`; `advance` with the sums of all blocks added; then
cycles of `refine_block`, `accumulate_block` and `advance` until the state is finished; then `output.output_block`. A block's models
stay with the block; the state has the size of the unique reflections.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.cycle_state import CycleState, start
from xfelproc.algorithms.merging.error_model import SamplePlan, fit_errors, sample_sums
from xfelproc.algorithms.merging.filters import counts_by_reason
from xfelproc.algorithms.merging.lattice_block import LatticeBlock
from xfelproc.algorithms.merging.lattice_models import LatticeModels
from xfelproc.algorithms.merging.lattice_refinement import begin_block, factors, refine_block, smallest_partiality
from xfelproc.algorithms.merging.prior import Prior
from xfelproc.algorithms.merging.reference import Sums
from xfelproc.kernels.reference_sums import add_block

Factors = tuple[NDArray[np.float32], NDArray[np.float32]]

__all__ = ["CycleState", "accumulate_block", "advance", "begin_block", "factors", "refine_block", "start"]


def accumulate_block(block: LatticeBlock, models: LatticeModels, state: CycleState) -> Sums:
    """Return the sums over a block's observations that make the next reference; those of all blocks are added."""
    known = factors(block, models, state)
    sums, merged = _add(block, models, state, known)
    n = block.counts(merged).astype(np.float64)
    gauge = np.array([n.sum(), n @ np.log(models.scale), n @ models.b_factor])
    sample = _error_sample(block, models, state, known) if _fits_errors(state) else {}
    return (
        sums
        | sample
        | {
            "population": state.population.sums(models),
            "gauge": gauge,
            "n_used": np.array([np.count_nonzero(models.used), len(models)]),
            "reasons": counts_by_reason(models.reason),
        }
    )


def _fits_errors(state: CycleState) -> bool:
    """Return whether this cycle's sums give an error model: not the first ones, whose scales are guesses."""
    return state.settings.fits_errors and state.cycle > 0


def _error_sample(block: LatticeBlock, models: LatticeModels, state: CycleState, known: Factors) -> Sums:
    """Return what `fit_errors` wants of a block."""
    columns = (block.intensity, block.variance_fixed, block.variance_gain, *known)
    plan = _sample_plan(state)
    plus = (block.isym % 2 == 1) | state.unique.centric[block.group]
    identity = (block.unit.astype(np.int64) << 32) + block.number
    smallest = smallest_partiality(state.settings)
    return sample_sums(plan, identity, block.starts, block.group, columns, models.quality, models.used, plus, smallest)


def _sample_plan(state: CycleState) -> SamplePlan:
    return SamplePlan.of(state.reference.count, state.unique.centric)


def advance(state: CycleState, sums: Sums) -> CycleState:
    """Return the state of the next cycle, from the sums over all blocks."""
    gauge = sums["gauge"][1:] / max(float(sums["gauge"][0]), 1.0)
    first_gauge = state.first_gauge if state.cycle else gauge
    factor = np.exp(gauge[0] - first_gauge[0] - 0.5 * (gauge[1] - first_gauge[1]) * state.unique.inverse_d2)
    old, new = state.reference, state.reference.next(sums, state.typical, state.settings.outlier_cut, factor)
    both = (new.weight > 0) & (old.weight > 0)
    moved = np.abs(new.intensity * new.factor - old.intensity * old.factor)[both].sum()
    total = np.abs(new.intensity * new.factor)[both].sum()
    change = float(moved / total) if state.cycle and total > 0 else np.inf
    errors = state.errors
    if _fits_errors(state):
        errors = fit_errors(sums["sample"], _sample_plan(state), new.intensity, errors, state.settings.outlier_cut)
    prior = state.prior
    if len(state.given):
        on_scale = new.intensity * factor, new.weight / factor**2
        prior = Prior.of_given(state.given, *on_scale, state.typical, state.unique.inverse_d2)
    return replace(
        state,
        reference=new,
        gauge=gauge,
        first_gauge=first_gauge,
        population=state.population.fitted(sums["population"], state.settings),
        prior=prior,
        cycle=state.cycle + 1,
        change=change,
        errors=errors,
        last_errors=state.errors,
    )


def _add(block: LatticeBlock, models: LatticeModels, state: CycleState, known: Factors) -> tuple[Sums, NDArray[np.bool_]]:
    """Return sums by unique reflection, and which observations are in them; ``known`` are the factors under the models."""
    n, reference = len(state.unique), state.reference
    weight, weighted, squared, count = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n, dtype=np.int64)
    merged = np.zeros(len(block), dtype=bool)
    add_block(
        block.starts,
        block.group,
        block.intensity,
        block.variance_fixed,
        block.variance_gain,
        *known,
        reference.expected,
        reference.limit,
        models.used,
        models.quality,
        state.errors.terms,
        smallest_partiality(state.settings),
        weight,
        weighted,
        squared,
        count,
        merged,
    )
    return {"weight": weight, "weighted": weighted, "squared": squared, "count": count}, merged

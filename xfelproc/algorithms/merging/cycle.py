"""Scaling and post-refinement, block by block of lattices: what a cycle does to a block, and what all blocks yield.

A run goes: `start`; then for each block `begin_block` and `accumulate_block`; `advance` with the sums of all blocks added; then
cycles of `refine_block`, `accumulate_block` and `advance` until the state is finished; then `output_block`. A block's models stay
with the block; the state has the size of the unique reflections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.error_model import NO_ERRORS, ErrorModel, SamplePlan, fit_errors, sample_sums
from xfelproc.algorithms.merging.lattice_block import LatticeBlock, UniqueReflections
from xfelproc.algorithms.merging.lattice_models import N_FIXED, LatticeModels, Reason, initial_models
from xfelproc.algorithms.merging.partiality import SHELLS, resolution_bins
from xfelproc.algorithms.merging.reference import Arrays, Floats, Reference, Sums
from xfelproc.algorithms.merging.sample import SMALLEST_PARTIALITY, Beginning
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.kernels.postrefinement import FULL, GAUSSIAN, GIVEN, add_block, block_derivatives, block_factors
from xfelproc.kernels.postrefinement import refine_block as refine_lattices
from xfelproc.kernels.scaling import replay_scales

KINDS = {"gaussian": GAUSSIAN, "model": GIVEN, "unity": FULL}
ROBUST = 3.0
"""Residual, in standard deviations, at which the Cauchy weight of an observation is halved."""
ROUNDS = 4
"""Steps of refinement a cycle at most."""
TOLERANCE = 2e-3
"""Change of the reference, Σ|ΔJ| / Σ|J|, below which the cycles end."""
SCALE_RESTRAINT = 0.3
FEWEST_OBSERVATIONS = 3


@dataclass(frozen=True)
class CycleState:
    """What all blocks must know: of the size of the unique reflections.

    ``typical`` (n,) is the mean intensity at the resolution of each; ``gauge`` (2,) are the means of log scale and B over the
    observations of the last cycle; ``change`` is that of the reference in it.
    """

    settings: Merge
    beginning: Beginning
    unique: UniqueReflections
    typical: Floats
    reference: Reference
    gauge: Floats
    cycle: int = 0
    change: float = np.inf
    given: bool = False
    """The reference was given and stays: nothing of it comes from these lattices."""
    errors: ErrorModel = NO_ERRORS
    """Of the next weights."""
    last_errors: ErrorModel = NO_ERRORS
    """With which the reference was formed."""

    @property
    def finished(self) -> bool:
        """Whether the models are final: `output_block` is next."""
        refined = self.settings.scale or self.settings.b_factor
        last = self.settings.max_cycles if refined else 1
        return self.cycle > last or (self.cycle > 1 and self.converged)

    @property
    def converged(self) -> bool:
        """Whether the last cycle changed next to nothing."""
        return self.change < TOLERANCE

    def arrays(self) -> Arrays:
        """Return all but the settings as named arrays; `from_arrays` takes them back."""
        parts: dict[str, Arrays] = {
            "beginning": self.beginning.arrays(),
            "unique": self.unique.arrays(),
            "reference": self.reference.arrays(),
            "errors": self.errors.arrays(),
            "last_errors": self.last_errors.arrays(),
        }
        named = {f"{part}.{name}": values for part, arrays in parts.items() for name, values in arrays.items()}
        numbers = np.array([self.cycle, self.change, self.given], dtype=np.float64)
        return named | {"typical": self.typical, "gauge": self.gauge, "numbers": numbers}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], settings: Merge) -> CycleState:
        """Return what `arrays` came from."""

        def part(name: str) -> Arrays:
            return {key.partition(".")[2]: values for key, values in arrays.items() if key.startswith(f"{name}.")}

        cycle, change, given = arrays["numbers"].tolist()
        return cls(
            settings,
            Beginning.from_arrays(part("beginning")),
            UniqueReflections.from_arrays(part("unique")),
            arrays["typical"],
            Reference.from_arrays(part("reference")),
            arrays["gauge"],
            int(cycle),
            change,
            bool(given),
            ErrorModel.from_arrays(part("errors")),
            ErrorModel.from_arrays(part("last_errors")),
        )


def start(unique: UniqueReflections, beginning: Beginning, settings: Merge) -> CycleState:
    """Return the state before anything is merged."""
    limits = (float(beginning.limits[0]), float(beginning.limits[1]))
    typical = beginning.shell_means[resolution_bins(unique.inverse_d2, SHELLS, limits)] if len(unique) else np.zeros(0)
    reference = Reference.nothing(typical, settings.outlier_cut)
    errors = ErrorModel.initial(*settings.first_errors)
    return CycleState(settings, beginning, unique, typical, reference, np.zeros(2), errors=errors, last_errors=errors)


def begin_block(block: LatticeBlock, state: CycleState) -> LatticeModels:
    """Return models of the lattices from nothing but their own intensities, by Wilson's statistics."""
    settings, beginning = state.settings, state.beginning
    gaussian = settings.partiality == "gaussian"
    width = np.tile(beginning.widths if gaussian else np.ones(2), (block.n_lattices, 1))
    models = initial_models(np.ones(block.n_lattices), width)
    _, partiality = factors(block, models, state)
    shells = beginning.shells(state.unique.inverse_d2)[block.group]
    keep = partiality >= _smallest(settings)
    scale = replay_scales(
        block.intensity[keep].astype(np.float64),
        (block.variance_fixed + block.variance_gain * np.maximum(block.intensity, 0.0))[keep].astype(np.float64),
        partiality[keep].astype(np.float64),
        block.lattice[keep],
        shells[keep],
        block.n_lattices,
        beginning.means,
        beginning.typical,
    )
    return initial_models(scale, width)


def refine_block(block: LatticeBlock, models: LatticeModels, state: CycleState) -> LatticeModels:
    """Return better models; a lattice that would not fit better keeps its own.

    ``models`` are those with which the block went into the state's reference: each lattice is compared to the others.
    """
    settings, reference = state.settings, state.reference
    parameters = models.parameters
    n = parameters.shape[1]
    free = np.zeros(n, dtype=bool)
    free[0], free[1] = settings.scale, settings.scale and settings.b_factor and state.cycle > 1
    precision = np.zeros(n)
    precision[0], precision[1] = 1.0 / SCALE_RESTRAINT**2, 1.0 / settings.b_restraint**2
    prior = np.zeros_like(parameters)
    prior[:, 0], prior[:, 4:N_FIXED] = models.start[:, 0], models.start[:, 1:]
    refined, cc, n_used = refine_lattices(
        block.starts,
        block.group,
        block.intensity,
        block.variance_fixed,
        block.variance_gain,
        block.excitation,
        derivatives(block, models),
        block.partiality,
        models.used,
        state.unique.inverse_d2,
        reference.intensity,
        reference.weight,
        reference.last_expected,
        reference.last_limit,
        state.typical,
        not state.given,
        parameters,
        prior,
        precision,
        free,
        state.errors.terms,
        state.last_errors.terms,
        _smallest(settings),
        KINDS[settings.partiality],
        ROBUST,
        ROUNDS,
    )
    new = replace(models.with_parameters(refined), cc=cc, n_used=n_used)
    if settings.min_lattice_cc is not None and state.cycle > 1:
        with np.errstate(invalid="ignore"):
            new = new.without(cc < settings.min_lattice_cc, Reason.CORRELATION)
    return new


def accumulate_block(block: LatticeBlock, models: LatticeModels, state: CycleState) -> Sums:
    """Return the sums over a block's observations that make the next reference; those of all blocks are added."""
    sums, merged = _add(block, models, state, np.zeros(len(block), dtype=np.uint8), 1)
    n = np.bincount(block.lattice[merged], minlength=block.n_lattices).astype(np.float64)
    gauge = np.array([n.sum(), n @ np.log(models.scale), n @ models.b_factor])
    flat = {name: values[:, 0] if values.ndim == 2 else values for name, values in sums.items()}
    sample = _error_sample(block, models, state) if _fits_errors(state) else {}
    return flat | sample | {"gauge": gauge, "n_used": np.array([np.count_nonzero(models.used), len(models)])}


def _fits_errors(state: CycleState) -> bool:
    """Return whether this cycle's sums give an error model: not the first ones, whose scales are guesses."""
    return state.settings.fits_errors and state.cycle > 0


def _error_sample(block: LatticeBlock, models: LatticeModels, state: CycleState) -> Sums:
    """Return what `fit_errors` wants of a block."""
    full, partiality = factors(block, models, state)
    columns = (block.intensity, block.variance_fixed, block.variance_gain, full, partiality)
    plan = _sample_plan(state)
    plus = (block.isym % 2 == 1) | state.unique.centric[block.group]
    identity = (block.unit.astype(np.int64) << 32) + block.number
    quality, smallest = np.ones(len(models)), _smallest(state.settings)
    return sample_sums(plan, identity, block.starts, block.group, columns, quality, models.used, plus, smallest)


def _sample_plan(state: CycleState) -> SamplePlan:
    return SamplePlan.of(state.reference.count, state.unique.centric)


def advance(state: CycleState, sums: Sums) -> CycleState:
    """Return the state of the next cycle, from the sums over all blocks."""
    new = state.reference.next(sums, state.typical, state.settings.outlier_cut)
    both = (new.weight > 0) & (state.reference.weight > 0)
    moved = np.abs(new.intensity - state.reference.intensity)[both].sum()
    total = np.abs(new.intensity[both]).sum()
    change = float(moved / total) if state.cycle and total > 0 else np.inf
    gauge = sums["gauge"][1:] / max(float(sums["gauge"][0]), 1.0)
    errors = state.errors
    if _fits_errors(state):
        errors = fit_errors(sums["sample"], _sample_plan(state), new.intensity, errors, state.settings.outlier_cut)
    if state.given:
        new = replace(new, intensity=state.reference.intensity, weight=state.reference.weight)
    last, cycle = state.errors, state.cycle + 1
    return replace(state, reference=new, gauge=gauge, cycle=cycle, change=change, errors=errors, last_errors=last)


def derivatives(block: LatticeBlock, models: LatticeModels) -> NDArray[np.float32]:
    """Return the derivatives (n, 2 + k) of the excitation errors with rotations and strains."""
    shapes = np.zeros((models.strain.shape[1], 3, 3))
    out: NDArray[np.float32] = block_derivatives(block.starts, block.hkl, block.A, block.wavelength, shapes)
    return out


def factors(block: LatticeBlock, models: LatticeModels, state: CycleState) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return scale · exp(-B/2d²), and partiality, of each observation."""
    full, partiality = block_factors(
        block.starts,
        block.excitation,
        derivatives(block, models),
        block.partiality,
        block.group,
        state.unique.inverse_d2,
        models.parameters,
        KINDS[state.settings.partiality],
    )
    return full, partiality


def _add(
    block: LatticeBlock, models: LatticeModels, state: CycleState, column: NDArray[np.uint8], n_columns: int
) -> tuple[Sums, NDArray[np.bool_]]:
    """Return sums by unique reflection and column, and which observations are in them."""
    n, settings, reference = len(state.unique), state.settings, state.reference
    full, partiality = factors(block, models, state)
    weight, weighted = np.zeros((n, n_columns)), np.zeros((n, n_columns))
    squared, count = np.zeros(n), np.zeros((n, n_columns), dtype=np.int64)
    merged = np.zeros(len(block), dtype=bool)
    add_block(
        block.starts,
        block.group,
        block.intensity,
        block.variance_fixed,
        block.variance_gain,
        full,
        partiality,
        reference.expected,
        reference.limit,
        column,
        models.used,
        state.errors.terms,
        _smallest(settings),
        weight,
        weighted,
        squared,
        count,
        merged,
    )
    return {"weight": weight, "weighted": weighted, "squared": squared, "count": count}, merged


def _smallest(settings: Merge) -> float:
    return max(settings.min_partiality, SMALLEST_PARTIALITY)

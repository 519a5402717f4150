"""What a cycle does to the models of a block's lattices: their beginning, and refinement against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.cycle_state import CycleState
from xfelproc.algorithms.merging.lattice_block import LatticeBlock
from xfelproc.algorithms.merging.lattice_models import N_FIXED, LatticeModels, initial_models
from xfelproc.algorithms.merging.reference import Floats
from xfelproc.algorithms.merging.sample import SMALLEST_PARTIALITY
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.kernels.partiality import FULL, GAUSSIAN, GIVEN, LORENTZIAN, OVERLAP, Observed, block_derivatives, block_factors
from xfelproc.kernels.postrefinement import Priors
from xfelproc.kernels.postrefinement import refine_block as refine_lattices
from xfelproc.kernels.reference_sums import Means
from xfelproc.kernels.wilson_models import fit_block

KINDS = {"gaussian": GAUSSIAN, "lorentzian": LORENTZIAN, "overlap": OVERLAP, "model": GIVEN, "unity": FULL}
ROBUST = 3.0
"""Residual, in standard deviations, at which the Cauchy weight of an observation is halved."""
ROUNDS = 4
"""Steps of refinement a cycle at most."""
WILSON_ROUNDS = 8
SCALE_RESTRAINT = 0.3
"""Standard deviation of the log scales by Wilson's statistics: it holds lattices that share few reflections with others."""
LOOSE = 3.0
"""The same of the log scales about that of the mean lattice, before anything is known of a lattice."""
FIRST_B_CYCLE = 2
FIRST_CELL_CYCLE = 2


def begin_block(block: LatticeBlock, state: CycleState) -> LatticeModels:
    """Return models of the lattices from nothing but their own intensities, by Wilson's statistics."""
    settings, beginning, m = state.settings, state.beginning, block.n_lattices
    width = np.tile(beginning.widths if settings.fits_width else np.ones(2), (m, 1))
    models = initial_models(np.full(m, beginning.typical_scale), width, len(state.shapes))
    parameters = models.parameters
    n = parameters.shape[1]
    free, precision = np.zeros(n, dtype=bool), np.ones(n)
    free[0], free[4:N_FIXED] = True, settings.fits_width and settings.refines_partiality
    precision[0], precision[4:N_FIXED] = 1.0 / LOOSE**2, state.population.spread[4:N_FIXED] ** -2.0
    fitted = fit_block(
        block.starts,
        observed_of(block, models, state),
        state.unique.inverse_d2,
        state.typical,
        _shift(block),
        parameters,
        Priors(parameters, precision, free),
        KINDS[settings.partiality],
        WILSON_ROUNDS,
    )
    scale = np.exp(fitted[:, 0]) if settings.scale else np.ones(m)
    return initial_models(scale, np.exp(fitted[:, 4:N_FIXED]), len(state.shapes))


def refine_block(block: LatticeBlock, models: LatticeModels, state: CycleState) -> LatticeModels:
    """Return better models; a lattice that would not fit better keeps its own.

    ``models`` are those with which the block went into the state's reference: each lattice is compared to the others.
    """
    settings, reference, parameters = state.settings, state.reference, models.parameters
    refined, estimate, information, cc, n_used, quality = refine_lattices(
        block.starts,
        observed_of(block, models, state),
        models.used,
        models.quality,
        _shift(block),
        Means(
            reference.intensity,
            reference.weight,
            reference.factor,
            reference.last_expected,
            reference.last_limit,
            state.unique.inverse_d2,
            state.typical,
            state.prior.mean,
            state.prior.weight,
            state.prior.given,
        ),
        True,
        parameters,
        _priors(models, state),
        state.errors.terms,
        state.last_errors.terms,
        smallest_partiality(settings),
        KINDS[settings.partiality],
        ROBUST,
        ROUNDS,
    )
    if not settings.fits_errors:
        quality = np.ones(len(models))
    new = replace(
        models.with_parameters(refined), estimate=estimate, information=information, cc=cc, n_used=n_used, quality=quality
    )
    # where partiality is not refined all lattices fit badly: that tells nothing of one
    judged = settings.min_lattice_cc is not None or settings.refines_partiality
    return new.judged(settings.min_lattice_cc) if judged and state.cycle > 1 else new


def _priors(models: LatticeModels, state: CycleState) -> Priors:
    """Return what the lattices are restrained to: Wilson's scale, no B, what indexing gave, and the widths of the others."""
    settings, population = state.settings, state.population
    n = len(population.mean)
    free, value = np.zeros(n, dtype=bool), np.tile(population.mean, (len(models), 1))
    free[0], free[1] = settings.scale, settings.scale and settings.b_factor and state.cycle >= FIRST_B_CYCLE
    free[2:N_FIXED] = settings.refines_partiality
    free[N_FIXED:] = ~population.alike if state.cycle >= FIRST_CELL_CYCLE else False
    precision = population.spread**-2.0
    precision[0], value[:, 0] = 1.0 / SCALE_RESTRAINT**2, models.start[:, 0]
    if not (population.known and settings.refines_partiality):
        value[:, 4:N_FIXED] = models.start[:, 1:]
    return Priors(value, precision, free)


def observed_of(block: LatticeBlock, models: LatticeModels, state: CycleState) -> Observed:
    """Return the columns that the kernels take."""
    derivatives = block_derivatives(block.starts, block.hkl, block.A, block.wavelength, state.shapes)
    return Observed(
        block.group,
        block.intensity,
        block.variance_fixed,
        block.variance_gain,
        block.excitation,
        derivatives,
        block.partiality,
    )


def factors(block: LatticeBlock, models: LatticeModels, state: CycleState) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return scale · exp(-B/2d²) · w0/w, and partiality, of each observation; see `kernels.partiality`."""
    full, partiality = block_factors(
        block.starts,
        observed_of(block, models, state),
        state.unique.inverse_d2,
        _shift(block),
        models.parameters,
        KINDS[state.settings.partiality],
    )
    return full, partiality


def smallest_partiality(settings: Merge) -> float:
    """Return the partiality from which an observation is merged."""
    return max(settings.min_partiality, SMALLEST_PARTIALITY)


def _shift(block: LatticeBlock) -> Floats:
    """Return b λ / 4 of each lattice: times 1/d² it is half the distance of the Ewald spheres at the ends of the bandwidth."""
    return 0.25 * block.bandwidth * block.wavelength

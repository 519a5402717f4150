"""Post-refinement: a lattice's parameters against a reference.

The parameters of a lattice are log scale, B (Å²), rotations about x and y of the laboratory (radians), two log widths of
partiality, and relative changes of the reciprocal cell. ``starts`` (m + 1,) bounds the lattices of a block.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.error_model import observation_variance
from xfelproc.kernels.lattice_equations import equations, target
from xfelproc.kernels.partiality import N_FIXED, Observed, lattice_factors, part_of
from xfelproc.kernels.reference_sums import Compared, Means, lattice_variances, others
from xfelproc.kernels.small_matrices import solve_spd

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]
Rows = NDArray[np.int32]
Bools = NDArray[np.bool_]

TRIALS = 6
LARGEST_STEP = 2.0
GAIN_ENOUGH = 1e-2
"""Decrease of the target below which a lattice is refined no further."""

FEWEST_FOR_QUALITY = 20
MOST_QUALITY = 1e6
QUALITY_STEPS = 12
USUAL = 0.34432
"""Mean of z² / (1 + z²) of Gaussian z: 1 - √(π/2) exp(1/2) erfc(1/√2)."""
USUAL_SPREAD = 0.26473
"""Its standard deviation."""
CHANCE = 2.0
"""Standard deviations of the mean that chance does: where counting rules, a little more would ask for errors a thousandfold."""


class Priors(NamedTuple):
    """What the parameters (m, p) are restrained to, the inverse variances of that (p,), and which are refined (p,)."""

    value: Floats
    precision: Floats
    free: Bools


@njit(cache=True, nogil=True)
def damped_step(normal: Floats, right: Floats, free: Bools, damping: float, step: Floats) -> bool:
    """Write the damped step of the free parameters to ``step``; return whether there is one."""
    n = right.shape[0]
    matrix = np.zeros((n, n))
    for u in range(n):
        step[u] = right[u] if free[u] else 0.0
        if not free[u]:
            matrix[u, u] = 1.0
            continue
        for v in range(n):
            if free[v]:
                matrix[u, v] = normal[u, v]
        matrix[u, u] = normal[u, u] * (1.0 + damping)
    return bool(solve_spd(matrix, step))


@njit(cache=True, nogil=True)
def bounded(step: Floats) -> None:
    """Shorten a step of log scale and log widths beyond which the equations mean nothing."""
    largest = max(abs(step[0]), abs(step[4]), abs(step[5]))
    if largest > LARGEST_STEP:
        step *= LARGEST_STEP / largest


@njit(cache=True, nogil=True)
def without_restraint(
    at: Floats, prior: Floats, priors: Priors, normal: Floats, right: Floats, estimate: Floats, information: Floats
) -> None:
    """Write what the observations say of each free parameter without its restraint, by the normal equations ``at`` parameters.

    The others are eliminated, with their restraints. Without information (0) there is no estimate.
    """
    n = at.shape[0]
    step, unit, unused = np.zeros(n), np.zeros(n), np.zeros(n)
    if not damped_step(normal, right, priors.free, 0.0, step):
        return
    bounded(step)
    for u in range(n):
        if not priors.free[u]:
            continue
        unit[:] = 0.0
        unit[u] = 1.0
        if not damped_step(normal, unit, priors.free, 0.0, unused):
            continue
        both = 1.0 / unused[u]
        own = both - priors.precision[u]
        if own > 1e-6 * both:
            information[u] = own
            estimate[u] = prior[u] + (at[u] + step[u] - prior[u]) * both / own


@njit(cache=True, nogil=True)
def refine_lattice(
    observed: Observed,
    compared: Compared,
    shift: float,
    parameters: Floats,
    prior: Floats,
    priors: Priors,
    quality: float,
    errors: Floats,
    kind: int,
    robust: float,
    rounds: int,
    full: Floats,
    part: Floats,
    estimate: Floats,
    information: Floats,
) -> int:
    """Refine the parameters of one lattice in place (Levenberg-Marquardt); return the number of steps that were taken.

    The variances are those of the model before each step, so that none is gained by expecting more noise; a step that makes the
    target worse is not taken. ``full`` and ``part`` are the factors under the parameters, and follow them; ``estimate`` and
    ``information`` become what `without_restraint` says.
    """
    n, m = parameters.shape[0], observed.intensity.shape[0]
    normal, right, step, columns = np.zeros((n, n)), np.zeros(n), np.zeros(n), np.empty((n, m))
    next_full, next_part = np.empty(m), np.empty(m)
    damping, taken = 1e-3, 0
    at = parameters.copy()
    for _ in range(rounds):
        at[:] = parameters
        lattice_variances(observed, full, part, quality, errors, compared)
        before = equations(
            observed,
            compared,
            shift,
            parameters,
            prior,
            priors.precision,
            kind,
            robust,
            priors.free,
            full,
            part,
            columns,
            normal,
            right,
        )
        after, trial, gain = math.inf, parameters, 0.0
        for _trial in range(TRIALS):
            if not damped_step(normal, right, priors.free, damping, step):
                break
            bounded(step)
            gain = float(0.5 * (step @ right))
            if gain < GAIN_ENOUGH:
                break
            trial = parameters + step
            lattice_factors(observed, compared.inverse_d2, shift, trial, kind, next_full, next_part)
            after = target(observed, compared, next_full, next_part, trial, prior, priors.precision, robust)
            if after < before:
                break
            damping *= 10.0
        if not after < before:
            break
        parameters[:] = trial
        full[:], part[:] = next_full, next_part
        taken += 1
        damping = max(0.1 * damping, 1e-6)
        if before - after < GAIN_ENOUGH:
            break
    without_restraint(at, prior, priors, normal, right, estimate, information)
    return taken


@njit(cache=True, nogil=True)
def _asinh(x: float) -> float:
    """Return asinh(x) to 1e-16 absolutely: the digits of small x that the library keeps cost three times as much."""
    return math.copysign(math.log(abs(x) + math.sqrt(1.0 + x * x)), x)


@njit(cache=True, nogil=True)
def compare_lattice(
    observed: Observed, compared: Compared, full: Singles, partiality: Singles, typical: Floats, min_partiality: float
) -> tuple[float, int]:
    """Return the correlation of a lattice to the mean of the others (NaN: fewer than 3), and the number of observations compared.

    Weighted, of x = asinh(I / k t) and y = asinh(J / t) where t is the ``typical`` intensity of the resolution: the fall with
    resolution does not correlate, and no outlier rules.
    """
    w = x = y = xx = xy = yy = 0.0
    n = 0
    for i in range(full.shape[0]):
        if math.isinf(compared.variance[i]) or partiality[i] < min_partiality:
            continue
        t = typical[observed.group[i]]
        k = np.float64(full[i]) * partiality[i]
        a, b = _asinh(observed.intensity[i] / (k * t)), _asinh(compared.mean[i] / t)
        weight = 1.0 / (compared.variance[i] / (k * k * t * t) + 0.01)
        w, x, y = w + weight, x + weight * a, y + weight * b
        xx, xy, yy = xx + weight * a * a, xy + weight * a * b, yy + weight * b * b
        n += 1
    if n < 3:
        return math.nan, n
    spread = (xx / w - (x / w) ** 2) * (yy / w - (y / w) ** 2)
    return (xy / w - x * y / (w * w)) / math.sqrt(spread) if spread > 0.0 else math.nan, n


@njit(cache=True, nogil=True)
def lattice_quality(
    observed: Observed, compared: Compared, full: Singles, partiality: Singles, errors: Floats, min_partiality: float
) -> float:
    """Return the factor on the model's part of the variances that makes the residuals of a lattice usual, at least 1.

    That is where the mean of z² / (1 + z²) is what it is for Gaussian z: an M-estimate of scale (Huber 1981, Robust Statistics,
    ch. 5), which single outliers do not move. What chance does is taken from it, and 1: the lattices that are a bit worse than
    others are what the errors of all were fitted to.
    """
    n = full.shape[0]
    square, counting, model = np.empty(n), np.empty(n), np.empty(n)
    m = 0
    for i in range(n):
        if math.isinf(compared.variance[i]) or partiality[i] < min_partiality:
            continue
        k = np.float64(full[i]) * partiality[i]
        square[m] = (observed.intensity[i] - k * compared.mean[i]) ** 2
        own = observation_variance(observed.fixed[i], observed.gain[i], full[i], partiality[i], compared.mean[i], 0.0, errors)
        whole = observation_variance(observed.fixed[i], observed.gain[i], full[i], partiality[i], compared.mean[i], 1.0, errors)
        counting[m], model[m] = own + k * k / compared.weight[i], whole - own
        m += 1
    if m < FEWEST_FOR_QUALITY:
        return 1.0
    usual = USUAL * m + CHANCE * USUAL_SPREAD * math.sqrt(m)
    low, high = math.log(2.0), math.log(MOST_QUALITY)
    for step in range(QUALITY_STEPS + 1):
        # the first look is at 2, below which all lattices have 1: most are there
        middle = 0.5 * (low + high) if step else low
        q, total = math.exp(middle), 0.0
        for i in range(m):
            total += square[i] / (square[i] + counting[i] + q * model[i])
        if total > usual:
            low = middle
        elif step == 0:
            return 1.0
        else:
            high = middle
    return max(1.0, math.exp(0.5 * (low + high)) - 1.0)


@njit(cache=True, nogil=True)
def settle(parameters: Floats, prior: Floats, free: Bools) -> bool:
    """Take strains that are not refined any more for what they are restrained to; return whether that changes them."""
    moved = False
    for u in range(N_FIXED, parameters.shape[0]):
        if not free[u] and parameters[u] != prior[u]:
            parameters[u] = prior[u]
            moved = True
    return moved


@njit(cache=True, nogil=True)
def refine_block(
    starts: Ints,
    observed: Observed,
    used: Bools,
    quality: Floats,
    shift: Floats,
    means: Means,
    leave_out: bool,
    parameters: Floats,
    priors: Priors,
    errors: Floats,
    last_errors: Floats,
    min_partiality: float,
    kind: int,
    robust: float,
    rounds: int,
) -> tuple[Floats, Floats, Floats, Floats, Rows, Floats]:
    """Return refined parameters (m, 6 + strains), what each lattice says of them by itself with its information, correlation of
    each lattice, number of observations compared, and quality.

    With ``leave_out`` the parameters given are those that the lattices had in the reference, and each lattice's own part is taken
    out. ``errors`` are those of the present, ``last_errors`` those that the weights of the reference were formed with. Of the step
    of scale and B only the others' share is taken: two lattices that see each other alone would exchange them for ever.
    """
    m = starts.shape[0] - 1
    out, estimate, information = parameters.copy(), np.zeros_like(parameters), np.zeros_like(parameters)
    cc, n_used, better = np.full(m, np.nan), np.zeros(m, dtype=np.int32), np.ones(m)
    for j in range(m):
        size = starts[j + 1] - starts[j]
        if size == 0:
            continue
        own = part_of(observed, starts[j], starts[j + 1])
        compared = Compared(np.empty(size, dtype=np.float32), np.empty(size), np.empty(size), np.empty(size))
        for i in range(size):
            compared.inverse_d2[i] = means.inverse_d2[own.group[i]]
        full, part = np.empty(size, dtype=np.float32), np.empty(size, dtype=np.float32)
        lattice_factors(own, compared.inverse_d2, shift[j], parameters[j], kind, full, part)
        share = others(own, full, part, means, last_errors, quality[j], min_partiality, leave_out and used[j], compared)
        fine_full, fine_part = full.astype(np.float64), part.astype(np.float64)
        if settle(out[j], priors.value[j], priors.free):
            lattice_factors(own, compared.inverse_d2, shift[j], out[j], kind, fine_full, fine_part)
        refine_lattice(
            own,
            compared,
            shift[j],
            out[j],
            priors.value[j],
            priors,
            quality[j],
            errors,
            kind,
            robust,
            rounds,
            fine_full,
            fine_part,
            estimate[j],
            information[j],
        )
        for u in range(2):
            out[j, u] -= share * (out[j, u] - parameters[j, u])
        lattice_factors(own, compared.inverse_d2, shift[j], out[j], kind, full, part)
        lattice_variances(own, full, part, quality[j], errors, compared)
        cc[j], n_used[j] = compare_lattice(own, compared, full, part, means.typical, min_partiality)
        better[j] = lattice_quality(own, compared, full, part, errors, min_partiality)
    return out, estimate, information, cc, n_used, better

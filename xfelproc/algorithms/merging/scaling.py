"""Scaling of all observations as passes over buckets of reflections, and what is decided between them.

A pass (`run_pass`) sees the observations of some whole unique reflections and the state, and returns sums over lattices and
values of its reflections; `add` joins the results of buckets in their order, and `advance` makes the next state of the result of
all. Whether the buckets are one array in memory or files that workers read makes no difference but for the rounding of sums.

Scaling, then outliers, then scaling without them, twice; lattices that do not correlate leave after the first scaling.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.lattice_scales import (
    FIRST_B_CYCLE,
    TOLERANCE,
    Columns,
    LatticeScales,
    Means,
    correlation_sums,
    correlations,
    equations,
    form_means,
    step,
    typical_intensities,
)
from xfelproc.algorithms.merging.outliers import (
    OUTLIER_ROUNDS,
    SPREAD_SHELLS,
    chi_squared,
    possible,
    spread_by_bin,
    without_outliers,
)
from xfelproc.algorithms.merging.partiality import resolution_bins, volume_limits
from xfelproc.algorithms.merging.sample import Beginning
from xfelproc.algorithms.merging.settings import Merge

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Partial = dict[str, NDArray[Any]]

SUMS = ("weights", "sums", "pairs", "changed")
"""Results of a pass that add up; all others are of the bucket's reflections or rows, and follow one another."""


class Phase(IntEnum):
    """Which pass is next."""

    START = 0
    CYCLE = 1
    MEANS = 2
    CORRELATE = 3
    JUDGE = 4
    FINAL = 5
    OUTPUT = 6


@dataclass(frozen=True)
class ScaleState:
    """What a pass must know beside its bucket: (n_lattices,), (n_groups,) over all buckets, (n_bins,) or scalars.

    ``values`` are the means of the reflections from which the next are formed, ``forms`` how many times more under the present
    scales. ``expected`` are the log scales to restrain to, ``weights`` the observations of each lattice; ``first`` the mean
    intensities of Wilson's shells; ``inflation``, ``spread`` and ``typical`` are by bin of resolution, between ``limits`` (1/Å³).
    """

    scale: Floats
    b_factor: Floats
    expected: Floats
    weights: Floats
    used: Bools
    first: Floats
    values: Floats
    inverse_d2: Floats
    limits: Floats
    inflation: Floats
    spread: Floats
    typical: Floats
    phase: int = Phase.START
    round: int = 0
    cycle: int = 0
    forms: int = 0
    converged: bool = True

    @property
    def scales(self) -> LatticeScales:
        """Scales and B."""
        return LatticeScales(self.scale, self.b_factor)

    def arrays(self) -> Partial:
        """Return it as named arrays; `from_arrays` takes them back."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Partial) -> ScaleState:
        """Return the state that `arrays` came from."""
        plain: dict[str, Any] = {name: values.item() if values.ndim == 0 else values for name, values in arrays.items()}
        return cls(**plain)


@dataclass(frozen=True)
class Masks:
    """Of the observations of a bucket: which could be true at all, and which are merged."""

    possible: Bools
    active: Bools


def initial_state(scale: Floats, counts: NDArray[np.int64], beginning: Beginning, settings: Merge) -> ScaleState:
    """Return the state before the first pass.

    Parameters
    ----------
    scale
        (n_lattices,) Wilson's, see `sample.starting_scales`.
    counts
        (n_lattices,) observations of each.
    beginning
        From the sample.
    settings
        Whether to scale at all.
    """
    norm = float(np.exp(np.average(np.log(scale), weights=counts))) if counts.sum() else 1.0
    start = np.where(counts > 0, scale / norm, 1.0) if settings.scale else np.ones(len(scale))
    nothing = np.zeros(0)
    return ScaleState(
        scale=start,
        b_factor=np.zeros(len(scale)),
        expected=np.log(start),
        weights=counts.astype(np.float64),
        used=np.ones(len(scale), dtype=bool),
        first=norm * beginning.shell_means,
        values=nothing,
        inverse_d2=nothing,
        limits=np.zeros(2),
        inflation=np.ones(SPREAD_SHELLS),
        spread=np.ones(SPREAD_SHELLS),
        typical=np.ones(SPREAD_SHELLS),
    )


def run_pass(
    columns: Columns, masks: Masks | None, state: ScaleState, groups: slice, beginning: Beginning, settings: Merge
) -> tuple[Partial, Masks | None]:
    """Return the result of the state's pass over a bucket, and the bucket's masks if they changed.

    Parameters
    ----------
    columns
        The bucket's observations, all active.
    masks
        From the last pass that gave some; None before the first.
    state
        The present one; its phase is not OUTPUT.
    groups
        Where the bucket's reflections are among those of all buckets.
    beginning, settings
        As of the run.
    """
    if state.phase == Phase.START or masks is None:
        return _start(columns, state, beginning, settings)
    active = columns.without(masks.active)
    values = state.values[groups]
    for _ in range(state.forms):
        values = form_means(active, state.scales, values, settings).value
    means = form_means(active, state.scales, values, settings)
    if state.phase == Phase.CYCLE:
        return {"sums": equations(active, means), "values": means.value}, None
    if state.phase == Phase.CORRELATE:
        sums, pairs = correlation_sums(active, means, by_group(state.typical, columns, state))
        return {"sums": sums, "pairs": pairs}, None
    if state.phase == Phase.JUDGE:
        return _judge(active, masks, means, state, settings)
    return {"values": values, "means": means.value, "chi2": chi_squared(active, means), "count": means.count}, None


def by_group(by_bin: Floats, columns: Columns, state: ScaleState) -> Floats:
    """Return values (n_groups,) of what is given by bin of resolution."""
    limits = (float(state.limits[0]), float(state.limits[1]))
    return by_bin[resolution_bins(columns.inverse_d2[columns.starts[:-1]], len(by_bin), limits)]


def _weights(columns: Columns, active: Bools) -> NDArray[np.int64]:
    return np.bincount(columns.lattice[active], minlength=columns.n_lattices)


def _start(columns: Columns, state: ScaleState, beginning: Beginning, settings: Merge) -> tuple[Partial, Masks]:
    inverse_d2 = columns.inverse_d2[columns.starts[:-1]]
    first = state.first[beginning.shells(inverse_d2)]
    true = possible(columns, state.scales, first, settings)
    values = form_means(columns.without(true), state.scales, first, settings).value
    return {"values": values, "inverse_d2": inverse_d2, "weights": _weights(columns, true)}, Masks(true, true)


def _judge(active: Columns, masks: Masks, means: Means, state: ScaleState, settings: Merge) -> tuple[Partial, Masks]:
    allowed = masks.possible & state.used[active.lattice]
    keep = without_outliers(active, means, allowed, by_group(state.inflation, active, state), settings)
    changed = np.asarray(np.count_nonzero(keep != masks.active))
    return {"changed": changed, "weights": _weights(active, keep)}, Masks(masks.possible, keep)


def add(first: Partial, second: Partial) -> Partial:
    """Return the result of two consecutive (runs of) buckets."""
    return {name: a + second[name] if name in SUMS else np.concatenate([a, second[name]]) for name, a in first.items()}


def advance(state: ScaleState, result: Partial, settings: Merge) -> ScaleState:
    """Return the state after a pass over all buckets."""
    phase = Phase(state.phase)
    if phase == Phase.START:
        limits = np.array(volume_limits(result["inverse_d2"]))
        weights = result["weights"].astype(np.float64)
        state = replace(state, values=result["values"], inverse_d2=result["inverse_d2"], weights=weights, limits=limits)
        return _scale_again(state, settings)
    if phase == Phase.CYCLE:
        return _after_cycle(state, result, settings)
    if phase in (Phase.MEANS, Phase.FINAL):
        return _after_means(state, result, settings)
    if phase == Phase.CORRELATE:
        used = ~(correlations(result["sums"], result["pairs"]) < (settings.min_lattice_cc or 0.0))
        return replace(state, used=used, phase=Phase.JUDGE)
    if not result["changed"]:
        return replace(state, phase=Phase.FINAL, forms=1)
    state = replace(state, weights=result["weights"].astype(np.float64), round=state.round + 1)
    return _scale_again(state, settings)


def _scale_again(state: ScaleState, settings: Merge) -> ScaleState:
    """Return the state at the beginning of some cycles; without scaling there are none."""
    if not settings.scale:
        return replace(state, phase=Phase.MEANS, forms=0)
    return replace(state, phase=Phase.CYCLE, cycle=0, forms=1, expected=np.log(state.scale))


def _after_cycle(state: ScaleState, result: Partial, settings: Merge) -> ScaleState:
    with_b = settings.b_factor and state.cycle >= FIRST_B_CYCLE
    restraint = settings.b_restraint if with_b else None
    scales, largest = step(state.scales, result["sums"], state.weights, state.expected, restraint)
    state = replace(state, scale=scales.scale, b_factor=scales.b_factor, values=result["values"], forms=0, cycle=state.cycle + 1)
    converged = largest < TOLERANCE and (with_b or not settings.b_factor)
    if converged or state.cycle == settings.max_cycles:
        return replace(state, phase=Phase.MEANS, forms=1, converged=converged)
    return state


def _after_means(state: ScaleState, result: Partial, settings: Merge) -> ScaleState:
    limits = (float(state.limits[0]), float(state.limits[1]))
    spread, inflation = spread_by_bin(result["chi2"], result["count"], state.inverse_d2, limits)
    typical = typical_intensities(result["means"], state.inverse_d2, limits)
    final = state.phase == Phase.FINAL
    state = replace(state, values=result["values"], forms=0, spread=spread, inflation=inflation, typical=typical)
    if final:
        return replace(state, phase=Phase.OUTPUT)
    if state.round == 0 and settings.min_lattice_cc is not None:
        return replace(state, phase=Phase.CORRELATE)
    if state.round == OUTLIER_ROUNDS:
        return replace(state, phase=Phase.FINAL, forms=1)
    return replace(state, phase=Phase.JUDGE)

"""From the sums of a pass to the next place of the panels: level by level, with steps that must bring the loss down."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.metrology.accumulate import SMALL_DECREASE, Partial, quantile_of, unpacked
from xfelproc.algorithms.metrology.precision import half_moves, uncertainty
from xfelproc.algorithms.metrology.settings import MetrologySettings
from xfelproc.algorithms.metrology.solve import LevelFrame, Solution, level_frame, solve_level
from xfelproc.algorithms.metrology.state import LevelOutcome, MetrologyState, Step
from xfelproc.errors import ConfigError
from xfelproc.geometry.hierarchy import apply_moves, distinct_levels, groups_of, moves_between, n_levels
from xfelproc.models.experiment import Beam, Detector

Floats = NDArray[np.float64]
_FIRST_BOUND, _FIRST_PSI_BOUND = 40.0, 10.0
_RAYLEIGH_MEDIAN, _NORMAL_MEDIAN = 1.17741, 0.67449
_COMMON_WEIGHT = 20.0  # spots that the bound of all panels counts for on each
_BOUND_CHANGE = 0.02
_BLEND_CHANGE = 1.0
"""Change of the blend, in its standard deviations, that is worth a change of the loss."""
_MOST_BLEND = 1e4
_BOUND_PASSES = 2
"""Passes of a level after which the bounds change: then the loss is a function of the detector alone."""
_LOSS_NOISE = 1e-9
"""Relative rise of the loss that is no failure, beside what each lattice is brought to its optimum to."""
_NEARLY = 1.0
"""Step, in standard deviations, at which a level that gets no further is as good as done."""
_COARSE_DECREASE = 1e-3
"""Part of the loss that a step at a level must promise, where a finer level follows."""
_SPREAD_PASSES = 3
"""Passes at a level after which the spread of its moves stays: steps settle only if what they bring down is one function."""
_LEAST_CURVATURE = 0.55
"""Of the Hessian by the normal matrix: that is a majoriser, whose step may be up to twice as long and never raises the loss."""
_MOST_TRIALS = 4
_TRIALS_NEARLY = 2
"""Trials of a step within the uncertainties."""
_SHORTER = 0.25


def begin(settings: MetrologySettings, detector: Detector, beam: Beam, origin: Detector | None = None) -> MetrologyState:
    """Return the state before the first pass.

    ``origin`` (None: ``detector``) is where the panels were before any refinement.

    Raises
    ------
    ConfigError
        If a level is asked for that the detector has not, or the levels do not ascend.
    """
    levels = settings.levels or distinct_levels(detector)
    if list(levels) != sorted(set(levels)) or levels[-1] >= n_levels(detector):
        raise ConfigError(
            f"metrology.levels = {list(levels)}: they must ascend, and the detector has levels 0 to {n_levels(detector) - 1}"
        )
    groups_of(detector, levels[-1])
    bounds = np.full(len(detector) + 1, np.inf)
    if settings.outliers != "none":
        bounds[:-1], bounds[-1] = _FIRST_BOUND, _FIRST_PSI_BOUND
    state = MetrologyState(detector, detector, beam, tuple(levels), 0, bounds, bounds, origin=origin)
    return replace(state, level_start=_followed(state, detector), level_entry=detector)


def _followed(state: MetrologyState, here: Detector) -> Detector:
    """Return where the level's groups would be if, from the origin, they had only followed the level above, as it is ``here``."""
    origin = state.origin
    if origin is None or state.at == len(state.levels):
        return here
    upper = state.levels[state.at - 1] if state.at else 0
    if upper == state.level:
        return here
    above = groups_of(origin, upper)
    return apply_moves(origin, above, moves_between(origin, here, above))


def advance(settings: MetrologySettings, state: MetrologyState, partial: Partial) -> MetrologyState:
    """Return the state after a pass: a step at this level, a shorter one after one that failed, or the next level, or the end."""
    totals = partial["totals"].sum(axis=0)
    if totals[9] < settings.min_crystals:
        why = (
            f"{int(totals[9])} lattices of at least {settings.min_crystal_spots} indexed spots, and metrology.min_crystals = "
            f"{settings.min_crystals}: the detector is left as it was"
        )
        return replace(state, detector=state.start, finished=True, why=why)
    first = state.before.size == 0
    state = replace(
        state, before=partial["statistics"] if first else state.before, after=partial["statistics"], passes=state.passes + 1
    )
    loss = float(totals[0])
    fall = state.accepted_loss - float(totals[1]) - _restraint_change(state) if state.step.size else float("nan")
    if fall < -(SMALL_DECREASE * totals[9] + _LOSS_NOISE * loss):
        return _shorten(_noted(state, partial, loss, float("nan"), fall))
    if state.trials and not np.any(state.step):
        # back where the step began, which was within the uncertainties
        state = replace(state, passes=settings.max_iterations)
    state = replace(state, accepted=state.detector, accepted_loss=loss, trials=0, step=np.zeros(0))
    state = _bounded(settings, state, partial)
    if first and settings.sigma_psi == 0.0:
        used = partial["statistics"].sum(axis=0)
        # other weights: this loss is not comparable to the next one
        state = replace(state, psi_common=float(np.sqrt(used[11] / max(1.0, used[1]))), accepted_loss=float("inf"))
    return _propose(settings, state, partial, loss, fall)


def _restraint_change(state: MetrologyState) -> float:
    """Return by how much the last step, shortened as often as it was, changed the restraint's loss."""
    first, second = state.restraint
    part = _SHORTER**state.trials if np.any(state.step) else 0.0
    return part * first + 0.5 * part**2 * second


def _noted(state: MetrologyState, partial: Partial, loss: float, step: float, fall: float) -> MetrologyState:
    used, totals = partial["statistics"].sum(axis=0), partial["totals"].sum(axis=0)
    n = max(1.0, used[1])
    note = Step(
        state.level,
        int(totals[9]),
        int(used[0]),
        int(used[1]),
        loss,
        float(np.sqrt((used[4] + used[5]) / n)),
        float(np.degrees(np.sqrt(used[11] / n))),
        step,
        fall if np.isfinite(fall) else float("nan"),
        not np.isnan(step),
    )
    return replace(state, steps=(*state.steps, note))


def _bounded(settings: MetrologySettings, state: MetrologyState, partial: Partial) -> MetrologyState:
    """Return the state with bounds from the histograms of the pass, where they differ from those in use."""
    state = _blended(settings, state, partial)
    if settings.outliers == "none" or state.passes > _BOUND_PASSES:
        return replace(state, reference=state.bounds)
    scale = _panel_medians(partial) / _RAYLEIGH_MEDIAN
    bounds = settings.outlier_limit * np.append(scale, quantile_of(partial["psi_histogram"]) / _NORMAL_MEDIAN)
    if np.all(np.abs(bounds - state.bounds) <= _BOUND_CHANGE * state.bounds):
        return replace(state, reference=state.bounds)
    # lattices come to other optima under other bounds: the next loss is not comparable to this one, with whatever bounds
    return replace(state, bounds=bounds, reference=state.bounds, accepted_loss=float("inf"))


def _blended(settings: MetrologySettings, state: MetrologyState, partial: Partial) -> MetrologyState:
    """Return the state with a better blend, by Gauss-Newton's step, in the passes after which bounds change."""
    totals = partial["totals"].sum(axis=0)
    if settings.prediction != "auto" or state.passes > _BOUND_PASSES or not totals[13] > 0.0:
        return state
    step = float(totals[12] / totals[13])
    if abs(step) * np.sqrt(totals[13]) < _BLEND_CHANGE:
        return state
    blend = float(np.clip(state.blend + step, -_MOST_BLEND, _MOST_BLEND))
    return replace(state, blend=blend, accepted_loss=float("inf"))


def _panel_medians(partial: Partial) -> Floats:
    """Return the median normalised residual of each panel; that of panels of few spots is drawn to that of all."""
    counts, common = partial["histogram"], quantile_of(partial["histogram"].sum(axis=0))
    n = counts.sum(axis=1)
    own = np.array([quantile_of(row) if row.any() else common for row in counts])
    return np.asarray(np.sqrt((n * own**2 + _COMMON_WEIGHT * common**2) / (n + _COMMON_WEIGHT)), dtype=np.float64)


def _group_noise(frame: LevelFrame, partial: Partial) -> Floats:
    """Return (groups) the variance of the residuals on a group by that of all, where it is larger."""
    n_used = partial["statistics"][:, 1]
    squares = (_panel_medians(partial) / quantile_of(partial["histogram"].sum(axis=0))) ** 2
    panels = [list(group.panels) for group in frame.groups]
    noise = [np.average(squares[p], weights=n_used[p]) if n_used[p].any() else 1.0 for p in panels]
    return np.maximum(1.0, noise)


def _shorten(state: MetrologyState) -> MetrologyState:
    """Return the state with a shorter step from the last place that was good; with none if that has been tried often enough.

    If the step promised more than the uncertainties, that is the end.
    """
    assert state.accepted is not None  # there is a step, so there was a place it began
    promised = next(step.step for step in reversed(state.steps) if step.accepted)
    if state.trials >= _MOST_TRIALS and promised > _NEARLY:
        return _diverged(state, f"no step brings the loss down at level {state.level}, however short")
    over = promised <= _NEARLY and state.trials >= _TRIALS_NEARLY
    step = 0.0 * state.step if over else _SHORTER * state.step
    detector = state.accepted if over else apply_moves(state.accepted, groups_of(state.accepted, state.level), step)
    return replace(state, detector=detector, step=step, trials=state.trials + 1)


def _diverged(state: MetrologyState, what: str) -> MetrologyState:
    kept = state.outcomes[-1].detector if state.outcomes else state.start
    where = f"as it was after level {state.outcomes[-1].level}" if state.outcomes else "as it was"
    return replace(state, detector=kept, finished=True, why=f"{what}: the detector is left {where}")


def _propose(settings: MetrologySettings, state: MetrologyState, partial: Partial, loss: float, fall: float) -> MetrologyState:
    """Return the state with the step of the level; where that is below the tolerance, of the next level, or the end."""
    # under bounds that still change, and at coarse levels, residuals are errors of the geometry: the plain step is the safer one
    newton = state.at + 1 == len(state.levels) and state.passes > _BOUND_PASSES
    scale, curvature = variance_scale(partial, newton)
    normals = [curvature * unpacked(packed) for packed in partial["normal"]]
    gradients = partial["gradient"]
    normal, gradient = normals[0] + normals[1], gradients[0] + gradients[1]
    n_used = partial["statistics"][:, 1].astype(np.int64)
    here = state.detector
    finest = groups_of(here, state.finest)
    while True:
        frame = level_frame(settings, here, state.beam, state.level, finest, n_used, state.spread, normals)
        level_start = state.level_start or here
        origin = state.origin or state.start
        moved = moves_between(origin, here, groups_of(origin, state.level)).ravel()
        if len(frame.own) == 0 or not np.all(np.isfinite(gradient)):
            return _diverged(_noted(state, partial, loss, 0.0, fall), f"there is nothing to refine at level {state.level}")
        solution = solve_level(frame, normal, gradient, scale, moved, state.spread, state.passes <= _SPREAD_PASSES)
        step = float(np.sqrt(2.0 * solution.decrease / (scale * len(frame.own))))
        coarse = state.at + 1 < len(state.levels)
        settled = step < settings.tolerance or (coarse and state.passes > 1 and solution.decrease < _COARSE_DECREASE * loss)
        if not settled and state.passes < settings.max_iterations:
            return _stepped(settings, _noted(state, partial, loss, step, fall), frame, solution)
        settled = settled or step < _NEARLY
        frame = frame.expecting(solution.spreads)
        astray = frame.astray(moved)
        if astray.any():  # the spreads are others than those by which they followed
            here, moved = apply_moves(here, frame.groups, astray.reshape(-1, 6)), moved + astray
            state = replace(state, detector=here, accepted=here)
        entered = state.level_entry or here
        change = moves_between(entered, here, groups_of(entered, state.level))
        own = moves_between(level_start, here, groups_of(level_start, state.level))
        outcome = _outcome(frame, solution, normals, list(gradients), moved, own, change, scale, partial, here, settled)
        notes = state.notes if settled else (*state.notes, f"level {state.level} has not settled in {state.passes} passes")
        state = replace(
            state,
            outcomes=(*state.outcomes, outcome),
            at=state.at + 1,
            passes=1,
            level_entry=here,
            spread=solution.spreads,
            notes=(*notes, *_tied_words(frame, outcome)),
        )
        state = replace(state, level_start=_followed(state, here))
        if state.at == len(state.levels):
            converged = all(o.converged for o in state.outcomes)
            why = "" if converged else "; ".join(notes)
            return _noted(replace(state, finished=True, converged=converged, why=why), partial, loss, step, fall)


def _stepped(settings: MetrologySettings, state: MetrologyState, frame: LevelFrame, solution: Solution) -> MetrologyState:
    """Return the state with the panels moved by a step, unless it is out of all proportion."""
    moves = solution.moves.reshape(-1, 6)
    if not np.all(np.isfinite(moves)) or np.abs(moves[:, :3]).max() > settings.max_shift or np.abs(moves[:, 3:]).max() > 0.5:
        furthest = int(np.argmax(np.abs(moves[:, :3]).max(axis=1)))
        return _diverged(
            state,
            f"at level {state.level} {frame.groups[furthest].name} would move by {np.abs(moves[furthest, :3]).max():.3g} mm "
            f"(metrology.max_shift = {settings.max_shift:g})",
        )
    detector = apply_moves(state.detector, frame.groups, moves)
    return replace(state, detector=detector, step=moves, spread=solution.spreads, restraint=solution.restraint)


def variance_scale(partial: Partial, newton: bool) -> tuple[float, float]:
    """Return what to multiply the inverse of the loss's Hessian by, and the normal matrix to have that Hessian (Huber 1981, ch. 7).

    The covariance of an M-estimate is <ψ²>/<ψ'>² times the inverse of the unweighted information N₀; the Hessian is <ψ'> N₀, and
    the normal matrix here, with weights of mean <w>, is <w> N₀. So these are <ψ²>/<ψ'> and <ψ'>/<w>; without ``newton`` the
    normal matrix stays as it is.
    """
    totals = partial["totals"].sum(axis=0)
    n = 2.0 * totals[10]
    square, weight, slope = totals[2] / n, totals[3] / n, totals[4] / n
    freedom = max(0.1, 1.0 - totals[8] / (3.0 * totals[10]))
    slope = max(slope, _LEAST_CURVATURE * weight)
    if not newton:
        return float(square * weight / slope**2 / freedom), 1.0
    return float(square / slope / freedom), float(slope / weight)


def _outcome(
    frame: LevelFrame,
    solution: Solution,
    normals: list[Floats],
    gradients: list[Floats],
    moved: Floats,
    own: Floats,
    change: Floats,
    scale: float,
    partial: Partial,
    detector: Detector,
    settled: bool,
) -> LevelOutcome:
    """Return what a level came to, with the uncertainties of its moves: ``moved`` in all, ``own`` beside the level above."""
    followed = _tied_variance(frame, own.ravel())
    noise = _group_noise(frame, partial)
    known = uncertainty(frame, solution, scale, followed, noise)
    halves = half_moves(frame, solution, normals, gradients, moved)
    shape = (len(frame.groups), 6)
    n_used = partial["statistics"][:, 1]
    difference, half_sigma = known.projector @ (halves[0] - halves[1]), np.sqrt(known.halves)
    own_rows = np.repeat(~frame.tied, 6) & (half_sigma > 0.0)
    excess = float(np.mean((difference[own_rows] / half_sigma[own_rows]) ** 2)) if own_rows.any() else 1.0
    if excess > 1.0:
        known = uncertainty(frame, solution, excess * scale, followed, noise)
    return LevelOutcome(
        level=frame.level,
        detector=detector,
        names=tuple(group.name for group in frame.groups),
        n_panels=np.array([len(group.panels) for group in frame.groups], dtype=np.int32),
        n_spots=np.array([n_used[list(group.panels)].sum() for group in frame.groups], dtype=np.int64),
        tied=frame.tied,
        moves=own,
        change=change,
        sigma=np.sqrt(known.moves).reshape(shape),
        sigma_internal=np.sqrt(known.internal).reshape(shape),
        sigma_centre=np.sqrt(known.centres).reshape(-1, 2),
        sigma_ray=np.sqrt(known.rays).reshape(-1, 2),
        half_difference=difference.reshape(shape),
        half_sigma=half_sigma.reshape(shape),
        scale=scale,
        spread=solution.spreads.get(frame.level, ()),
        converged=settled,
    )


def _tied_variance(frame: LevelFrame, moved: Floats) -> Floats:
    """Return (6 groups): the scatter of the other groups' moves, for groups that only follow them, where there is no prior."""
    moves, tied = moved.reshape(-1, 6), frame.tied
    if frame.ancestry is not None or not tied.any() or tied.all():
        return np.zeros(moved.size)
    spread = np.mean((moves[~tied] - moves[~tied].mean(axis=0)) ** 2, axis=0)
    return np.asarray((tied[:, None] * spread).ravel(), dtype=np.float64)


def _tied_words(frame: LevelFrame, outcome: LevelOutcome) -> tuple[str, ...]:
    few = [f"{outcome.names[i]} ({outcome.n_spots[i]})" for i in np.flatnonzero(frame.tied)]
    if not few:
        return ()
    shown = ", ".join(few[:6]) + (f" and {len(few) - 6} more" if len(few) > 6 else "")
    return (f"level {frame.level}: too few spots on {shown}: they follow the others of the group above",)

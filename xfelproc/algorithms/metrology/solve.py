"""The global system: one level's moves from the normal equations of the finest groups.

A level's groups move the finest ones by a chain of rigid motions J, to first order: S_L = Jᵀ S J. What no data tell is fixed: a
turn of the whole about the beam (the crystals turn with it). Groups of too few spots follow the rest of the group above them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from xfelproc.algorithms.metrology.settings import MetrologySettings
from xfelproc.geometry.hierarchy import PanelGroup, beam_frame, chain, groups_of, parents_of, rigid_modes, turn_about_beam
from xfelproc.models.experiment import Beam, Detector

Floats = NDArray[np.float64]
KINDS = np.array([0, 0, 1, 2, 2, 3])
"""Kind of each part of a move: in the plane, along the normal, turns out of the plane, turn in the plane."""
_STIFF = 1e3
_START_SPREAD = 0.5
_NO_SPREAD = 1e3
WHOLE_SPREAD = 10.0
"""Standard deviation (mm) of the whole detector's moves before anything is known of them: data say far more."""
_FIXED = 1e6  # weight of a part of a move that is not free, by the largest of the data
_LEAST_SPREAD = 1e-4  # of a group's move, mm


@dataclass(frozen=True)
class LevelFrame:
    """Groups of a level and how they move.

    ``own`` are the rows of the moves that are free parameters, ``follow`` (6 groups, f) takes those to the moves of all groups
    (None: the others stay 0); ``down`` (6 finest, 6 groups) takes moves to those of the finest groups (None: they are the same);
    ``stop`` (6 groups) is the turn about the beam, as a weighted sum of moves that stays 0.
    """

    level: int
    groups: tuple[PanelGroup, ...]
    tied: NDArray[np.bool_]
    own: NDArray[np.int64]
    follow: Floats | None
    down: Floats | None
    stop: Floats
    modes: Floats
    """(6 groups, 6) movements of the whole."""

    def at_level(self, normal: Floats) -> Floats:
        """Return a normal matrix of the finest groups' moves as one of the groups'."""
        return normal if self.down is None else np.asarray(self.down.T @ normal @ self.down, dtype=np.float64)

    def narrowed(self, matrix: Floats) -> Floats:
        """Return a matrix over the groups' moves as one over the free parameters."""
        if self.follow is None:
            # taking rows and columns of a large matrix costs as much as factoring it
            return matrix.copy() if len(self.own) == len(matrix) else matrix[np.ix_(self.own, self.own)]
        return np.asarray(self.follow.T @ matrix @ self.follow, dtype=np.float64)

    def pulled(self, gradient: Floats) -> Floats:
        """Return a gradient over the groups' moves as one over the free parameters."""
        return gradient[self.own] if self.follow is None else np.asarray(self.follow.T @ gradient, dtype=np.float64)

    def gathered(self, gradient: Floats) -> Floats:
        """Return a gradient over the finest groups' moves as one over the groups'."""
        return gradient if self.down is None else np.asarray(self.down.T @ gradient, dtype=np.float64)

    def spread_out(self, step: Floats) -> Floats:
        """Return the moves (6 groups) of free parameters; of a matrix, both sides."""
        n = len(self.stop)
        if self.follow is not None:
            out = self.follow @ step
            return np.asarray(out @ self.follow.T if step.ndim == 2 else out, dtype=np.float64)
        out = np.zeros((n,) * step.ndim)
        out[np.ix_(self.own, self.own) if step.ndim == 2 else self.own] = step
        return out


@dataclass(frozen=True)
class Solution:
    """Moves (6 groups) proposed, the matrix over the free parameters, and the spread that the groups are seen to have."""

    moves: Floats
    matrix: Floats
    precision: Floats
    """(6 groups) weights of the restraint, diagonal."""
    spread: tuple[float, ...]
    decrease: float
    """What the loss should fall by."""


def level_frame(
    settings: MetrologySettings, detector: Detector, beam: Beam, level: int, finest: Sequence[PanelGroup], n_used: NDArray[np.int64]
) -> LevelFrame:
    """Return the groups of a level and their freedom, with ``n_used`` (panel) spots."""
    groups = groups_of(detector, level)
    n_spots = np.array([n_used[list(group.panels)].sum() for group in groups])
    tied = n_spots < settings.min_spots
    if tied.all():
        tied[:] = len(groups) > 1
    allowed = np.ones(6, dtype=bool)
    if settings.distance == "fixed" or (settings.distance == "shared" and level > 0):
        allowed[2] = False
    if settings.tilts == "fixed" or (settings.tilts == "shared" and level > 0):
        allowed[3:5] = False
    own = np.flatnonzero(np.tile(allowed, len(groups)) & np.repeat(~tied, 6))
    follow = _follow(detector, level, groups, tied)[:, own] if tied.any() else None
    weight = np.tile([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], len(groups)) + levers(groups) ** 2 * np.tile(
        [0, 0, 0, 1.0, 1.0, 1.0], len(groups)
    )
    turn = turn_about_beam(groups, beam)
    middle = np.mean([group.centre for group in groups], axis=0)
    down = None if len(groups) == len(finest) else chain(finest, groups)
    return LevelFrame(level, groups, tied, own, follow, down, weight * turn, rigid_modes(groups, beam_frame(beam), middle))


def levers(groups: Sequence[PanelGroup]) -> Floats:
    """Return (6 groups): mm that a unit of each part of a move brings."""
    return np.concatenate([[1.0, 1.0, 1.0, group.reach, group.reach, group.reach] for group in groups])


def _follow(detector: Detector, level: int, groups: Sequence[PanelGroup], tied: NDArray[np.bool_]) -> Floats:
    """Return (6 groups, 6 groups): 1, but that tied groups move as the others of the group above them do on the whole."""
    out = np.eye(6 * len(groups))
    for number in np.flatnonzero(tied):
        out[6 * number : 6 * number + 6] = 0.0
        for upper in range(level - 1, -1, -1):
            above = groups_of(detector, upper)
            parents = parents_of(groups, above)
            others = np.flatnonzero((parents == parents[number]) & ~tied)
            if len(others) == 0:
                continue
            modes = chain(groups, above)[:, 6 * parents[number] : 6 * parents[number] + 6]
            rows = (6 * others[:, None] + np.arange(6)).ravel()
            weight = levers(groups)[rows] ** 2
            part = modes[rows]
            fit = np.linalg.solve(part.T @ (weight[:, None] * part), part.T * weight)
            out[6 * number : 6 * number + 6][:, rows] = modes[6 * number : 6 * number + 6] @ fit
            break
    return out


def solve_level(
    settings: MetrologySettings,
    frame: LevelFrame,
    normal: Floats,
    gradient: Floats,
    scale: float,
    moved: Floats,
    spread: tuple[float, ...],
    damping: float,
) -> Solution:
    """Return the Gauss-Newton moves of a level.

    Parameters
    ----------
    normal, gradient
        Of the finest groups.
    scale
        Variance of the residuals by the variances given.
    moved
        (6 groups) how far the groups are from where the level began: the restraint counts from there.
    spread
        Standard deviations of the four kinds of moves, from the pass before; empty: not known.
    damping
        Levenberg's, relative to the diagonal.
    """
    g = frame.gathered(gradient)
    lengths = levers(frame.groups)
    held = settings.restraint == "auto" and frame.level > 0 and np.count_nonzero(~frame.tied) > 2
    known = np.asarray(spread if spread and held else (_START_SPREAD if held else _NO_SPREAD,) * 4)
    precision = np.where(np.repeat(~frame.tied, 6), scale * lengths**2 / np.tile(known[KINDS], len(frame.groups)) ** 2, 0.0)
    data = frame.at_level(normal)
    matrix = _restrained(frame, data, precision)
    right = frame.pulled(g - precision * moved)
    trial = matrix.copy()
    trial[np.diag_indices(len(matrix))] *= 1.0 + damping
    step = _solved(trial, right)
    moves = frame.spread_out(step)
    seen = _spreads(frame, data, precision, moved + moves, scale) if held else ()
    return Solution(moves, matrix, precision, seen, float(0.5 * step @ right))


def _spreads(frame: LevelFrame, data: Floats, precision: Floats, moves: Floats, scale: float) -> tuple[float, ...]:
    """Return the standard deviations (mm) of the four kinds of moves of the groups, from moves and their variances.

    The step of expectation maximisation for random effects (Dempster, Laird & Rubin 1977); the variances are those of groups
    taken one by one.
    """
    n = len(frame.groups)
    blocks = data.reshape(n, 6, n, 6)[np.arange(n), :, np.arange(n), :]
    free = np.zeros(6 * n, dtype=bool)
    free[frame.own] = True
    weights = np.where(free, precision, _FIXED * np.max(np.diag(data)))
    variances = np.linalg.inv(blocks + np.eye(6) * weights.reshape(n, 6, 1))[:, np.arange(6), np.arange(6)].ravel()
    squares = (moves**2 + scale * variances) * levers(frame.groups) ** 2
    kinds, own = np.tile(KINDS, n), np.repeat(~frame.tied, 6)
    return tuple(max(_LEAST_SPREAD, float(np.sqrt(squares[own & (kinds == kind)].mean()))) for kind in range(4))


def _restrained(frame: LevelFrame, normal: Floats, precision: Floats) -> Floats:
    """Return a level's normal matrix over the free parameters, with the turn about the beam stopped and the restraint added."""
    matrix = _stopped(frame.narrowed(normal), frame.pulled(frame.stop))
    if frame.follow is None:
        matrix[np.diag_indices(len(matrix))] += precision[frame.own]
        return matrix
    held: Floats = matrix + frame.follow.T @ (precision[:, None] * frame.follow)
    return held


def _stopped(matrix: Floats, stop: Floats) -> Floats:
    """Return a normal matrix with a weighted sum of the parameters held at 0."""
    norm = float(stop @ stop)
    if norm == 0.0:
        return matrix
    stiff = _STIFF * float(np.trace(matrix)) / norm
    held: Floats = matrix + stiff * np.outer(stop, stop)
    return held


def _inverse(matrix: Floats) -> Floats:
    """Return the inverse of a symmetric positive definite matrix of very different units."""
    scale = 1.0 / np.sqrt(np.diag(matrix))
    factor, info = scipy.linalg.lapack.dpotrf(matrix * np.outer(scale, scale), lower=1, clean=0)
    if info == 0:
        inverse, info = scipy.linalg.lapack.dpotri(factor, lower=1)
    if info != 0:
        raise np.linalg.LinAlgError(f"the normal matrix is not positive definite (row {info})")
    lower = np.tril(inverse)
    full: Floats = (lower + np.tril(lower, -1).T) * np.outer(scale, scale)
    return full


def _solved(matrix: Floats, right: Floats) -> Floats:
    scale = 1.0 / np.sqrt(np.diag(matrix))
    solution: Floats = scale * scipy.linalg.solve(matrix * np.outer(scale, scale), scale * right, assume_a="pos")
    return solution


def half_moves(
    frame: LevelFrame, solution: Solution, normals: Sequence[Floats], gradients: Sequence[Floats], moved: Floats
) -> Floats:
    """Return (2, 6 groups), the moves that each half-set alone would make from here, under half the restraint."""
    precision = 0.5 * solution.precision
    out = []
    for normal, gradient in zip(normals, gradients, strict=True):
        matrix = _restrained(frame, frame.at_level(normal), precision)
        right = frame.pulled(frame.gathered(gradient) - precision * moved)
        out.append(frame.spread_out(_solved(matrix, right)))
    return np.array(out)


@dataclass(frozen=True)
class Uncertainty:
    """Variances (6 groups), for residuals of unit variance: of moves, of moves without those of the whole, and of the difference
    of the half-sets, which the restraint makes smaller; ``projector`` takes movements of the whole away.
    """

    moves: Floats
    internal: Floats
    halves: Floats
    projector: Floats


def uncertainty(frame: LevelFrame, normal: Floats, solution: Solution, prior: Floats) -> Uncertainty:
    """Return the variances of a level's moves.

    ``normal`` is of the finest groups; ``prior`` (6 groups, 6 groups) is the covariance that the levels above give the moves: the
    level's own restraint counts from there, as if that were known. With N the information of the data, P the covariance of
    both and Λ the restraint, moves have (N + P⁻¹)⁻¹; V = (N + Λ)⁻¹ are those of the half-sets' solutions, in which errors of
    measurement alone give V N V = V - V Λ V; half the data has twice the variance, the difference of two halves four times.
    Movements of the whole are what least squares on the groups' moves (mm, turns times the group's reach) finds; the whole
    detector has no others.
    """
    lengths, n = levers(frame.groups), len(frame.stop)
    projector = np.eye(n)
    if len(frame.groups) > 1:
        modes = frame.modes * lengths[:, None]
        projector -= modes @ np.linalg.solve(modes.T @ modes, modes.T)
        projector *= lengths[None, :] / lengths[:, None]
    v = frame.spread_out(_inverse(solution.matrix))
    inside = projector @ v
    halves = 4.0 * (np.sum(inside * projector, axis=1) - inside**2 @ solution.precision)
    if np.any(prior) and np.all(solution.precision[frame.own] > 0.0):
        own = np.diag(1.0 / solution.precision[frame.own]) + prior[np.ix_(frame.own, frame.own)]
        data = _stopped(frame.narrowed(frame.at_level(normal)), frame.pulled(frame.stop))
        v = frame.spread_out(_inverse(data + _inverse(own)))
    internal = np.sum((projector @ v) * projector, axis=1)
    variances = [np.maximum(0.0, x) for x in (np.diag(v), internal, halves)]
    return Uncertainty(variances[0], variances[1], variances[2], projector)

"""The global system: one level's moves from the normal equations of the finest groups.

A level's groups move the finest ones by a chain of rigid motions J, to first order: S_L = Jᵀ S J. What no data tell is fixed: a
turn of the whole about the beam (the crystals turn with it). Groups of too few spots follow the rest of the group above them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from xfelproc.algorithms.metrology.prior import KINDS, Ancestry, Spreads, begun
from xfelproc.algorithms.metrology.settings import MetrologySettings
from xfelproc.geometry.hierarchy import (
    PanelGroup,
    beam_frame,
    chain,
    distinct_levels,
    groups_of,
    parents_of,
    rigid_modes,
    turn_about_beam,
)
from xfelproc.models.experiment import Beam, Detector

Floats = NDArray[np.float64]
_STIFF = 1e3
_OPEN = 1e-6
"""Least eigenvalue of a group's correlation matrix at which its spots tell all its moves."""


@dataclass(frozen=True)
class LevelFrame:
    """Groups of a level and how they move.

    ``own`` are the rows of the moves that are free parameters, ``held`` those that stay 0; ``follow`` (6 groups, f) takes free
    ones to the moves of all groups (None: the others stay 0; with a prior it is what that expects, and their own few spots have no
    say); ``down`` (6 finest, 6 groups) takes moves to those of the finest groups (None: they are the same); ``stop`` (6 groups) is
    the turn about the beam, as a weighted sum of moves that stays 0.
    """

    level: int
    groups: tuple[PanelGroup, ...]
    tied: NDArray[np.bool_]
    own: NDArray[np.int64]
    held: NDArray[np.int64]
    follow: Floats | None
    down: Floats | None
    stop: Floats
    modes: Floats
    """(6 groups, 6) movements of the whole."""
    beside: Floats
    """(6 groups, 6 groups) covariance (mm², radians²) of the moves of groups that follow, where the free parameters are known."""
    ancestry: Ancestry | None
    """The prior of the free parameters; None: there is none."""
    following: Ancestry | None
    """The prior of the parameters of groups that follow, where there is one."""
    across: Floats
    """(4 groups, 6 groups): two across the beam (mm) of each group's centre, then of where the ray to it meets the group."""

    def expecting(self, spreads: Spreads) -> LevelFrame:
        """Return the frame with groups that follow where the prior of these spreads expects them."""
        if self.ancestry is None or self.following is None:
            return self
        follow, beside = np.zeros((len(self.stop), len(self.own))), np.zeros_like(self.beside)
        follow[self.own, np.arange(len(self.own))] = 1.0
        rows = np.setdiff1d(np.flatnonzero(np.repeat(self.tied, 6)), self.held)
        follow[rows], beside[np.ix_(rows, rows)] = self.following.follows(self.ancestry, begun(spreads, self.ancestry.levels))
        return replace(self, follow=follow, beside=beside)

    def astray(self, moved: Floats) -> Floats:
        """Return the moves (6 groups) that groups that follow still have to make, where all have ``moved``."""
        if self.follow is None or self.ancestry is None:
            return np.zeros_like(moved)
        return np.where(np.any(self.follow != 0.0, axis=1), self.follow @ moved[self.own] - moved, 0.0)

    def at_level(self, normal: Floats) -> Floats:
        """Return a normal matrix of the finest groups' moves as one of the groups'."""
        return normal if self.down is None else np.asarray(self.down.T @ normal @ self.down, dtype=np.float64)

    def narrowed(self, matrix: Floats) -> Floats:
        """Return a matrix over the groups' moves as one over the free parameters."""
        if self.follow is None or self.ancestry is not None:
            # taking rows and columns of a large matrix costs as much as factoring it
            return matrix.copy() if len(self.own) == len(matrix) else matrix[np.ix_(self.own, self.own)]
        return np.asarray(self.follow.T @ matrix @ self.follow, dtype=np.float64)

    def pulled(self, gradient: Floats) -> Floats:
        """Return a gradient over the groups' moves as one over the free parameters."""
        bare = self.follow is None or self.ancestry is not None
        return gradient[self.own] if bare or self.follow is None else np.asarray(self.follow.T @ gradient, dtype=np.float64)

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
    """Moves (6 groups) proposed, and what they follow from.

    ``matrix`` (free, free) is the Hessian of loss and restraint, ``precision`` the restraint's part, for a loss of residuals of
    variance ``scale``; ``spreads`` are those of the levels, told by so many moves (``freedom``); ``decrease`` is what the loss
    should fall by, ``restraint`` the first and second derivative of the restraint's loss along the step.
    """

    moves: Floats
    matrix: Floats
    precision: Floats
    spreads: Spreads
    freedom: Spreads
    decrease: float
    restraint: tuple[float, float]


def level_frame(
    settings: MetrologySettings,
    detector: Detector,
    beam: Beam,
    level: int,
    finest: Sequence[PanelGroup],
    n_used: NDArray[np.int64],
    spreads: Spreads,
    normals: Sequence[Floats] = (),
) -> LevelFrame:
    """Return the groups of a level and their freedom.

    ``n_used`` (panel) are the spots; ``spreads`` tell what to expect of groups of too few; ``normals`` are the finest groups', of
    each half-set: without a prior all moves of a group must be told by both.
    """
    groups = groups_of(detector, level)
    n_spots = np.array([n_used[list(group.panels)].sum() for group in groups])
    tied = n_spots < settings.min_spots
    if settings.restraint == "none":
        down = None if len(groups) == len(finest) else chain(finest, groups)
        for normal in normals:
            tied |= _untold(normal if down is None else down.T @ normal @ down)
    if tied.all():
        tied[:] = len(groups) > 1
    allowed = np.ones(6, dtype=bool)
    if settings.distance == "fixed" or (settings.distance == "shared" and level > 0):
        allowed[2] = False
    if settings.tilts == "fixed" or (settings.tilts == "shared" and level > 0):
        allowed[3:5] = False
    free = np.tile(allowed, len(groups))
    own = np.flatnonzero(free & np.repeat(~tied, 6))
    ancestry, following, follow = None, None, None
    if settings.restraint == "auto":
        ancestry = _ancestry(detector, level, groups, own, allowed)
        if tied.any():
            following = _ancestry(detector, level, groups, np.flatnonzero(free & np.repeat(tied, 6)), allowed)
    elif tied.any():
        follow = _follow(detector, level, groups, tied)[:, own]
    weight = np.tile([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], len(groups)) + levers(groups) ** 2 * np.tile(
        [0, 0, 0, 1.0, 1.0, 1.0], len(groups)
    )
    turn = turn_about_beam(groups, beam)
    middle = np.mean([group.centre for group in groups], axis=0)
    frame = LevelFrame(
        level,
        groups,
        tied,
        own,
        np.flatnonzero(~free),
        follow,
        None if len(groups) == len(finest) else chain(finest, groups),
        weight * turn,
        rigid_modes(groups, beam_frame(beam), middle),
        np.zeros((6 * len(groups),) * 2),
        ancestry,
        following,
        _across(groups, beam),
    )
    return frame.expecting(spreads)


def _untold(normal: Floats) -> NDArray[np.bool_]:
    """Return (groups) whether the spots on a group leave one of its moves open."""
    n = len(normal) // 6
    blocks = normal.reshape(n, 6, n, 6)[np.arange(n), :, np.arange(n), :]
    scale = np.sqrt(np.einsum("gii->gi", blocks))
    with np.errstate(divide="ignore", invalid="ignore"):
        blocks = np.nan_to_num(blocks / (scale[:, :, None] * scale[:, None, :]))
    return np.asarray(np.linalg.eigvalsh(blocks)[:, 0] < _OPEN, dtype=np.bool_)


def _ancestry(
    detector: Detector, level: int, groups: tuple[PanelGroup, ...], rows: NDArray[np.int64], allowed: NDArray[np.bool_]
) -> Ancestry:
    """Return the levels that move ``groups``, as far as the ``rows`` of their moves go."""
    above = [upper for upper in distinct_levels(detector) if upper < level]
    links, lengths, kinds = [], [], []
    for upper in above:
        those = groups_of(detector, upper)
        links.append(chain(groups, those)[rows])
        lengths.append(levers(those))
        kinds.append(np.tile(KINDS if upper == 0 else np.where(allowed, KINDS, -1), len(those)))
    own_kinds = np.tile(KINDS, len(groups))[rows]
    return Ancestry((*above, level), tuple(links), (*lengths, levers(groups)[rows]), (*kinds, own_kinds))


def _across(groups: Sequence[PanelGroup], beam: Beam) -> Floats:
    """Return (4 groups, 6 groups): see `LevelFrame`."""
    x, y, z = beam_frame(beam)
    out = np.zeros((2, len(groups), 2, 6 * len(groups)))
    for number, group in enumerate(groups):
        shift = group.axes.T
        along = np.outer(group.centre, z @ shift) / (group.centre @ z)
        out[0, number, :, 6 * number : 6 * number + 3] = np.array([x, y]) @ shift
        out[1, number, :, 6 * number : 6 * number + 3] = np.array([x, y]) @ (shift - along)
    return out.reshape(4 * len(groups), -1)


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
    frame: LevelFrame, normal: Floats, gradient: Floats, scale: float, moved: Floats, spreads: Spreads, estimate: bool
) -> Solution:
    """Return the Newton step of a level.

    Parameters
    ----------
    normal, gradient
        Of the finest groups; ``normal`` is the Hessian of the loss.
    scale
        Variance of the residuals by the variances given.
    moved
        (6 groups) how far the groups are from where they were before any refinement: the restraint counts from there.
    spreads
        Standard deviations of the levels' moves, as far as they are known.
    estimate
        Whether they are to be estimated again.
    """
    data = stopped(frame.narrowed(frame.at_level(normal)), frame.pulled(frame.stop))
    g = frame.pulled(frame.gathered(gradient))
    precision, freedom, here = np.zeros_like(data), Spreads(), moved[frame.own]
    if frame.ancestry is not None:
        spreads = begun(spreads, frame.ancestry.levels)
        evidence = data / scale, (g + data @ here) / scale
        if estimate:
            spreads, freedom = frame.ancestry.estimated(spreads, *evidence)
        else:
            _, freedom = frame.ancestry.cycle(spreads, *evidence)
        precision = scale * frame.ancestry.precision(spreads)
    matrix = data + precision
    pull = precision @ here
    right = g - pull
    step = solved(matrix, right)
    restraint = (float(pull @ step), float(step @ precision @ step))
    frame = frame.expecting(spreads)
    moves = frame.spread_out(step) + frame.astray(moved)
    return Solution(moves, matrix, precision, spreads, freedom, float(0.5 * step @ right), restraint)


def stopped(matrix: Floats, stop: Floats) -> Floats:
    """Return a normal matrix with a weighted sum of the parameters held at 0."""
    norm = float(stop @ stop)
    if norm == 0.0:
        return matrix
    stiff = _STIFF * float(np.trace(matrix)) / norm
    held: Floats = matrix + stiff * np.outer(stop, stop)
    return held


def inverse(matrix: Floats) -> Floats:
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


def solved(matrix: Floats, right: Floats) -> Floats:
    """Return the solution of a symmetric positive definite system of very different units."""
    scale = 1.0 / np.sqrt(np.diag(matrix))
    solution: Floats = scale * scipy.linalg.solve(matrix * np.outer(scale, scale), scale * right, assume_a="pos")
    return solution

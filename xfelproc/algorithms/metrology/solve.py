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
_CYCLES = 3
_LEAST_SPREAD = 1e-4  # of a group's move, mm


@dataclass(frozen=True)
class LevelFrame:
    """Groups of a level and how they move.

    ``free`` (6 groups, f) takes the free parameters to the moves of all groups of the level, ``down`` (6 finest, 6 groups) those to
    moves of the finest groups; ``stop`` (6 groups) is the turn about the beam, as weighted sum of moves that stays 0.
    """

    level: int
    groups: tuple[PanelGroup, ...]
    tied: NDArray[np.bool_]
    free: Floats
    down: Floats
    stop: Floats
    modes: Floats
    """(6 groups, 6) movements of the whole."""


@dataclass(frozen=True)
class Solution:
    """Moves (6 groups) proposed, their covariance (for residuals of unit variance), and the spread the groups were held by."""

    moves: Floats
    covariance: Floats
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
    free = _follow(detector, level, groups, tied)[:, (np.tile(allowed, len(groups)).reshape(-1, 6) & ~tied[:, None]).ravel()]
    weight = np.tile([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], len(groups)) + _levers(groups) ** 2 * np.tile(
        [0, 0, 0, 1.0, 1.0, 1.0], len(groups)
    )
    turn = turn_about_beam(groups, beam)
    middle = np.mean([group.centre for group in groups], axis=0)
    return LevelFrame(
        level, groups, tied, free, chain(finest, groups), weight * turn, rigid_modes(groups, beam_frame(beam), middle)
    )


def _levers(groups: Sequence[PanelGroup]) -> Floats:
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
            weight = _levers(groups)[rows] ** 2
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
    down = frame.down @ frame.free
    s, g = down.T @ normal @ down, down.T @ gradient
    s = _stopped(s, frame.free.T @ frame.stop)
    levers = _levers(frame.groups)
    kinds = np.tile(KINDS, len(frame.groups))
    own = np.repeat(~frame.tied, 6)
    held = settings.restraint == "auto" and frame.level > 0 and np.count_nonzero(~frame.tied) > 2
    known = spread if spread and held else (_START_SPREAD,) * 4
    for _ in range(_CYCLES if held else 1):
        precision = (
            np.where(own, scale * levers**2 / np.asarray(known)[kinds] ** 2, 0.0) if held else 1e-6 * scale * levers**2 * own
        )
        matrix = s + frame.free.T @ (precision[:, None] * frame.free)
        right = g - frame.free.T @ (precision * moved)
        matrix[np.diag_indices(len(matrix))] *= 1.0 + damping
        covariance = _inverse(matrix)
        step = covariance @ right
        moves = frame.free @ step
        full = frame.free @ covariance @ frame.free.T
        if held:
            squares = ((moved + moves) ** 2 + scale * np.diag(full)) * levers**2
            known = tuple(max(_LEAST_SPREAD, float(np.sqrt(squares[own & (kinds == kind)].mean()))) for kind in range(4))
    return Solution(moves, full, precision, known if held else (), float(0.5 * step @ right))


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
    factor = scipy.linalg.cho_factor(matrix * np.outer(scale, scale), lower=True)
    inverse: Floats = scipy.linalg.cho_solve(factor, np.eye(len(matrix))) * np.outer(scale, scale)
    return inverse


def half_moves(
    frame: LevelFrame, solution: Solution, normals: Sequence[Floats], gradients: Sequence[Floats], moved: Floats
) -> Floats:
    """Return (2, 6 groups), the moves that each half-set alone would make from here, under half the restraint."""
    down, precision = frame.down @ frame.free, 0.5 * solution.precision
    out = []
    for normal, gradient in zip(normals, gradients, strict=True):
        s = _stopped(down.T @ normal @ down, frame.free.T @ frame.stop) + frame.free.T @ (precision[:, None] * frame.free)
        right = down.T @ gradient - frame.free.T @ (precision * moved)
        out.append(frame.free @ (_inverse(s) @ right))
    return np.array(out)


def internal(frame: LevelFrame, covariance: Floats) -> tuple[Floats, Floats]:
    """Return the variances (6 groups) without movements of the whole, and the projector (6 groups, 6 groups) that removes them.

    The movements of the whole are what least squares on the groups' moves (mm, turns times the group's reach) finds.
    """
    levers = _levers(frame.groups)
    modes = frame.modes * levers[:, None]
    projector = np.eye(len(levers)) - modes @ np.linalg.solve(modes.T @ modes, modes.T)
    projector = projector * levers[None, :] / levers[:, None]
    return np.einsum("ij,jk,ik->i", projector, covariance, projector, optimize=True), projector

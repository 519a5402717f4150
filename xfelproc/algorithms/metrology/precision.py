"""What a level's moves are known to: their covariance, that of the half-sets' difference, and of what is judged by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.metrology.prior import widened
from xfelproc.algorithms.metrology.solve import LevelFrame, Solution, inverse, levers, solved, stopped

Floats = NDArray[np.float64]


def half_moves(
    frame: LevelFrame, solution: Solution, normals: Sequence[Floats], gradients: Sequence[Floats], moved: Floats
) -> Floats:
    """Return (2, 6 groups), the moves that each half-set alone would make from here, under half the restraint."""
    precision = 0.5 * solution.precision
    out = []
    for normal, gradient in zip(normals, gradients, strict=True):
        data = stopped(frame.narrowed(frame.at_level(normal)), frame.pulled(frame.stop))
        right = frame.pulled(frame.gathered(gradient)) - precision @ moved[frame.own]
        out.append(frame.spread_out(solved(data + precision, right)))
    return np.array(out)


@dataclass(frozen=True)
class Uncertainty:
    """Variances of a level's moves.

    (6 groups): of moves, of moves without those of the whole, and of the difference of the half-sets, which the restraint makes
    smaller. (2 groups): across the beam (mm²), of the groups' centres, and of where the rays to them meet the groups, both
    without common shift, turn about the beam and scale. ``projector`` takes movements of the whole away.
    """

    moves: Floats
    internal: Floats
    halves: Floats
    centres: Floats
    rays: Floats
    projector: Floats


def uncertainty(frame: LevelFrame, solution: Solution, scale: float, followed: Floats, noise: Floats) -> Uncertainty:
    """Return the variances of a level's moves.

    ``followed`` (6 groups) are those of groups that follow, where there is no prior; ``noise`` (groups) is the variance of the
    residuals on a group by ``scale``: its moves are as much more uncertain.
    With H the information of the data and Λ the precision by the prior of all levels, moves have κ (H + Λ)⁻¹ (κ: ``scale``),
    Λ for spreads as uncertain as they are. V = (H + Λ)⁻¹ are those of the half-sets' solutions, in which errors of measurement
    alone give κ V H V = κ (V - V Λ V); half the data has twice the variance, the difference of two halves four times.
    Movements of the whole are what least squares on the groups' moves (mm, turns times the group's reach) finds; the whole
    detector has no others.
    """
    projector = _projector(frame)
    v = inverse(solution.matrix)
    halves = 4.0 * scale * frame.spread_out(v - v @ solution.precision @ v)
    if frame.ancestry is not None:
        data = solution.matrix - solution.precision
        v = inverse(data + scale * frame.ancestry.precision(widened(solution.spreads, solution.freedom)))
    louder = np.sqrt(np.repeat(noise, 6))
    moves = scale * frame.spread_out(v) * np.outer(louder, louder) + frame.beside + np.diag(followed)
    seen = _common_removed(frame) @ frame.across
    across = np.sum((seen @ moves) * seen, axis=1)
    centres, rays = np.split(np.maximum(0.0, across), 2)
    inside = _projected(projector, moves)
    return Uncertainty(np.maximum(0.0, np.diag(moves)), inside, _projected(projector, halves), centres, rays, projector)


def _projected(projector: Floats, covariance: Floats) -> Floats:
    """Return the variances of moves that a ``projector`` is applied to."""
    return np.asarray(np.maximum(0.0, np.sum((projector @ covariance) * projector, axis=1)), dtype=np.float64)


def _projector(frame: LevelFrame) -> Floats:
    """Return (6 groups, 6 groups), what takes movements of the whole away; groups of too few spots have no say in them."""
    lengths, n = levers(frame.groups), len(frame.stop)
    if len(frame.groups) == 1:
        return np.eye(n)
    modes = frame.modes * lengths[:, None]
    counted = modes * np.repeat(_counted(frame), 6)[:, None]
    fitted: Floats = np.eye(n) - modes @ np.linalg.solve(counted.T @ modes, counted.T)
    return fitted * lengths[None, :] / lengths[:, None]


def _common_removed(frame: LevelFrame) -> Floats:
    """Return (4 groups, 4 groups): across the beam, less the shift, turn and scale of the groups that are not tied."""
    n = len(frame.groups)
    half = 2 * n
    if n == 1:
        return np.zeros((2 * half, 2 * half))
    # x and y of the centres follow from a turn about the beam and a scale of the whole
    place = frame.across[:half] @ np.concatenate([np.concatenate([g.axes @ g.centre, np.zeros(3)]) for g in frame.groups])
    x, y = place.reshape(n, 2).T
    one, none = np.ones(n), np.zeros(n)
    modes = np.stack([np.stack(pair, 1).ravel() for pair in ((one, none), (none, one), (-y, x), (x, y))], axis=1)
    counted = modes * np.repeat(_counted(frame), 2)[:, None]
    fit = np.eye(half) - modes @ np.linalg.pinv(counted.T @ modes) @ counted.T
    return np.kron(np.eye(2), fit)


def _counted(frame: LevelFrame) -> NDArray[np.bool_]:
    return ~frame.tied | bool(frame.tied.all())

"""How far groups are to be expected from where the level above has them: the spreads of all levels, estimated from their moves.

A group's move is its own and those of the groups above, carried down by the chain: x = u + Σ J v. Own moves of a level are normal,
of four standard deviations (in the plane, along the normal, turns out of it and in it; mm, turns by the group's reach).
The spreads are those of largest marginal likelihood (restricted, as the whole's moves are free: Patterson & Thompson 1971), by
the fixed point of MacKay 1992, with a weak prior of their own: few groups do not tell a spread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Spreads = dict[int, tuple[float, ...]]
"""Standard deviations (mm) of the four kinds of own moves, by level."""
KINDS = np.array([0, 0, 1, 2, 2, 3])
"""Kind of each part of a move: in the plane, along the normal, turns out of the plane, turn in the plane."""
START_SPREAD = 0.5
WHOLE_SPREAD = 10.0
"""Standard deviation (mm) of the whole detector's moves before anything is known of them: data say far more."""
_LEAST_SPREAD = 1e-4
_GUESS, _GUESS_WEIGHT = 0.03, 0.2  # spread (mm) where nothing tells it, and for how many moves that counts
_CYCLES, _CYCLES_OF_MANY, _MANY = 30, 4, 800
_SETTLED = 0.02  # relative change of the spreads


@dataclass(frozen=True)
class Ancestry:
    """The levels that move a level's groups: itself last.

    ``links`` has, of each level above, (free, 6 groups above); ``lengths`` the levers of each level's moves, of the last one those
    of the free parameters alone; ``kinds`` likewise. Moves that are not free have the kind -1.
    """

    levels: tuple[int, ...]
    links: tuple[Floats, ...]
    lengths: tuple[Floats, ...]
    kinds: tuple[NDArray[np.int64], ...]

    def variances(self, spreads: Spreads) -> tuple[Floats, ...]:
        """Return the variances of each level's moves (mm², radians²)."""
        out = []
        for level, lengths, kinds in zip(self.levels, self.lengths, self.kinds, strict=True):
            of_kind = np.append(np.square(spreads.get(level, (START_SPREAD,) * 4)), 0.0)
            out.append(of_kind[kinds] / lengths**2)
        return tuple(out)

    def stacked(self, variances: tuple[Floats, ...]) -> Floats:
        """Return (free, moves of all levels above): what one standard deviation of each moves."""
        if not self.links:
            return np.zeros((len(self.lengths[-1]), 0))
        return np.concatenate([link * np.sqrt(v) for link, v in zip(self.links, variances[:-1], strict=True)], axis=1)

    def precision(self, spreads: Spreads) -> Floats:
        """Return the inverse (free, free) of the covariance of the moves."""
        variances = self.variances(spreads)
        weight = 1.0 / variances[-1]
        k = self.stacked(variances)
        part = k * weight[:, None]
        inner = np.eye(k.shape[1]) + k.T @ part
        out = -part @ scipy.linalg.solve(inner, part.T, assume_a="pos")
        out[np.diag_indices(len(out))] += weight
        return out

    def follows(self, others: Ancestry, spreads: Spreads) -> tuple[Floats, Floats]:
        """Return what moves to expect of those of ``others`` (free, free of others), and their covariance (free, free) beside."""
        variances = self.variances(spreads)
        mine = self.stacked(variances)
        shared = mine @ others.stacked(others.variances(spreads)).T
        fit = shared @ others.precision(spreads)
        return fit, mine @ mine.T + np.diag(variances[-1]) - fit @ shared.T

    def estimated(self, spreads: Spreads, information: Floats, right: Floats) -> tuple[Spreads, Spreads]:
        """Return the spreads of largest likelihood, and how many moves each is told by.

        Parameters
        ----------
        spreads
            Where to begin.
        information, right
            (free, free), (free): of the data, for residuals of unit variance; their solution are the moves by the data alone.
        """
        freedom: Spreads = {}
        known = {level: values for level, values in spreads.items() if level == 0}
        cycles = _CYCLES if len(right) <= _MANY else _CYCLES_OF_MANY
        for _ in range(cycles):
            found, freedom = self.cycle(spreads, information, right)
            change = max((abs(np.log(found[m][k] / spreads[m][k])) for m in found for k in range(4)), default=0.0)
            spreads = known | found
            if change < _SETTLED:
                break
        return spreads, freedom

    def cycle(self, spreads: Spreads, information: Floats, right: Floats) -> tuple[Spreads, Spreads]:
        """Return better spreads, and how many moves tell each of those given."""
        precision = self.precision(spreads)
        factor = scipy.linalg.cholesky(information + precision, lower=True)
        pull = precision @ scipy.linalg.cho_solve((factor, True), right)
        variances = self.variances(spreads)
        stacked = self.stacked(variances)
        # Kᵀ (Q - Q V Q) K of what each level moves: the part of a move's variance that the data tell
        inside = scipy.linalg.solve_triangular(factor, precision, lower=True)
        own_told = variances[-1] * (np.diag(precision) - np.sum(inside**2, axis=0))
        above_told = np.sum(stacked * (precision @ stacked), axis=0) - np.sum((inside @ stacked) ** 2, axis=0)
        own = variances[-1] * pull
        above = stacked.T @ pull
        found, freedom, begin = {}, {}, 0
        for row, level in enumerate(self.levels):
            last = row == len(self.levels) - 1
            end = begin if last else begin + len(self.lengths[row])
            moves = own if last else above[begin:end] * np.sqrt(variances[row])
            told = own_told if last else above_told[begin:end]
            begin = end
            if level == 0:
                continue
            square = (moves * self.lengths[row]) ** 2
            sums = [[float(v[self.kinds[row] == kind].sum()) for kind in range(4)] for v in (square, told)]
            freedom[level] = tuple(max(0.0, t) for t in sums[1])
            found[level] = tuple(
                max(_LEAST_SPREAD, float(np.sqrt((s + _GUESS_WEIGHT * _GUESS**2) / (t + _GUESS_WEIGHT))))
                for s, t in zip(sums[0], freedom[level], strict=True)
            )
        return found, freedom


def widened(spreads: Spreads, freedom: Spreads) -> Spreads:
    """Return the spreads as the uncertainty of moves is to count them: few moves do not tell a spread (Student's t)."""
    out = {}
    for level, values in spreads.items():
        told = freedom.get(level, (np.inf,) * 4)
        out[level] = tuple(s * float(np.sqrt(min(3.0, 1.0 + 2.0 / max(n, 1e-9)))) for s, n in zip(values, told, strict=True))
    return out


def begun(spreads: Spreads, levels: tuple[int, ...]) -> Spreads:
    """Return the spreads of ``levels``, with those that are not known where their estimation begins."""
    first = {level: (WHOLE_SPREAD if level == 0 else START_SPREAD,) * 4 for level in levels}
    return {level: spreads.get(level, first[level]) for level in levels}

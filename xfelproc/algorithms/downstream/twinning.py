"""Is the crystal twinned: moments, the L-test, and for each twin law the fraction by Britton's and Yeates's methods and by moments.

Moments of normalised intensities: Stanley (1972), J. Appl. Cryst. 5, 191. L-test: Padilla & Yeates (2003), Acta Cryst. D59, 1124.
Britton (1972), Acta Cryst. A28, 296. H-test: Yeates (1988), Acta Cryst. A44, 142. Twin laws: Flack (1987), Acta Cryst. A43, 564, by
gemmi. Two intensities that a law of fraction α relates are (1-α)J₁ + αJ₂ and αJ₁ + (1-α)J₂, J₁ and J₂ independent and exponential.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.cells import metric_tensor
from xfelproc.geometry.miller import Indices, find_space_group, holohedral_group, pack, to_asu

if TYPE_CHECKING:  # its splines are for analyses: a run that begins needs none
    from xfelproc.algorithms.downstream.mean_intensity import Reflections

Floats = NDArray[np.float64]

SIGNIFICANT = 3.0
"""Mean I/σ of a shell from which its intensities tell of twinning, not of noise."""
N_BLOCKS = 20
NEAR_ZERO = 0.2
"""|L| up to which its density is that at 0."""
FEWEST = 100
"""Pairs below which nothing is said."""
MAX_OBLIQUITY = 3.0
"""Degrees to which a lattice may miss a twin law's symmetry."""


@dataclass(frozen=True)
class Estimate:
    """A number and its standard deviation (jackknife over 20 blocks of reflections), from ``n`` reflections or pairs."""

    value: float
    sigma: float
    n: int


@dataclass(frozen=True)
class Moments:
    """⟨Z²⟩ of acentric (2, perfect twin 1.5) and centric (3, 2) reflections, Z = I/⟨I⟩, measurement noise taken out."""

    acentric: Estimate | None
    centric: Estimate | None


@dataclass(frozen=True)
class LTest:
    """L of acentric neighbours: ⟨|L|⟩ (½ untwinned, ⅜ perfect twin) and ⟨L²⟩ (⅓, ⅕), noise taken out of both, the cumulative
    N(|L|) at ``levels``, the twin fraction that ⟨|L|⟩ would mean, and the resolution (Å) to which reflections were used.
    """

    mean_abs: Estimate
    mean_square: Estimate
    fraction: float
    levels: Floats
    cumulative: Floats
    d_min: float


@dataclass(frozen=True)
class TwinLaw:
    """A twin law and the fraction that the data show; estimates are None where pairs are too few.

    ``operator`` acts on h, k, l; ``obliquity`` (degrees) is how far the lattice misses it.
    """

    operator: str
    merohedral: bool
    obliquity: float
    n_pairs: int
    correlation: float
    britton: Estimate | None
    h_test: Estimate | None
    moments: Estimate | None


def jackknife_of_means(columns: Floats, statistic: Callable[[Floats], float], place: NDArray[np.int64] | None = None) -> Estimate:
    """Return a function of the means of columns (n, k), with its standard deviation.

    ``place`` (n,) orders the rows into 20 blocks of neighbours, which are left out one by one; None: every 20th row is a block.
    """
    n = len(columns)
    rows = np.arange(n)
    block = rows % N_BLOCKS if place is None else place * N_BLOCKS // (int(place.max()) + 1)
    sums = np.column_stack([np.bincount(block, column, N_BLOCKS) for column in columns.T])
    count = np.bincount(block, minlength=N_BLOCKS)
    without = np.array([statistic((sums.sum(axis=0) - sums[b]) / (n - count[b])) for b in range(N_BLOCKS)])
    return Estimate(statistic(sums.sum(axis=0) / n), _jackknife_sigma(without), n)


def jackknife(values: Floats, statistic: Callable[[Floats], float]) -> Estimate:
    """Return a statistic of values (n,) with its standard deviation: every 20th row is a block that is left out."""
    block = np.arange(len(values)) % N_BLOCKS
    return Estimate(
        statistic(values), _jackknife_sigma(np.array([statistic(values[block != b]) for b in range(N_BLOCKS)])), len(values)
    )


def _jackknife_sigma(without: Floats) -> float:
    return float(np.sqrt((N_BLOCKS - 1) * np.mean((without - without.mean()) ** 2)))


def second_moments(z: Floats, z_sigma: Floats, centric: NDArray[np.bool_]) -> Moments:
    """Return the second moments of normalised intensities ``z`` (n,) with standard deviations ``z_sigma``."""

    def moment(rows: NDArray[np.bool_]) -> Estimate | None:
        values, noise = z[rows], z_sigma[rows] ** 2
        if len(values) < FEWEST:
            return None
        return jackknife_of_means(np.column_stack([values**2 - noise, values]), lambda mean: float(mean[0] / mean[1] ** 2))

    return Moments(moment(~centric), moment(centric))


def l_test(reflections: Reflections, d_min: float) -> LTest | None:
    """Return the L-test of acentric reflections; ``d_min`` (Å) is told on. None: fewer than 100 pairs.

    Neighbours differ by even numbers whose absolute values sum to 4 at most, so that neither centring nor a common
    pseudo-translation by half a cell edge makes them unlike. Pairs are left out by their sum alone, on which L does not depend
    in an untwinned crystal, and negative intensities stay in (|L| is above 1 then): noise cancels to first order.
    """
    acentric = reflections.select(~reflections.centric)
    first, second = _neighbours(acentric.hkl)
    one, two = acentric.intensity[first], acentric.intensity[second]
    noise_one, noise_two = acentric.sigma[first] ** 2, acentric.sigma[second] ** 2
    total = one + two
    good = total > SIGNIFICANT * np.sqrt(noise_one + noise_two)
    if np.count_nonzero(good) < FEWEST:
        return None
    ratio = (np.abs(one - two) / total)[good]
    blur = (4.0 * (two**2 * noise_one + one**2 * noise_two) / total**4)[good]
    place, levels = first[good], np.linspace(0.0, 1.0, 21)
    # E|x + noise| - E|x| is the density of x at 0 times the noise's variance there
    excess = np.where(ratio < NEAR_ZERO, 0.5 * blur / NEAR_ZERO, 0.0)
    mean_abs = jackknife_of_means((ratio - excess)[:, None], lambda mean: float(mean[0]), place)
    return LTest(
        mean_abs,
        jackknife_of_means((ratio**2 - blur)[:, None], lambda mean: float(mean[0]), place),
        fraction_of_l(mean_abs.value),
        levels,
        np.searchsorted(np.sort(np.minimum(ratio, 1.0)), levels, side="right") / len(ratio),
        d_min,
    )


def _neighbours(hkl: Indices) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows of pairs of neighbours, each once; ``hkl`` are unique."""
    span = (-4, -2, 0, 2, 4)
    steps = [s for s in product(span, span, span) if s > (0, 0, 0) and sum(map(abs, s)) <= 4]
    at = _Lookup(hkl)
    pairs = [at.rows(hkl + np.array(step, dtype=np.int32)) for step in steps]
    first = np.concatenate([np.flatnonzero(rows >= 0) for rows in pairs])
    second = np.concatenate([rows[rows >= 0] for rows in pairs])
    return first, second


class _Lookup:
    """Rows of indices among unique ones (n, 3)."""

    def __init__(self, hkl: Indices) -> None:
        key = pack(hkl)
        self.order = np.argsort(key, kind="stable")
        self.key = key[self.order]

    def rows(self, hkl: Indices) -> NDArray[np.int64]:
        """Return the row of each index, -1 for one that is not there."""
        wanted = pack(hkl)
        if not len(self.key):
            return np.full(len(wanted), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(self.key, wanted), len(self.key) - 1)
        return np.where(self.key[place] == wanted, self.order[place], -1)


def _halves(n: int) -> tuple[Floats, Floats]:
    """Return Gauss-Legendre nodes and weights of the two halves of 0 to 1, between which |2x - 1| has its bend."""
    x, w = np.polynomial.legendre.leggauss(n)
    return np.concatenate([0.25 * (x + 1.0), 0.5 + 0.25 * (x + 1.0)]), 0.25 * np.concatenate([w, w])


_SHARES = _halves(100)


def mean_abs_l(fraction: float) -> float:
    """Return ⟨|L|⟩ of acentric reflections of a crystal with a twin fraction: ½ at 0, ⅜ at ½.

    The intensity is a difference of exponential distributions of means 1-α and α, with weights (1-α)/(1-2α) and -α/(1-2α), and the
    share of one of two exponentials of means p and q in their sum has the density pq/(qw + p(1-w))².
    """
    alpha = min(max(fraction, 1e-9), 0.5 - 1e-4)
    means = np.array([1.0 - alpha, alpha])
    weights = means * np.array([1.0, -1.0]) / (1.0 - 2.0 * alpha)
    share, weight = _SHARES
    total = 0.0
    for (p, u), (q, v) in product(zip(means, weights, strict=True), repeat=2):
        total += float(u * v * np.sum(weight * np.abs(2 * share - 1) * p * q / (q * share + p * (1 - share)) ** 2))
    return total


def fraction_of_l(mean_abs: float) -> float:
    """Return the twin fraction (0 to ½) whose ⟨|L|⟩ this is."""
    low, high = 0.0, 0.5
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if mean_abs_l(middle) > mean_abs else (low, middle)
    return low if low > 1e-6 else 0.0


def twin_operators(cell: Sequence[float], group: gemmi.SpaceGroup, max_obliquity: float = MAX_OBLIQUITY) -> list[gemmi.Op]:
    """Return one operator (of real space) for each way in which the lattice, but not the crystal, comes to itself."""
    return list(gemmi.find_twin_laws(gemmi.UnitCell(*(float(v) for v in cell)), group, max_obliquity, False))


def twin_laws(
    reflections: Reflections,
    z: Floats,
    z_sigma: Floats,
    cell: Sequence[float],
    group: gemmi.SpaceGroup,
    max_obliquity: float = MAX_OBLIQUITY,
) -> list[TwinLaw]:
    """Return the twin laws of a lattice, and what the data say of each.

    Parameters
    ----------
    reflections
        Unique reflections in the asymmetric unit, those with enough signal.
    z, z_sigma
        (n,) their normalised intensities and standard deviations.
    cell, group
        Of the crystal, Å and degrees.
    max_obliquity
        Degrees by which the lattice may miss the law.
    """
    at, found = _Lookup(reflections.hkl), []
    holohedry = holohedral_rotations(group)
    for operator in twin_operators(cell, group, max_obliquity):
        rotation = np.array(operator.rot) / operator.DEN
        twin, _ = to_asu(turned(reflections.hkl, rotation), group)
        rows = at.rows(twin)
        mine = np.arange(len(rows))
        acentric = ~reflections.centric
        pair = (rows > mine) & acentric & acentric[rows]
        one, two = mine[pair], rows[pair]
        found.append(
            _law(
                operator.as_hkl().triplet(),
                any(np.array_equal(rotation, other) for other in holohedry),
                obliquity(rotation, cell),
                (z[one], z[two]),
                z_sigma[one] ** 2 + z_sigma[two] ** 2,
            )
        )
    return found


def turned(hkl: Indices, rotation: Floats) -> Indices:
    """Return h R of indices (n, 3): of a centred lattice R has fractions, and h R is whole for all reflections there are."""
    return np.rint(hkl @ rotation).astype(np.int32)


def holohedral_rotations(group: gemmi.SpaceGroup) -> list[Floats]:
    """Return the rotations of the lattice that every crystal of a group's system has (none for an unusual setting)."""
    if not group.is_reference_setting():
        return []
    full = find_space_group(holohedral_group(group.crystal_system_str(), group.centring_type()))
    return [np.array(op.rot) / op.DEN for op in full.operations().sym_ops]


def obliquity(rotation: Floats, cell: Sequence[float]) -> float:
    """Return by how many degrees a lattice misses a rotation (3, 3): the largest change of direction of a cell edge.

    It is that of the edge's image to what an exact rotation would make of it: the angles between edges, and the ratios of
    lengths as angles.
    """
    metric = metric_tensor(cell)
    moved = rotation.T @ metric @ rotation
    lengths, moved_lengths = np.sqrt(np.diag(metric)), np.sqrt(np.diag(moved))
    angles = np.degrees(np.arccos(np.clip(metric / np.outer(lengths, lengths), -1, 1)))
    moved_angles = np.degrees(np.arccos(np.clip(moved / np.outer(moved_lengths, moved_lengths), -1, 1)))
    return float(max(np.max(np.abs(angles - moved_angles)), np.degrees(np.max(np.abs(np.log(moved_lengths / lengths))))))


def _law(operator: str, merohedral: bool, missed: float, pair: tuple[Floats, Floats], noise: Floats) -> TwinLaw:
    one, two = pair
    total, difference = one + two, one - two
    if len(one) < FEWEST:
        return TwinLaw(operator, merohedral, missed, len(one), float("nan"), None, None, None)
    clean = total > SIGNIFICANT * np.sqrt(noise)
    share = np.abs(difference[clean]) / total[clean]
    enough = len(share) >= FEWEST
    return TwinLaw(
        operator,
        merohedral,
        missed,
        len(one),
        float(np.corrcoef(one, two)[0, 1]),
        jackknife(share, britton) if enough else None,
        # the mean of a uniform distribution from 0 to 1 - 2α
        jackknife_of_means(share[:, None], lambda mean: float(np.clip(0.5 * (1.0 - 2.0 * mean[0]), 0.0, 0.5))) if enough else None,
        jackknife_of_means(np.column_stack([difference**2 - noise, total**2 - noise]), _fraction_of_moments),
    )


def britton(share: Floats) -> float:
    """Return the fraction below which detwinning makes no intensity negative, from |I₁ - I₂|/(I₁ + I₂) of pairs (n,).

    The share of negative intensities at an assumed fraction grows linearly from the true one to all at ½: the line through the part
    beyond the measurement's blur is followed to 0.
    """
    edge = np.sort(0.5 * (1.0 - share))
    estimate = 0.0
    for _ in range(4):
        assumed = np.linspace(estimate + 0.4 * (0.5 - estimate), 0.5 - 0.1 * (0.5 - estimate), 20)
        negative = np.searchsorted(edge, assumed, side="right") / len(edge)
        slope, level = np.polyfit(assumed, negative, 1)
        estimate = float(np.clip(-level / slope if slope > 0 else 0.0, 0.0, 0.499))
    return estimate


def _fraction_of_moments(means: Floats) -> float:
    """Return the fraction from ⟨(I₁-I₂)²⟩ = 2(1-2α)² and ⟨(I₁+I₂)²⟩ = 6 of normalised intensities, noise taken out of both."""
    difference, total = (float(v) for v in means)
    return 0.5 * (1.0 - float(np.sqrt(np.clip(3.0 * difference / total, 0.0, 1.0)))) if total > 0 else float("nan")

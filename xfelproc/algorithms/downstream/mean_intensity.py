"""Mean intensity that Wilson's statistics expect of a reflection, as a smooth function of its place in reciprocal space.

ln⟨I/ε⟩ is a cubic spline in 1/d² (Eilers & Marx 1996, Stat. Sci. 11, 89: equidistant knots, penalty on second differences) and a
traceless anisotropic term -½ qᵀ ΔB q that the point group allows. The coefficients solve Σ (I - μ) ∂μ/∂β / V = 0 with the variance
V = c μ² + σ² of an intensity about its mean, c = 1 (acentric) or 2 (centric) by Wilson (1949), Acta Cryst. 2, 318, σ from the
measurement: unbiased also where most intensities are noise, and never negative (quasi-likelihood: Wedderburn 1974, Biometrika 61,
439).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline

from xfelproc.geometry.cells import b_matrix, real_space_basis
from xfelproc.geometry.miller import Indices

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

DEGREE = 3
MOST_SEGMENTS, REFLECTIONS_A_SEGMENT = 15, 100
ROUGHNESS = 0.5
"""Expected standard deviation of second differences of neighbouring spline coefficients (of ln I)."""
MAX_STEPS, TOLERANCE = 60, 1e-8
LONGEST_STEP = 1.0
"""Most that ln μ may change in a step."""
OUTLIER = 20.0
"""Standard deviations from the mean beyond which an intensity has no say: under Wilson's statistics it cannot be."""
N_SHELLS = 20
"""Shells of equal volume in which the mean I/σ is judged."""
FEWEST = 30
"""Reflections below which nothing is fitted."""


@dataclass(frozen=True)
class Reflections:
    """Merged intensities for the statistics; all (n,) but ``hkl`` (n, 3) and ``q`` (n, 3), reciprocal vectors in 1/Å.

    ``intensity`` and ``sigma`` are divided by the multiplicity factor ε of the reflection's class.
    """

    hkl: Indices
    q: Floats
    intensity: Floats
    sigma: Floats
    centric: Bools

    def __len__(self) -> int:
        return len(self.hkl)

    @property
    def s2(self) -> Floats:
        """1/d² in 1/Å²."""
        squared: Floats = np.einsum("ij,ij->i", self.q, self.q)
        return squared

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Reflections:
        """Return some of them."""
        return Reflections(self.hkl[rows], self.q[rows], self.intensity[rows], self.sigma[rows], self.centric[rows])


def significant(reflections: Reflections, limit: float) -> tuple[Bools, float]:
    """Return which reflections lie in the shells from low resolution on with a mean I/σ of ``limit``, and the last one's d (Å)."""
    s3 = reflections.s2**1.5
    if not len(s3):
        return np.zeros(0, dtype=bool), float("nan")
    edges = np.linspace(0.0, float(s3.max()) * (1 + 1e-12), N_SHELLS + 1)
    shell = np.clip(np.searchsorted(edges, s3, side="right") - 1, 0, N_SHELLS - 1)
    number = np.bincount(shell, minlength=N_SHELLS)
    total = np.bincount(shell, reflections.intensity / reflections.sigma, N_SHELLS)
    weak = (number > 0) & (total < limit * number)
    last = int(np.argmax(weak)) if weak.any() else N_SHELLS
    return shell < last, float(edges[last] ** (-1.0 / 3.0)) if last else float("nan")


def epsilon_of(hkl: Indices, group: gemmi.SpaceGroup) -> Floats:
    """Return ε (n,): by how much the mean intensity of an index's class is raised by symmetry, centring left out."""
    indices = np.ascontiguousarray(hkl, dtype=np.int32)
    return np.asarray(group.operations().epsilon_factor_without_centering_array(indices), dtype=np.float64).reshape(-1)


def reflections_of(
    hkl: Indices, intensity: Floats, sigma: Floats, cell: Sequence[float], group: gemmi.SpaceGroup
) -> tuple[Reflections, NDArray[np.int64]]:
    """Return those that have an intensity, a positive sigma and are not extinct, and their rows."""
    hkl = np.ascontiguousarray(hkl, dtype=np.int32).reshape(-1, 3)
    operations = group.operations()
    absent = np.asarray(operations.systematic_absences(hkl), dtype=bool).reshape(-1) | ~hkl.any(axis=1)
    good = np.isfinite(intensity) & np.isfinite(sigma) & (np.nan_to_num(sigma) > 0) & ~absent
    rows = np.flatnonzero(good)
    hkl = np.ascontiguousarray(hkl[rows])
    epsilon = epsilon_of(hkl, group)
    centric = np.asarray(operations.centric_flag_array(hkl), dtype=bool).reshape(-1)
    q = hkl.astype(np.float64) @ b_matrix(cell).T
    return Reflections(hkl, q, intensity[rows] / epsilon, sigma[rows] / epsilon, centric), rows


def allowed_tensors(cell: Sequence[float], group: gemmi.SpaceGroup) -> Floats:
    """Return (k, 3, 3) orthonormal traceless symmetric tensors, in the frame of `geometry.cells`, that the point group allows."""
    m = real_space_basis(cell).T  # columns a, b, c: Cartesian = m · fractional
    rotations = [m @ (np.array(op.rot) / op.DEN) @ np.linalg.inv(m) for op in group.operations().sym_ops]
    unit = np.sqrt(0.5)
    pairs = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    basis = np.zeros((6, 3, 3))
    for number, (i, j) in enumerate(pairs):
        basis[number, i, j] = basis[number, j, i] = 1.0 if i == j else unit
    averaged = np.mean([r @ basis @ r.T for r in rotations], axis=0)
    averaged -= np.trace(averaged, axis1=1, axis2=2)[:, None, None] * np.eye(3) / 3.0
    projector = np.einsum("aij,bij->ab", basis, averaged)
    u, values, _ = np.linalg.svd(projector)
    kept = u[:, values > 0.5].T  # a projector's singular values are 0 and 1, up to a cell that is not quite symmetric
    return np.asarray(np.einsum("ka,aij->kij", kept, basis), dtype=np.float64)


@dataclass(frozen=True)
class MeanIntensity:
    """A fitted mean.

    ``knots`` (with the outer ones) and ``coefficients`` are the spline's in 1/d²; ``delta_b`` (3, 3) is ΔB in Å², traceless, and
    ``delta_b_sigma`` (3, 3) the standard deviations of its elements; ``anisotropy_chi2`` is the χ² of ΔB against 0 and
    ``n_free`` the number of its free parameters. ``floor`` is the standard deviation of a shell's mean at 1/d² ``floor_s2``: a
    smaller mean is not known, and the mean is not taken for smaller, lest noise that came out negative makes amplitudes of nothing.
    """

    knots: Floats
    coefficients: Floats
    delta_b: Floats
    delta_b_sigma: Floats
    anisotropy_chi2: float
    n_free: int
    converged: bool
    floor_s2: Floats
    floor: Floats

    def isotropic(self, s2: Floats) -> Floats:
        """Return ⟨I/ε⟩ without the anisotropic term at 1/d² (n,), constant beyond the knots."""
        inside = np.clip(s2, self.knots[DEGREE], self.knots[-DEGREE - 1])
        spline = np.exp(BSpline(self.knots, self.coefficients, DEGREE)(inside))
        return np.asarray(np.maximum(spline, np.interp(s2, self.floor_s2, self.floor)), dtype=np.float64)

    def at(self, q: Floats) -> Floats:
        """Return ⟨I/ε⟩ at reciprocal vectors (n, 3), 1/Å."""
        expected: Floats = self.isotropic(np.einsum("ij,ij->i", q, q)) * self.anisotropy(q)
        return expected

    def anisotropy(self, q: Floats) -> Floats:
        """Return exp(-½ qᵀ ΔB q) (n,)."""
        return np.asarray(np.exp(-0.5 * np.einsum("ij,jk,ik->i", q, self.delta_b, q)), dtype=np.float64)


def fit_mean(reflections: Reflections, tensors: Floats | None = None) -> MeanIntensity | None:
    """Fit the mean intensity.

    Parameters
    ----------
    reflections
        From `reflections_of`.
    tensors
        Anisotropic terms, from `allowed_tensors`; None: isotropic.

    Returns
    -------
    MeanIntensity | None
        None if there are fewer than 30 reflections, or their mean is not positive.
    """
    if len(reflections) < FEWEST or not float(np.sum(reflections.intensity)) > 0:
        return None
    terms = np.zeros((0, 3, 3)) if tensors is None else tensors
    s2, n_terms = reflections.s2, len(terms)
    segments = int(np.clip(len(s2) // REFLECTIONS_A_SEGMENT, 1, MOST_SEGMENTS))
    knots = _knots(float(s2.min()), float(s2.max()), segments)
    spline = BSpline.design_matrix(np.clip(s2, knots[DEGREE], knots[-DEGREE - 1]), knots, DEGREE).toarray()
    design = np.column_stack([spline, *(-0.5 * np.einsum("ij,jk,ik->i", reflections.q, t, reflections.q) for t in terms)])
    penalty = np.zeros((design.shape[1],) * 2)
    n_spline = spline.shape[1]
    differences = np.diff(np.eye(n_spline), 2, axis=0) / ROUGHNESS
    penalty[:n_spline, :n_spline] = differences.T @ differences
    start = np.append(_start(reflections, knots, n_spline), np.zeros(n_terms))
    beta, covariance, converged = _solve(design, reflections, penalty, start)
    tensor, sigma, chi2 = np.zeros((3, 3)), np.zeros((3, 3)), 0.0
    if n_terms:
        part, block = beta[n_spline:], covariance[n_spline:, n_spline:]
        tensor = np.einsum("k,kij->ij", part, terms)
        sigma = np.sqrt(np.einsum("kij,kl,lij->ij", terms, block, terms))
        chi2 = float(part @ np.linalg.solve(block, part))
    return MeanIntensity(knots, beta[:n_spline], tensor, sigma, chi2, n_terms, converged, *_floor(reflections))


def _knots(low: float, high: float, segments: int) -> Floats:
    step = max((high - low) / segments, 1e-9)
    return np.asarray(low + step * np.arange(-DEGREE, segments + DEGREE + 1), dtype=np.float64)


def _floor(reflections: Reflections) -> tuple[Floats, Floats]:
    """Return 1/d² of shells of equal numbers, and the standard deviations of their means from measurement."""
    order = np.argsort(reflections.s2, kind="stable")
    shells = np.array_split(order, max(1, len(order) // REFLECTIONS_A_SEGMENT))
    s2 = np.array([reflections.s2[rows].mean() for rows in shells])
    return s2, np.array([np.sqrt(np.sum(reflections.sigma[rows] ** 2)) / len(rows) for rows in shells])


def _start(reflections: Reflections, knots: Floats, n_spline: int) -> Floats:
    """Return coefficients of a straight line through ln of means of shells of equal numbers."""
    order = np.argsort(reflections.s2, kind="stable")
    shells = np.array_split(order, max(2, min(20, len(order) // 15)))
    s2 = np.array([reflections.s2[rows].mean() for rows in shells])
    mean = np.array([reflections.intensity[rows].mean() for rows in shells])
    good = mean > 0
    slope, level = 0.0, float(np.log(reflections.intensity.mean()))
    if np.count_nonzero(good) >= 2:
        slope, level = (float(v) for v in np.polyfit(s2[good], np.log(mean[good]), 1))
    # a spline whose coefficients are a line at the means of their knots is that line
    places = np.array([knots[i + 1 : i + DEGREE + 1].mean() for i in range(n_spline)])
    return np.asarray(level + min(slope, 0.0) * places, dtype=np.float64)


def _solve(design: Floats, reflections: Reflections, penalty: Floats, start: Floats) -> tuple[Floats, Floats, bool]:
    """Return coefficients, their covariance (by the scatter that was found) and whether the steps came to an end."""
    beta, expected_spread = start, np.where(reflections.centric, 2.0, 1.0)
    for _ in range(MAX_STEPS):
        residual, weight = _residuals(design @ beta, reflections, expected_spread)
        information = design.T @ (weight[:, None] * design) + penalty
        step = np.linalg.solve(information, design.T @ (weight * residual) - penalty @ beta)
        longest = float(np.max(np.abs(design @ step)))
        beta = beta + step * min(1.0, LONGEST_STEP / max(longest, 1e-300))
        if longest < TOLERANCE:
            break
    residual, weight = _residuals(design @ beta, reflections, expected_spread)
    inverse = np.linalg.inv(design.T @ (weight[:, None] * design) + penalty)
    scored = design * (weight * residual)[:, None]
    return beta, inverse @ (scored.T @ scored) @ inverse, longest < 1e-4


def _residuals(log_mean: Floats, reflections: Reflections, spread: Floats) -> tuple[Floats, Floats]:
    """Return I/μ - 1 and its inverse variance, 0 for what cannot be an intensity of this mean."""
    mean = np.exp(np.clip(log_mean, -300.0, 300.0))
    with np.errstate(over="ignore"):
        residual = reflections.intensity / mean - 1.0
        variance = spread + (reflections.sigma / mean) ** 2
    weight = np.where(residual**2 < OUTLIER**2 * variance, 1.0 / variance, 0.0)
    return np.where(weight > 0, residual, 0.0), weight

"""Partiality of stills as a Gaussian of the excitation error, its width by likelihood.

A reflection at the excitation error ε diffracts with ``p = exp(-ε² / 2 w²)``, ``w² = w0² + (w1 / d)²``: w0 comes from the size of
the blocks, w1 from their misorientation and from the bandwidth (the separation of Nave 1998, Acta Cryst. D54, 848). One width
serves all lattices; the arrays over lattices are the place for a width of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.observations import Observations
from xfelproc.kernels.scaling import wilson_log_likelihood, wilson_scales

Floats = NDArray[np.float64]

FLOOR = 3e-3
"""Partiality that no excitation error falls below in the likelihood: tails beyond the Gaussian must not rule the width."""
SHELLS = 12
MIN_OBSERVATIONS = 200
MIN_SIGNAL = 5.0
"""Sum of the intensities of a resolution bin over its σ, below which the bin is noise alone and says nothing of a width."""


@dataclass(frozen=True)
class Widths:
    """Width w0 (1/Å) and slope w1 of each lattice, (n_lattices,)."""

    constant: Floats
    slope: Floats

    @classmethod
    def common(cls, widths: Floats, n_lattices: int) -> Widths:
        """Return the same two widths for all lattices."""
        return cls(np.full(n_lattices, widths[0]), np.full(n_lattices, widths[1]))

    def partiality(self, observations: Observations) -> Floats:
        """Return the partiality of each observation."""
        constant, slope = self.constant[observations.lattice], self.slope[observations.lattice]
        return gaussian(observations.excitation, observations.inverse_d2, constant, slope)


def gaussian(excitation: Floats, inverse_d2: Floats, constant: Floats | float, slope: Floats | float) -> Floats:
    """Return exp(-ε² / 2 w²) with w² = constant² + slope² / d²."""
    p: Floats = np.exp(-0.5 * excitation**2 / (np.square(constant) + np.square(slope) * inverse_d2))
    return p


def volume_limits(inverse_d2: Floats) -> tuple[float, float]:
    """Return the extremes of ``inverse_d2`` as 1/d³; (0, 0) of nothing."""
    if len(inverse_d2) == 0:
        return 0.0, 0.0
    volume = inverse_d2**1.5
    return float(volume.min()), float(volume.max())


def resolution_bins(inverse_d2: Floats, n: int, limits: tuple[float, float] | None = None) -> NDArray[np.int64]:
    """Return bins of equal reciprocal volume, 0 ... n - 1, between limits in 1/d³ (None: the extremes of ``inverse_d2``)."""
    low, high = volume_limits(inverse_d2) if limits is None else limits
    position = (inverse_d2**1.5 - low) / max(high - low, 1e-300) * n
    return np.clip(position, 0, n - 1).astype(np.int64)


def observed_variance(observations: Observations) -> Floats:
    """Return the variance of each observation by its own counts, for where nothing better is expected yet."""
    variance: Floats = observations.variance_fixed + observations.variance_gain * np.maximum(observations.intensity, 0.0)
    return variance


def _with_signal(observations: Observations) -> Observations:
    """Return the observations in the bins of resolution where there is something to observe."""
    bins = resolution_bins(observations.inverse_d2, SHELLS)
    variance = observed_variance(observations)
    total = np.bincount(bins, weights=observations.intensity, minlength=SHELLS)
    sigma = np.sqrt(np.bincount(bins, weights=variance, minlength=SHELLS))
    signal: NDArray[np.bool_] = total > MIN_SIGNAL * sigma
    return observations.select(signal[bins])


def fit_common_width(sample: Observations) -> tuple[float, float]:
    """Return the width w0 (1/Å) and slope w1 that make the observations likeliest under Wilson's law.

    The full intensities are unknown, exponentially distributed about the mean of their resolution; scales and means are
    profiled out. No merged intensity enters, so the fit needs no multiplicity, and a sample does. Bins of resolution beyond
    the diffraction limit stay out: they have no mean to profile.

    Returns
    -------
    tuple[float, float]
        (0.001, 0) if there are too few observations or no excitation errors to judge by.
    """
    sample = _with_signal(sample)
    spread = float(np.sqrt(np.mean(sample.excitation**2))) if len(sample) else 0.0
    if len(sample) < MIN_OBSERVATIONS or spread == 0.0:
        return 1e-3, 0.0
    bins = resolution_bins(sample.inverse_d2, SHELLS)
    variance = observed_variance(sample)
    sigma = np.sqrt(variance)

    def negative(log_widths: Floats) -> float:
        constant, slope = np.exp(np.clip(log_widths, -16.0, 0.0))
        p = np.maximum(gaussian(sample.excitation, sample.inverse_d2, constant, slope), FLOOR)
        scales, means = wilson_scales(sample.intensity, variance, p, sample.lattice, bins, sample.n_lattices, SHELLS, 4)
        return -float(wilson_log_likelihood(sample.intensity, sigma, scales[sample.lattice] * means[bins] * p))

    from scipy.optimize import minimize  # a second to import: not at every start

    start = np.log([0.5 * spread, 0.5 * spread])
    found = minimize(negative, start, method="Nelder-Mead", options={"xatol": 0.02, "fatol": 0.5, "maxfev": 80})
    constant, slope = np.exp(np.clip(found.x, -16.0, 0.0))
    return float(constant), float(slope)

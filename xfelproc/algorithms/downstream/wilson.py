"""Wilson plot and overall B (Wilson 1942, Nature 150, 152), with an uncertainty that tells how straight the plot is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.downstream.mean_intensity import MeanIntensity, Reflections, significant

Floats = NDArray[np.float64]
Composition = Literal["protein", "nucleic_acid"]

COMPOSITIONS: dict[str, dict[str, float]] = {
    "protein": {"C": 5.0, "H": 8.0, "N": 1.35, "O": 1.5, "S": 0.05},
    "nucleic_acid": {"C": 9.75, "H": 12.0, "N": 3.75, "O": 6.0, "P": 1.0},
}
"""Atoms of a typical residue: only their ratios count."""
LOW_RESOLUTION_LIMIT = 4.0
"""Å below which (larger d) the plot of a macromolecule is bent by solvent and secondary structure, and is not fitted."""
SIGNIFICANT = 1.0
"""Mean I/σ of a shell down to which the fit goes: beyond there may be no diffraction at all."""
FEWEST_IN_FIT = 50
MOST_SHELLS, REFLECTIONS_A_SHELL = 40, 30
MAX_STEPS = 50


@dataclass(frozen=True)
class WilsonPlot:
    """Wilson plot: by shell 1/d² (1/Å²), ln(⟨I/ε⟩/Σf²) (NaN: mean not positive), its standard deviation, and the fitted line.

    ``b_factor`` is the mean B in Å² (I ∝ exp(-B/(2d²))); ``b_sigma`` its standard deviation from the scatter about the line,
    shell by shell, as structure makes it. ``d_max`` and ``d_min`` (Å) bound the fit.
    """

    s2: Floats
    log_ratio: Floats
    log_sigma: Floats
    line: Floats
    b_factor: float
    b_sigma: float
    log_scale: float
    d_max: float
    d_min: float
    n_reflections: int


def scattering_power(s2: Floats, composition: Composition = "protein") -> Floats:
    """Return Σf² of a residue at 1/d² (n,), by the form factors of the International Tables (1992) vol. C."""
    elements = [(number, gemmi.Element(symbol).it92) for symbol, number in COMPOSITIONS[composition].items()]
    grid = np.linspace(0.0, max(float(s2.max()), 1e-6), 400)
    power = np.zeros_like(grid)
    for number, factor in elements:
        power += number * np.array([factor.calculate_sf(0.25 * x) for x in grid]) ** 2
    return np.asarray(np.interp(s2, grid, power), dtype=np.float64)


def wilson_plot(
    reflections: Reflections, mean: MeanIntensity | None = None, composition: Composition = "protein"
) -> WilsonPlot | None:
    """Return the Wilson plot.

    Parameters
    ----------
    reflections
        Intensities with ε taken out.
    mean
        Its anisotropic term is taken out first, so that B is the mean over the directions; None: nothing is.
    composition
        Whose form factors are divided out.

    Returns
    -------
    WilsonPlot | None
        None if fewer than 50 reflections lie in the range of the fit: from 4 Å (from low resolution, where the data end before
        3.5 Å) to where the mean I/σ of a shell falls below 1.
    """
    if len(reflections) < FEWEST_IN_FIT:
        return None
    s2 = reflections.s2
    expected = scattering_power(s2, composition) * (1.0 if mean is None else mean.anisotropy(reflections.q))
    ratio, sigma = reflections.intensity / expected, reflections.sigma / expected
    limit = LOW_RESOLUTION_LIMIT**-2
    signal, _ = significant(reflections, SIGNIFICANT)
    signal = signal if np.count_nonzero(signal) >= FEWEST_IN_FIT else np.ones(len(s2), dtype=bool)
    fitted = signal & (s2 >= limit) if float(s2[signal].max()) > 3.5**-2 else signal
    if np.count_nonzero(fitted) < FEWEST_IN_FIT or not float(np.sum(ratio[fitted])) > 0:
        return None
    spread = np.where(reflections.centric, 2.0, 1.0)
    shells = _shells(s2)
    line, covariance = _fit(s2[fitted], ratio[fitted], sigma[fitted], spread[fitted])
    places, logs, errors = _points(shells, s2, ratio, sigma, spread)
    ends = np.sqrt(s2[fitted])
    return WilsonPlot(
        s2=places,
        log_ratio=logs,
        log_sigma=errors,
        line=line[0] - 0.5 * line[1] * places,
        b_factor=float(line[1]),
        b_sigma=float(np.sqrt(covariance[1, 1])),
        log_scale=float(line[0]),
        d_max=float(1.0 / ends.min()),
        d_min=float(1.0 / ends.max()),
        n_reflections=int(np.count_nonzero(fitted)),
    )


def _shells(s2: Floats) -> list[NDArray[np.int64]]:
    order = np.argsort(s2, kind="stable")
    return list(np.array_split(order, int(np.clip(len(order) // REFLECTIONS_A_SHELL, 2, MOST_SHELLS))))


def _points(
    shells: list[NDArray[np.int64]], s2: Floats, ratio: Floats, sigma: Floats, spread: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return place, ln of the mean and its standard deviation of each shell."""
    places, logs, errors = [], [], []
    for rows in shells:
        mean = float(ratio[rows].mean())
        places.append(float(s2[rows].mean()))
        logs.append(float(np.log(mean)) if mean > 0 else float("nan"))
        variance = float(np.sum(spread[rows] * mean**2 + sigma[rows] ** 2)) / len(rows) ** 2
        errors.append(np.sqrt(variance) / mean if mean > 0 else float("nan"))
    return np.array(places), np.array(logs), np.array(errors)


def _fit(s2: Floats, ratio: Floats, sigma: Floats, spread: Floats) -> tuple[Floats, Floats]:
    """Return (ln scale, B) and their covariance, from the equations of `mean_intensity` with a line for the spline."""
    design = np.column_stack([np.ones(len(s2)), -0.5 * s2])
    beta = np.array([np.log(float(ratio.mean())), 0.0])
    beta[0] += 0.5 * beta[1] * float(s2.mean())
    for _ in range(MAX_STEPS):
        scored, information = _scores(design, beta, ratio, sigma, spread)
        step = np.linalg.solve(information, scored.sum(axis=0))
        longest = float(np.max(np.abs(design @ step)))
        beta = beta + step * min(1.0, 1.0 / max(longest, 1e-300))
        if longest < 1e-9:
            break
    scored, information = _scores(design, beta, ratio, sigma, spread)
    # sums of shells: structure bends the plot, so neighbours deviate alike, and single scores would be too hopeful
    sums = np.array([scored[rows].sum(axis=0) for rows in _shells(s2)])
    inverse = np.linalg.inv(information)
    by_shell, by_theory = inverse @ (sums.T @ sums) @ inverse * len(sums) / max(1, len(sums) - 2), inverse
    return beta, np.asarray(by_shell if by_shell[1, 1] > by_theory[1, 1] else by_theory, dtype=np.float64)


def _scores(design: Floats, beta: Floats, ratio: Floats, sigma: Floats, spread: Floats) -> tuple[Floats, Floats]:
    expected = np.exp(np.clip(design @ beta, -300.0, 300.0))
    weight = 1.0 / (spread + (sigma / expected) ** 2)
    return design * (weight * (ratio / expected - 1.0))[:, None], design.T @ (weight[:, None] * design)

"""What is expected of full intensities before the lattices at hand: by Wilson's law, or by intensities that are given.

Lattices are scaled and refined against the mean of the others with this added, as one more observation: where the others say
little it holds, where they say much it does not matter. Merged intensities are made of observations alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.partiality import SHELLS, resolution_bins, volume_limits

Floats = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]

BINS = 20
FEWEST = 50
"""Reflections in common that tell how far given intensities can be trusted."""
LEAST = 1e-2
"""Relative error of given intensities at least: another crystal is never quite the same."""


@dataclass(frozen=True)
class Prior:
    """Expected intensity of each unique reflection, (n,), and the inverse variance of that; ``given`` where it is not Wilson's."""

    mean: Floats
    weight: Floats
    given: NDArray[np.bool_]

    @classmethod
    def wilson(cls, typical: Floats) -> Prior:
        """Return Wilson's law: the intensity is t ± t where t is the ``typical`` one of the resolution (0: nothing is known)."""
        weight = np.divide(1.0, typical**2, out=np.zeros(len(typical)), where=typical > 0)
        return cls(typical, weight, np.zeros(len(typical), dtype=bool))

    @classmethod
    def of_given(cls, given: Floats, mean: Floats, weight: Floats, typical: Floats, inverse_d2: Floats) -> Prior:
        """Return given intensities (NaN: none) on the scale of the merged ``mean``, as sure as they are found to agree with it.

        A scale and a B bring them to it. Their error is relative to T + t, t the typical intensity: a shell's mean square
        difference beyond what ``weight`` (0: not merged) explains. Without enough in common it is Wilson's law.
        """
        wilson = cls.wilson(typical)
        both = np.flatnonzero(np.isfinite(given) & (weight > 0) & (typical > 0))
        if len(both) < FEWEST:
            return wilson
        scaled = given * _scale(given[both], mean[both], inverse_d2[both], inverse_d2)
        bins = resolution_bins(inverse_d2, SHELLS, volume_limits(inverse_d2[both]))
        size = np.maximum(scaled, 0.0) + typical
        noise = 1.0 / weight[both]
        u = size[both] ** 2 / (noise + 0.1 * size[both] ** 2) ** 2
        excess = u * ((mean[both] - scaled[both]) ** 2 - noise)
        total = np.bincount(bins[both], u * size[both] ** 2, minlength=SHELLS)
        relative = np.divide(np.bincount(bins[both], excess, minlength=SHELLS), total, out=np.ones(SHELLS), where=total > 0)
        variance = np.clip(relative, LEAST**2, 1.0)[bins] * size**2
        known = np.isfinite(given) & (typical > 0)
        return cls(
            np.where(known, scaled, wilson.mean),
            np.divide(1.0, variance, out=wilson.weight.copy(), where=known),
            known,
        )

    def arrays(self) -> Arrays:
        """Return it as named arrays; `from_arrays` takes them back."""
        return {"mean": self.mean, "weight": self.weight, "given": self.given}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Prior:
        """Return what `arrays` came from."""
        return cls(np.asarray(arrays["mean"]), np.asarray(arrays["weight"]), np.asarray(arrays["given"]))


def _scale(given: Floats, mean: Floats, inverse_d2: Floats, wanted: Floats) -> Floats:
    """Return scale · exp(-B / 2d²) at each ``wanted`` 1/d²: a line through the logarithms of the ratios of sums in bins."""
    order = np.argsort(inverse_d2, kind="stable")
    middles, ratios, counts = [], [], []
    for rows in np.array_split(order, max(1, min(BINS, len(order) // FEWEST))):
        ours, theirs = float(mean[rows].sum()), float(given[rows].sum())
        if ours > 0 and theirs > 0:
            middles.append(float(inverse_d2[rows].mean()))
            ratios.append(np.log(ours / theirs))
            counts.append(np.sqrt(len(rows)))
    if not ratios:
        return np.ones(len(wanted))
    slope, constant = np.polyfit(middles, ratios, 1, w=counts) if len(ratios) > 1 else (0.0, ratios[0])
    factor: Floats = np.exp(constant + slope * wanted)
    return factor

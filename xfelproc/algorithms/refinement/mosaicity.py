"""Mosaicity of a still: domain size and half mosaicity from the ΔΨ of its indexed spots."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xfelproc.geometry.prediction import DEFAULT_DOMAIN_SIZE, DEFAULT_HALF_MOSAICITY
from xfelproc.kernels.mosaicity import fit_mosaicity
from xfelproc.models.parameters import Parameters

Floats = NDArray[np.float64]

_EDGE = 2.0  # softness of the envelope: its density falls from 88 to 12 % between 0.5 and 1.5 half-widths
_PRIOR_SIGMA = 2.3  # a factor of ten each way
_CYCLES = 30


class Mosaicity(Parameters):
    """Maximum likelihood of ``ΔΨ_max(d) = d/D + η/2`` (Sauter et al. 2014, Acta Cryst. D70, 3299)."""

    min_domain_size: Annotated[float, Field(gt=0, description="smallest domain size D, Å")] = 100.0
    max_domain_size: Annotated[float, Field(gt=0, description="largest domain size D, Å")] = 20000.0
    min_half_mosaicity: Annotated[float, Field(gt=0, lt=5, description="smallest half mosaicity η/2, degrees")] = 0.001
    max_half_mosaicity: Annotated[float, Field(gt=0, lt=5, description="largest half mosaicity η/2, degrees")] = 2.0

    def fit(self, delta_psi: Floats, d: Floats, wavelength: float, bandwidth: float) -> tuple[float, float]:
        """Return D in Å and η/2 in degrees for spots of given ΔΨ (degrees) and resolution (Å).

        The relative bandwidth (full width at half maximum) widens the envelope by half of it times tanθ. Few spots leave the split
        open: a wide prior about 2000 Å and 0.05° then decides.
        """
        sine = np.minimum(0.5 * wavelength / d, 0.999)
        widened = 0.5 * bandwidth * sine / np.sqrt(1.0 - sine * sine)
        bounds = np.array(
            [
                [1.0 / self.max_domain_size, 1.0 / self.min_domain_size],
                np.radians([self.min_half_mosaicity, self.max_half_mosaicity]),
            ]
        )
        start = np.array([1.0 / DEFAULT_DOMAIN_SIZE, np.radians(DEFAULT_HALF_MOSAICITY)]).clip(bounds[:, 0], bounds[:, 1])
        best = fit_mosaicity(np.radians(delta_psi), d, widened, start, bounds, _EDGE, _PRIOR_SIGMA, _CYCLES)
        return float(1.0 / best[0]), float(np.degrees(best[1]))

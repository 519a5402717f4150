"""What all blocks of lattices must know in a cycle of scaling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.error_model import NO_ERRORS, ErrorModel
from xfelproc.algorithms.merging.lattice_block import UniqueReflections
from xfelproc.algorithms.merging.partiality import SHELLS, resolution_bins
from xfelproc.algorithms.merging.population import Population
from xfelproc.algorithms.merging.prior import Prior
from xfelproc.algorithms.merging.reference import Arrays, Floats, Reference
from xfelproc.algorithms.merging.sample import Beginning
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.algorithms.merging.strains import strain_shapes

TOLERANCE = 2e-3
"""Change of the reference, Σ|ΔJ| / Σ|J|, below which the cycles end."""


@dataclass(frozen=True)
class CycleState:
    """What all blocks must know: of the size of the unique reflections.

    ``typical`` (n,) is the mean intensity at the resolution of each; ``gauge`` (2,) are the means of log scale and B over the
    observations of the last cycle; ``change`` is that of the reference in it.
    """

    settings: Merge
    beginning: Beginning
    unique: UniqueReflections
    typical: Floats
    reference: Reference
    gauge: Floats
    population: Population
    """What the lattices are restrained to."""
    prior: Prior
    """What is expected of the intensities."""
    cycle: int = 0
    change: float = np.inf
    errors: ErrorModel = NO_ERRORS
    """Of the next weights."""
    last_errors: ErrorModel = NO_ERRORS
    """With which the reference was formed."""
    first_gauge: Floats = field(default_factory=lambda: np.zeros(2))
    """The gauge after the first cycle, to which the reference is held."""
    shapes: Floats = field(default_factory=lambda: np.zeros((0, 3, 3)))
    """(k, 3, 3) strains of the reciprocal cell that are refined (`strain_shapes`)."""
    given: Floats = field(default_factory=lambda: np.zeros(0))
    """(n,) intensities that are given, on any scale (NaN: not this one); empty: none are."""

    @property
    def finished(self) -> bool:
        """Whether the models are final: `output_block` is next."""
        refined = self.settings.scale or self.settings.refines_partiality
        last = self.settings.max_cycles if refined else 1
        return self.cycle > last or (self.cycle > 1 and self.converged)

    @property
    def converged(self) -> bool:
        """Whether the last cycle changed next to nothing."""
        return self.change < TOLERANCE

    def arrays(self) -> Arrays:
        """Return all but the settings as named arrays; `from_arrays` takes them back."""
        parts: dict[str, Arrays] = {
            "beginning": self.beginning.arrays(),
            "unique": self.unique.arrays(),
            "reference": self.reference.arrays(),
            "population": self.population.arrays(),
            "prior": self.prior.arrays(),
            "errors": self.errors.arrays(),
            "last_errors": self.last_errors.arrays(),
        }
        named = {f"{part}.{name}": values for part, arrays in parts.items() for name, values in arrays.items()}
        numbers = np.array([self.cycle, self.change], dtype=np.float64)
        return named | {
            "typical": self.typical,
            "gauge": self.gauge,
            "first_gauge": self.first_gauge,
            "numbers": numbers,
            "shapes": self.shapes,
            "given": self.given,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], settings: Merge) -> CycleState:
        """Return what `arrays` came from."""

        def part(name: str) -> Arrays:
            return {key.partition(".")[2]: values for key, values in arrays.items() if key.startswith(f"{name}.")}

        cycle, change = arrays["numbers"].tolist()
        return cls(
            settings,
            Beginning.from_arrays(part("beginning")),
            UniqueReflections.from_arrays(part("unique")),
            arrays["typical"],
            Reference.from_arrays(part("reference")),
            arrays["gauge"],
            Population.from_arrays(part("population")),
            Prior.from_arrays(part("prior")),
            int(cycle),
            change,
            ErrorModel.from_arrays(part("errors")),
            ErrorModel.from_arrays(part("last_errors")),
            arrays["first_gauge"],
            arrays["shapes"],
            arrays["given"],
        )


def start(
    unique: UniqueReflections, beginning: Beginning, settings: Merge, space_group: gemmi.SpaceGroup | None = None
) -> CycleState:
    """Return the state before anything is merged; ``space_group`` is needed where cells are refined.

    Raises
    ------
    ValueError
        If cells are to be refined and there is no space group.
    """
    limits = (float(beginning.limits[0]), float(beginning.limits[1]))
    typical = beginning.shell_means[resolution_bins(unique.inverse_d2, SHELLS, limits)] if len(unique) else np.zeros(0)
    if not settings.scale:
        typical = typical * beginning.typical_scale  # all lattices have the scale 1
    reference = Reference.nothing(typical, settings.outlier_cut)
    errors, shapes = ErrorModel.initial(*settings.first_errors), np.zeros((0, 3, 3))
    if settings.refine_cell and settings.refines_partiality:
        if space_group is None:
            raise ValueError("refinement of cells needs the space group")
        shapes = strain_shapes(space_group)
    population = Population.expected(settings, beginning.widths, len(shapes))
    return CycleState(
        settings,
        beginning,
        unique,
        typical,
        reference,
        np.zeros(2),
        population,
        Prior.wilson(typical),
        errors=errors,
        last_errors=errors,
        shapes=shapes,
    )

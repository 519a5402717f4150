"""What is asked of a combination of lattices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from xfelproc.models.parameters import Parameters


class Combine(Parameters):
    """Section ``[combine]``: lattices of all shards with shared or averaged models, as DIALS files or one Zarr group."""

    enabled: Annotated[
        bool, Field(description="write gather/combined.expt and .refl (or .zarr) in a run; the command combine needs no such word")
    ] = False
    format: Annotated[
        Literal["dials", "zarr"], Field(description="of what a run writes; the command goes by the output's name")
    ] = "dials"
    reflections: Annotated[
        Literal["indexed", "integrated"],
        Field(description="DIALS: indexed spots (for refinement), or predicted and integrated reflections"),
    ] = "indexed"
    beam: Annotated[
        Literal["each", "shared", "average"],
        Field(description="each: every shot its own, equal ones written once; shared: the first shot's; average: the mean of all"),
    ] = "each"
    detector: Annotated[
        Literal["each", "shared", "average"],
        Field(
            description="each: every lattice the detector as its refinement moved it; shared: the recorded one of the first shot, "
            "or reference; average: the mean over the lattices"
        ),
    ] = "each"
    reference: Annotated[
        Path | None, Field(description="geometry file (.geom, .expt, NeXus) whose detector all share; None: the first shot's")
    ] = None
    average_level: Annotated[
        int | None,
        Field(
            ge=0, description="groups of this level of the detector's hierarchy move as one in the average (0: all); None: panels"
        ),
    ] = None
    compare: Annotated[bool, Field(description="refuse to share or average models that differ by more than the tolerances")] = True
    wavelength_tolerance: Annotated[float, Field(ge=0, description="largest relative difference of wavelengths")] = 1e-6
    direction_tolerance: Annotated[float, Field(ge=0, description="degrees between beams, and between their polarisations")] = 1e-4
    polarization_tolerance: Annotated[float, Field(ge=0, description="largest difference of polarisation fractions")] = 1e-6
    axis_tolerance: Annotated[float, Field(ge=0, description="degrees between the axes of a panel")] = 1e-4
    origin_tolerance: Annotated[float, Field(ge=0, description="mm between the origins of a panel")] = 5e-4
    max_length_difference: Annotated[
        float | None, Field(gt=0, description="largest relative difference of a cell's lengths from the consensus; None: any")
    ] = None
    max_angle_difference: Annotated[
        float | None, Field(gt=0, description="largest difference of a cell's angles from the consensus, degrees; None: any")
    ] = None
    rmsd_iqr: Annotated[
        float | None,
        Field(
            gt=0, description="leave out lattices whose RMSD is beyond the upper quartile by this many interquartile ranges (1.5)"
        ),
    ] = None
    min_reflections: Annotated[int, Field(ge=0, description="fewest reflections of a lattice, of those that are written")] = 1
    max_reflections: Annotated[int | None, Field(ge=1, description="most reflections of a lattice; None: any number")] = None
    n_subset: Annotated[int | None, Field(ge=1, description="lattices to keep of those that pass; None: all")] = None
    subset: Annotated[
        Literal["random", "reflections", "significance"],
        Field(
            description="which: drawn at random, those with the most reflections, or those whose I/σ reaches the highest resolution"
        ),
    ] = "random"
    seed: Annotated[int, Field(ge=0, description="of the draw at random")] = 0
    min_i_over_sigma: Annotated[
        float, Field(description="significance: mean I/σ of a shell that counts, of 20 shells of equal volume a lattice")
    ] = 1.0
    batch_size: Annotated[
        int | None, Field(ge=1, description="lattices a pair of DIALS files, X_0000.expt, X_0001.expt, ...; None: all in one")
    ] = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.reference is not None and self.detector != "shared":
            raise ValueError("reference is the detector that all share: it needs detector = 'shared'")
        if self.average_level is not None and self.detector != "average":
            raise ValueError("average_level is of the average: it needs detector = 'average'")
        return self


AS_THEY_ARE = Combine(reflections="integrated", min_reflections=0)
"""All lattices with their own models: what ``export --to dials`` writes."""

"""Parameters of metrology."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from xfelproc.models.parameters import Parameters

Freedom = Literal["free", "shared", "fixed"]


class MetrologySettings(Parameters):
    """Where the panels are: refined on the spots of all lattices at once, level by level of the detector's tree."""

    enabled: Annotated[
        bool | Literal["auto"],
        Field(description="refine the detector between processing and merging; auto: where it has a tree and there is enough data"),
    ] = "auto"
    levels: Annotated[
        tuple[Annotated[int, Field(ge=0, le=9)], ...],
        Field(description="levels of the tree to refine, in order: 0 is the whole detector; none given: all there are"),
    ] = ()
    distance: Annotated[
        Freedom,
        Field(description="movements along the normal: of every group, of the whole detector alone (shared), or none"),
    ] = "free"
    tilts: Annotated[
        Freedom, Field(description="turns out of the plane: of every group, of the whole detector alone (shared), or none")
    ] = "free"
    outliers: Annotated[Literal["tukey", "huber", "none"], Field(description="weights of residuals, bounded panel by panel")] = (
        "tukey"
    )
    outlier_limit: Annotated[
        float, Field(gt=1, le=100, description="bound of the residuals, in their robust standard deviation on the panel")
    ] = 4.685
    sigma_floor: Annotated[float, Field(ge=0, description="systematic σ of a position, px, added to its variance")] = 0.03
    sigma_psi: Annotated[
        float, Field(ge=0, le=10, description="σ of ΔΨ, degrees; 0: each lattice's own, from its indexed spots")
    ] = 0.0
    sigma_psi_floor: Annotated[float, Field(gt=0, le=10, description="least σ of ΔΨ of a lattice, degrees")] = 0.005
    prediction: Annotated[
        Literal["auto", "turn", "point"],
        Field(
            description="how a reflection off its condition diffracts: by blocks that are turned, by its point's extent, or by what"
            " the spots say of these and of the beam's bandwidth (auto)"
        ),
    ] = "auto"
    cell_restraint: Annotated[float, Field(gt=0, description="relative standard deviation of a cell about the lattice's")] = 0.02
    restraint: Annotated[
        Literal["auto", "none"],
        Field(description="hold the groups to the level above, by as much as they are seen to move from it, or not at all"),
    ] = "auto"
    min_crystals: Annotated[int, Field(ge=1, description="lattices that metrology needs")] = 20
    min_crystal_spots: Annotated[int, Field(ge=3, description="spots a lattice needs to count")] = 6
    min_spots: Annotated[int, Field(ge=3, description="spots that a group needs to move by itself; else it follows the others")] = 5
    max_iterations: Annotated[int, Field(ge=1, le=100, description="passes over the data at one level")] = 8
    tolerance: Annotated[
        float, Field(gt=0, le=1, description="root mean square step, in standard deviations, at which a level is done")
    ] = 0.1
    max_shift: Annotated[float, Field(gt=0, description="a group that moves further than this ends the refinement, mm")] = 5.0
    iterate: Annotated[
        int, Field(ge=0, le=20, description="times that the spots are indexed again and the detector refined on them at most")
    ] = 5
    max_move: Annotated[
        float,
        Field(ge=0, description="frames whose reflections move by more than this are integrated again, px (root mean square)"),
    ] = 0.1
    block_frames: Annotated[
        int, Field(ge=0, description="frames of a block refined for itself, to follow a drift; 0: the run is one")
    ] = 0

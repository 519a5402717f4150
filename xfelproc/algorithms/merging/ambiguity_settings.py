"""Parameters of the resolution of indexing ambiguities."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from xfelproc.models.parameters import Parameters


class Ambiguity(Parameters):
    """Table ``[merge.ambiguity]``: lattices that could be indexed in several ways are put into the same one."""

    resolve: Annotated[
        Literal["auto", "off"],
        Field(
            description="auto: wherever the lattice has rotations that the space group has not; off: merge as indexed, and say so"
        ),
    ] = "auto"
    max_obliquity: Annotated[
        float,
        Field(gt=0, le=5, description="degrees by which a twofold axis of the lattice may be off, so that lattice accidents count"),
    ] = 2.0
    reference: Annotated[
        str | None,
        Field(description="MTZ or mmCIF of intensities, or amplitudes, in the setting that is wanted, relative to the job file"),
    ] = None
    d_min: Annotated[float | None, Field(gt=0, description="reflections beyond have no say, Å; None: all have")] = None
    starts: Annotated[int, Field(ge=1, le=100, description="starts that are compared, the first from lattices as indexed")] = 6
    min_probability: Annotated[
        float, Field(ge=0.5, le=1, description="probability of its setting below which a lattice is undecided")
    ] = 0.9
    undecided: Annotated[
        Literal["exclude", "keep"],
        Field(description="lattices whose setting is not known, where that of others is: left out, or merged in the likeliest"),
    ] = "exclude"

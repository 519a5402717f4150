"""Parameters of groups: lattices that are scaled together and merged apart."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from xfelproc.models.parameters import Parameters

MOST_GROUPS = 64
BINNED = ("frame", "wavelength", "dataset")
"""What has numbers that bins can be made of."""
NEEDS = {"table": "table", "dataset": "dataset", "column": "column"}


class Groups(Parameters):
    """Table ``[merge.groups]``: lattices that are scaled together and merged apart, and the differences between them."""

    by: Annotated[
        Literal["none", "table", "dataset", "run", "column", "frame", "wavelength"],
        Field(
            description="none: all are merged together; table: a file says it of each frame; dataset: a value a frame in the HDF5"
            " files; run, or a column of the runs' table: in campaigns; frame: number of the frame in its file; wavelength: in bins"
        ),
    ] = "none"
    table: Annotated[
        str | None,
        Field(
            description="CSV or TSV with columns source, frame (from 0; empty: all of the file) and group, or a list as CrystFEL's"
            " --custom-split takes (file //frame group), relative to the job file"
        ),
    ] = None
    dataset: Annotated[str | None, Field(description="path in the HDF5 files of one value a frame, or of one for the file")] = None
    column: Annotated[str | None, Field(description="column of the campaign's runs")] = None
    period: Annotated[int | None, Field(ge=2, description="numbers of frames count from 0 again after so many (by = frame)")] = None
    edges: Annotated[
        tuple[float, ...],
        Field(description="bounds of bins, ascending, the last one out: Å, numbers of frames, or the dataset's values"),
    ] = ()
    bins: Annotated[
        int | None, Field(ge=2, le=MOST_GROUPS, description="bins of equally many frames, where edges are not given")
    ] = None
    reference: Annotated[str | None, Field(description="group that the others are compared to; None: the first")] = None
    differences: Annotated[
        Literal["reference", "all", "none"], Field(description="pairs of groups whose differences are written")
    ] = "reference"
    scale_differences: Annotated[
        bool, Field(description="a relative scale and B, fitted by resolution, are taken off before differences are formed")
    ] = False

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = NEEDS.get(self.by)
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f'by = "{self.by}" needs {needed}')
        if self.edges and self.bins is not None:
            raise ValueError("give edges or bins, not both")
        if (self.edges or self.bins) and self.by not in BINNED:
            raise ValueError(f'edges and bins are for by = {", ".join(BINNED)}, not "{self.by}"')
        if len(self.edges) == 1 or any(b <= a for a, b in pairwise(self.edges)):
            raise ValueError(f"edges must be two or more, ascending: {list(self.edges)}")
        if self.by == "wavelength" and not self.edges and self.bins is None:
            raise ValueError('by = "wavelength" needs edges or bins')
        if self.by == "frame" and not self.edges and self.bins is None and self.period is None:
            raise ValueError('by = "frame" needs period, edges or bins')
        return self

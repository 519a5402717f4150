"""The ``[spots]`` section: a method, filters, and the hit decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from xfelproc.algorithms.spotfinding.block_background import BlockBackground
from xfelproc.algorithms.spotfinding.dispersion import Dispersion
from xfelproc.algorithms.spotfinding.dispersion_extended import DispersionExtended
from xfelproc.algorithms.spotfinding.measure import Floats, Measuring, measure_spots
from xfelproc.algorithms.spotfinding.radial_profile import RadialProfile
from xfelproc.algorithms.spotfinding.workspace import workspace_for
from xfelproc.kernels.spots import COLUMNS
from xfelproc.models.conventions import SpotFlag
from xfelproc.models.frames import Frame
from xfelproc.models.parameters import Parameters, method_by_name
from xfelproc.models.tables import SpotTable

ICE_D = np.array([3.897, 3.669, 3.441, 2.671, 2.249, 2.072, 1.948, 1.918, 1.883, 1.721])
"""Resolutions in Å of the strong powder rings of hexagonal ice (a 4.517, c 7.354 Å, near 100 K)."""

_C = {name: i for i, name in enumerate(COLUMNS)}


Spotfinder = Annotated[
    BlockBackground | Dispersion | DispersionExtended | RadialProfile,
    Field(discriminator="method"),
    BeforeValidator(method_by_name),
]


@dataclass(frozen=True)
class SpotSearch:
    """Spots of a frame, and how many candidates each filter took away."""

    spots: SpotTable
    dropped: dict[str, int]


class FindSpots(Parameters):
    """Find Bragg spots and decide whether the frame is a hit."""

    method: Annotated[Spotfinder, Field(description="how strong pixels are found")] = BlockBackground()
    min_snr: Annotated[float, Field(ge=0, le=1000, description="lowest intensity over its standard deviation")] = 5.0
    min_pixels: Annotated[int, Field(ge=1, le=1000, description="fewest pixels 2 σ and a tenth of the peak above background")] = 2
    max_pixels: Annotated[int, Field(ge=1, le=100_000, description="most strong pixels; what is larger is no spot")] = 200
    neighbours: Annotated[
        Literal[4, 8], Field(description="strong pixels that touch by edges (4) or also by corners (8) are one spot")
    ] = 8
    split: Annotated[bool, Field(description="part what has several distinct maxima; the parts are flagged")] = True
    ring_width: Annotated[int, Field(ge=1, le=20, description="width of the ring in which a spot's background is measured, px")] = 3
    d_min: Annotated[float | None, Field(gt=0, description="highest resolution, Å; None: no limit")] = None
    d_max: Annotated[float | None, Field(gt=0, description="lowest resolution, Å; None: no limit")] = None
    ice_rings: Annotated[
        Literal["keep", "flag", "drop"], Field(description="what to do with spots on the powder rings of hexagonal ice")
    ] = "flag"
    ice_width: Annotated[float, Field(gt=0, lt=0.1, description="half the width of an ice ring in 1/d², 1/Å²")] = 0.002
    max_peak_distance: Annotated[
        float, Field(gt=0, description="largest distance of the highest pixel's centre from the centroid, px")
    ] = 4.0
    max_spots: Annotated[int, Field(ge=1, description="most spots kept of a frame: those of highest S/N")] = 2000
    min_spots: Annotated[int, Field(ge=0, description="fewest spots of a hit")] = 10
    max_spots_hit: Annotated[
        int | None, Field(ge=1, description="most spots of a hit (powder, salt); None: no limit; not above max_spots")
    ] = None

    def find(self, frame: Frame) -> SpotTable:
        """Return the spots of a calibrated frame, in raster order."""
        return self.search(frame).spots

    def search(self, frame: Frame) -> SpotSearch:
        """Return the spots of a calibrated frame with the number of candidates dropped by each filter."""
        workspace = workspace_for(frame.pixels.shape, frame.pixels.dtype)
        strong = self.method.strong_pixels(frame, workspace)
        options = Measuring(self.method.GROW_BELOW, self.neighbours == 8, self.ring_width, self.split, self.max_pixels)
        rows, sizes, split = measure_spots(frame, strong, workspace, options)
        dropped: dict[str, int] = {}
        snr = np.zeros(len(rows))
        measured = rows[:, _C["variance"]] > 0
        np.divide(rows[:, _C["intensity"]], np.sqrt(rows[:, _C["variance"]]), out=snr, where=measured)
        inverse_d2 = np.zeros(len(rows))
        np.divide(1.0, rows[:, _C["d"]] ** 2, out=inverse_d2, where=measured)
        ice = np.abs(inverse_d2[:, None] - 1.0 / ICE_D**2).min(axis=1, initial=1.0) < self.ice_width
        keep = np.ones(len(rows), dtype=np.bool_)
        for reason, bad in self._filters(rows, sizes, snr, inverse_d2, ice, measured):
            n = int(np.count_nonzero(keep & bad))
            if n:
                dropped[reason] = n
                keep &= ~bad
        index = np.flatnonzero(keep)
        if len(index) > self.max_spots:
            dropped["beyond max_spots"] = len(index) - self.max_spots
            strongest = np.argsort(-snr[index], kind="stable")[: self.max_spots]
            index = index[np.sort(strongest)]
        flags = rows[index, _C["flags"]].astype(np.uint16) | np.where(split[index], np.uint16(SpotFlag.SPLIT), np.uint16(0))
        if self.ice_rings == "flag":
            flags |= np.where(ice[index], np.uint16(SpotFlag.ICE), np.uint16(0))
        return SpotSearch(_table(rows[index], snr[index], flags), dropped)

    def _filters(
        self,
        rows: Floats,
        sizes: NDArray[np.int64],
        snr: Floats,
        inverse_d2: Floats,
        ice: NDArray[np.bool_],
        measured: NDArray[np.bool_],
    ) -> list[tuple[str, NDArray[np.bool_]]]:
        """Return each filter's reason and the candidates it drops, in order of application."""
        filters = [
            ("too many pixels", sizes > self.max_pixels),
            ("no background", ~measured),
            ("low S/N", ~(snr >= self.min_snr)),
            ("too few pixels", rows[:, _C["n_pixels"]] < self.min_pixels),
            ("peak off centre", rows[:, _C["peak_distance"]] > self.max_peak_distance),
        ]
        if self.d_min is not None:
            filters.append(("beyond d_min", inverse_d2 > self.d_min**-2))
        if self.d_max is not None:
            filters.append(("below d_max", inverse_d2 < self.d_max**-2))
        if self.ice_rings == "drop":
            filters.append(("ice ring", ice))
        return filters

    def judge(self, spots: SpotTable) -> tuple[bool, str]:
        """Return whether the frame is a hit, and if not, why."""
        n = len(spots)
        if n < self.min_spots:
            return False, f"{n} spots, fewer than spots.min_spots = {self.min_spots}"
        if self.max_spots_hit is not None and n > self.max_spots_hit:
            return False, f"{n} spots, more than spots.max_spots_hit = {self.max_spots_hit}"
        return True, ""


def _table(rows: Floats, snr: Floats, flags: NDArray[np.uint16]) -> SpotTable:
    names = ("panel", "fast", "slow", "var_fast", "var_slow", "intensity", "background", "peak", "n_pixels", "d")
    columns = {name: rows[:, _C[name]] for name in names}
    return SpotTable(len(rows), snr=snr, flags=flags, bbox=rows[:, _C["fast0"] : _C["slow1"] + 1], **columns)

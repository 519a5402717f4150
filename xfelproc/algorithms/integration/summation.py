"""Integration of all lattices of a still by summation, over regions that follow the spots, above a robust planar background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from xfelproc.algorithms.integration.control import EXCLUDED, between, clear_of, is_control
from xfelproc.algorithms.integration.footprint import peak_regions
from xfelproc.geometry.prediction import detector_d_min, predict_still
from xfelproc.kernels.integration import integrate_still
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.experiment import Beam, Crystal, Detector
from xfelproc.models.frames import Control, Frame, IntegrationResult, RefinedLattice
from xfelproc.models.parameters import Parameters
from xfelproc.models.tables import ReflectionTable, SpotTable

_CELLS = 2**20  # packs three Miller indices of up to ±2¹⁹ in one integer
_WINDOW = 60
_WINDOW_PARTIALITY = 0.2
_CLEAR = 4.5  # least radii between a place of the control and the nearest reflection
_WINDOW_CLIP = 5.0  # so that one strong reflection does not carry a window


class Integrate(Parameters):
    """Prediction within the mosaic envelope and summation of peak regions as broad as the spots."""

    d_min: Annotated[float, Field(ge=0, description="resolution limit in Å; 0 takes each crystal's own")] = 0.0
    d_max: Annotated[float, Field(ge=0, description="low-resolution limit in Å; 0 is none")] = 0.0
    margin: Annotated[float, Field(gt=0, le=10, description="reflections are predicted to this many mosaic half-widths ΔΨ")] = 1.5
    radius: Annotated[float, Field(gt=0.5, le=30, description="least radius of the peak region, px")] = 2.0
    widths: Annotated[
        float,
        Field(
            ge=0,
            le=6,
            description="the peak region reaches this many standard deviations of the spots, as they are at each place of the"
            " detector; intensities are divided by what of a Gaussian it holds; 0: a disc of `radius` everywhere",
        ),
    ] = 2.25
    background_inner: Annotated[
        float,
        Field(gt=0.5, le=40, description="inner radius of the background ring about a region of `radius`, px; wider ones move it"),
    ] = 4.0
    background_outer: Annotated[
        float, Field(gt=1, le=31, description="outer radius of that ring, px; its area stays where the region is larger")
    ] = 7.5
    background_clip: Annotated[
        float, Field(gt=1, description="background pixels beyond this many standard deviations are left out")
    ] = 4.0
    min_background: Annotated[int, Field(ge=6, description="fewer background pixels flag a reflection as unusable")] = 30
    resolution_push: Annotated[
        float, Field(ge=0, description="how much further than the resolution of its spots a crystal is tried, 1/Å")
    ] = 0.15
    min_i_over_sigma: Annotated[
        float, Field(ge=0, description="the resolution limit is where the mean I/σ falls below this; 0 keeps all tried")
    ] = 0.5
    control: Annotated[
        float,
        Field(
            ge=0, le=1, description="share of the frames on which places between the reflections are integrated: merged, no signal"
        ),
    ] = 0.05

    @model_validator(mode="after")
    def _radii_in_order(self) -> Integrate:
        if not self.radius <= self.background_inner < self.background_outer:
            raise ValueError(
                f"radius {self.radius:g} ≤ background_inner {self.background_inner:g} < background_outer "
                f"{self.background_outer:g} does not hold"
            )
        return self

    def predict(self, crystal: Crystal, detector: Detector, beam: Beam, d_min: float) -> ReflectionTable:
        """Return the reflections of ``crystal`` that diffract within the margin, to ``d_min`` Å."""
        return predict_still(crystal, detector, beam, d_min, self.margin, self.d_max)

    def integrate(self, frame: Frame, lattices: Sequence[RefinedLattice], spots: SpotTable) -> IntegrationResult:
        """Return the integrated reflections of all ``lattices`` of a frame (its pixels in photons).

        Satellites have none: their reflections are their crystal's. Reflections whose peak regions meet, of the same lattice or of
        another, are flagged as overlaps; reflections at which a spot was indexed as observed.
        """
        if not lattices:
            return IntegrationResult((), (), ReflectionTable(0))
        own = [(number, lattice) for number, lattice in enumerate(lattices) if not lattice.satellite]
        tables = [self._predicted(number, lattice, frame.beam) for number, lattice in own]
        regions = [self._regions(frame, lattice, spots, table) for (_, lattice), table in zip(own, tables, strict=True)]
        table = self._summed(frame, ReflectionTable.concatenate(tables), np.concatenate([np.empty((0, 7)), *regions]))
        limits = [self._limit(table, number) for number in range(len(lattices))]
        if self.min_i_over_sigma > 0 and self.d_min == 0:
            table = table.select(table["d"] >= np.array(limits, dtype=np.float32)[table["lattice"]])
        control = self._control(frame, own, spots, table) if is_control(frame.ref, self.control) else None
        return IntegrationResult(tuple(lattice.crystal for lattice in lattices), tuple(limits), table, control)

    def _control(
        self, frame: Frame, lattices: Sequence[tuple[int, RefinedLattice]], spots: SpotTable, table: ReflectionTable
    ) -> Control:
        """Return what is found halfway between the reflections of ``table``, where none of them is near."""
        places, regions = [ReflectionTable(0)], [np.empty((0, 7))]
        for number, lattice in lattices:
            found = between(lattice, frame.beam, table.select(table["lattice"] == number))
            places.append(found.select(clear_of(found, table, _CLEAR * self.radius)))
            regions.append(self._regions(frame, lattice, spots, places[-1]))
        summed = self._summed(frame, ReflectionTable.concatenate(places), np.concatenate(regions))
        good = (summed["flags"] & int(ReflectionFlag.INTEGRATED) != 0) & (summed["flags"] & EXCLUDED == 0)
        return Control(summed["lattice"][good], summed["hkl"][good], summed["intensity"][good])

    def _predicted(self, number: int, lattice: RefinedLattice, beam: Beam) -> ReflectionTable:
        """Return the predictions of one lattice, with its number, those at which spots were indexed flagged."""
        indexed = lattice.indexed["hkl"]
        edge = detector_d_min(lattice.detector, beam)
        d_min = self.d_min
        if d_min == 0:
            length = np.linalg.norm(indexed @ lattice.crystal.a_matrix.T, axis=1)
            d_min = 1.0 / (float(np.percentile(length, 98)) + self.resolution_push) if len(length) else edge
        table = self.predict(lattice.crystal, lattice.detector, beam, max(d_min, edge))
        seen = np.isin(_packed(table["hkl"]), _packed(indexed))
        return table.replace(
            lattice=np.full(len(table), number), flags=np.where(seen, np.uint16(ReflectionFlag.OBSERVED), np.uint16(0))
        )

    def _regions(self, frame: Frame, lattice: RefinedLattice, spots: SpotTable, table: ReflectionTable) -> NDArray[np.float64]:
        """Return the peak regions and rings (n, 7) of the predictions of one lattice."""
        radii = (self.radius, self.background_inner, self.background_outer)
        if self.widths > 0:
            return peak_regions(frame, lattice, spots, table, self.widths, radii)
        regions = np.zeros((len(table), 7))
        regions[:, :6] = (1.0, 0.0, 1.0, *radii)
        return regions

    def _summed(self, frame: Frame, table: ReflectionTable, regions: NDArray[np.float64]) -> ReflectionTable:
        """Return ``table`` with intensities from the frame's pixels."""
        n = len(table)
        out = np.zeros((n, 5))
        flags = table["flags"].copy()
        integrate_still(
            frame.pixels,
            frame.mask,
            frame.trusted,
            frame.detector.image_sizes,
            table["panel"],
            table["fast"],
            table["slow"],
            regions,
            self.background_clip,
            self.min_background,
            out,
            flags,
        )
        return table.replace(
            intensity=out[:, 0], sigma=out[:, 1], background=out[:, 2], peak=out[:, 3], n_pixels=out[:, 4], flags=flags
        )

    def _limit(self, table: ReflectionTable, number: int) -> float:
        """Return the resolution in Å to which one lattice diffracts.

        Going outwards, it is the outer end of the last window of reflections, a few tens that the model says diffract well, whose
        mean I/σ reaches ``min_i_over_sigma``; never less far than the spots indexed.
        """
        own = table["lattice"] == number
        if not own.any():
            return float("nan")
        best = float(table["d"][own].min())
        if self.d_min > 0 or self.min_i_over_sigma == 0:
            return best
        rows = own & (table["partiality"] > _WINDOW_PARTIALITY) & (table["flags"] & ReflectionFlag.INTEGRATED > 0)
        order = np.flatnonzero(rows)[np.argsort(-table["d"][rows])]
        if len(order) <= _WINDOW:
            return best
        ratio = np.clip(table["intensity"][order] / table["sigma"][order], -_WINDOW_CLIP, _WINDOW_CLIP)
        total = np.concatenate([[0.0], np.cumsum(ratio)])
        good = np.flatnonzero((total[_WINDOW:] - total[:-_WINDOW]) >= self.min_i_over_sigma * _WINDOW)
        limit = float(table["d"][order[good[-1] + _WINDOW - 1]]) if len(good) else float("inf")
        seen = own & (table["flags"] & ReflectionFlag.OBSERVED > 0)
        return max(best, min(limit, float(table["d"][seen].min()) if seen.any() else float(table["d"][own].max())))


def _packed(hkl: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return one integer for each index (n, 3)."""
    h = hkl.astype(np.int64)
    packed: NDArray[np.int64] = (h[:, 0] * _CELLS + h[:, 1]) * _CELLS + h[:, 2]
    return packed

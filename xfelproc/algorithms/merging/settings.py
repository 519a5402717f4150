"""Parameters of merging."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from xfelproc.algorithms.merging.ambiguity_settings import Ambiguity
from xfelproc.algorithms.merging.group_settings import Groups
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.parameters import Parameters

FlagName = Literal["OVERLOADED", "BAD_PIXEL", "OVERLAP", "BACKGROUND", "EDGE"]

USUAL_ERRORS = (0.05, 0.03)


class Merge(Parameters):
    """Section ``[merge]``: scaling of the lattices to each other and merging of their observations."""

    d_min: Annotated[float | None, Field(gt=0, description="high-resolution limit, Å; None: what was integrated")] = None
    d_max: Annotated[float | None, Field(gt=0, description="low-resolution limit, Å; None: no limit")] = None
    space_group: Annotated[
        str | None,
        Field(description="space group to merge in (Hermann-Mauguin); None: the one given for indexing, else the holohedry"),
    ] = None
    ambiguity: Annotated[Ambiguity, Field(description="lattices that could be indexed in several ways are put into one")] = (
        Ambiguity()
    )
    groups: Annotated[Groups, Field(description="lattices that are scaled together and merged apart")] = Groups()
    anomalous: Annotated[bool, Field(description="report the anomalous correlation, and draw its half-sets")] = True
    exclude: Annotated[tuple[FlagName, ...], Field(description="integration flags that keep an observation out")] = (
        "OVERLOADED",
        "BAD_PIXEL",
        "OVERLAP",
        "BACKGROUND",
        "EDGE",
    )
    partiality: Annotated[
        Literal["gaussian", "lorentzian", "overlap", "model", "unity"],
        Field(
            description="gaussian, lorentzian, or overlap of a ball with the shell of the bandwidth: in the excitation error, the"
            " width fitted; model: as integration gives it; unity: all are full (Monte-Carlo merging)"
        ),
    ] = "gaussian"
    min_partiality: Annotated[float, Field(ge=0, lt=1, description="observations less partial than this are left out")] = 0.05
    scale: Annotated[bool, Field(description="refine a scale for each lattice against the mean of the others")] = True
    b_factor: Annotated[bool, Field(description="refine a relative B for each lattice as well")] = True
    b_restraint: Annotated[
        float | None, Field(gt=0, description="standard deviation of the B factors, Å²; None: fitted to all lattices")
    ] = None
    post_refine: Annotated[
        bool, Field(description="refine orientation and width of partiality of each lattice, where partiality is fitted")
    ] = True
    refine_cell: Annotated[bool, Field(description="post-refine the cell of each lattice as well, where cells differ")] = True
    rotation_restraint: Annotated[
        float | None,
        Field(gt=0, description="standard deviation of the orientations of indexing about each axis, degrees; None: fitted"),
    ] = None
    width_restraint: Annotated[
        float | None, Field(gt=0, description="standard deviation of the log widths of lattices; None: fitted to all lattices")
    ] = None
    cell_restraint: Annotated[
        float | None, Field(gt=0, description="standard deviation of the cell lengths of indexing, relative; None: fitted")
    ] = None
    reference: Annotated[
        str | None,
        Field(
            description="MTZ or mmCIF of intensities or amplitudes, or coordinates (PDB, mmCIF), that lattices are scaled and"
            " refined to beside each other; ambiguities are resolved against it as well"
        ),
    ] = None
    max_cycles: Annotated[int, Field(ge=1, le=200, description="cycles of scaling at most")] = 30
    outlier_cut: Annotated[
        float, Field(ge=0, description="standard deviations from the mean of the others beyond which one is rejected; 0: none")
    ] = 6.0
    error_intensity: Annotated[
        float | None,
        Field(ge=0, lt=1, description="relative error of an observation beside counting; None with the next: errors are fitted"),
    ] = None
    error_partiality: Annotated[
        float | None,
        Field(
            ge=0,
            lt=1,
            description="error of the partiality: it bears on the full intensity, so it tells against weak partials; None: fitted",
        ),
    ] = None
    min_observations: Annotated[int, Field(ge=0, description="lattices with fewer observations are left out")] = 0
    max_cell_deviation: Annotated[
        float | None,
        Field(
            gt=0, description="lattices are left out whose cell lengths (relative) or angles (rad) are further from the median cell"
        ),
    ] = None
    min_lattice_cc: Annotated[
        float | None,
        Field(
            ge=-1,
            le=1,
            description="lattices that correlate less to the others are left out; None: those plainly of another structure",
        ),
    ] = None
    max_cell_mahalanobis: Annotated[
        float | None,
        Field(
            gt=0,
            description="lattices are left out whose cell, in the parameters that the space group leaves free, is more standard"
            " deviations (Mahalanobis distance, robust covariance of the cells) from the others",
        ),
    ] = None
    energy_range: Annotated[
        tuple[float, float] | None, Field(description="photon energies, eV, between which a lattice's shot must be")
    ] = None
    max_energy_deviation: Annotated[
        float | None,
        Field(gt=0, description="lattices are left out whose photon energy is more (robust) standard deviations from the median"),
    ] = None
    exclude_panels: Annotated[
        tuple[int | str, ...], Field(description="panels, by number from 0 or by name, whose observations are left out")
    ] = ()
    panel_edge: Annotated[
        float, Field(ge=0, description="observations predicted nearer than this to an edge of their panel, px, are left out")
    ] = 0.0
    significance: Annotated[
        float | None,
        Field(
            gt=0,
            description="mean I/σ below which a lattice's observations have no signal: those beyond the resolution where it falls"
            " below are left out",
        ),
    ] = None
    delta_cc_half: Annotated[
        bool, Field(description="tell of each lattice by how much it raises or lowers CC1/2 (ΔCC1/2, by variances)")
    ] = True
    delta_cc_half_cut: Annotated[
        float | None,
        Field(
            gt=0,
            description="lattices whose ΔCC1/2 is negative, and more (robust) standard deviations below the median, are left out",
        ),
    ] = None
    stretches: Annotated[
        Literal["run", "unit"] | Annotated[int, Field(ge=1)] | None,
        Field(
            description="stretches of which ΔCC1/2 is told: whole runs, work units, or as many units as have this number of frames;"
            " None: none"
        ),
    ] = None
    stretch_cut: Annotated[
        float | None,
        Field(
            gt=0,
            description="stretches whose ΔCC1/2 a lattice is negative, and more (robust) standard deviations below the median, are"
            " left out, where there are four or more",
        ),
    ] = None
    compare_to: Annotated[
        str | None,
        Field(description="MTZ or mmCIF of intensities, or amplitudes, that the merged ones are compared to: CC and R by shell"),
    ] = None
    min_multiplicity: Annotated[int, Field(ge=1, description="observations a merged reflection needs")] = 1
    n_shells: Annotated[int, Field(ge=1, le=200, description="resolution shells, of equal reciprocal volume")] = 20
    free_fraction: Annotated[float, Field(gt=0, le=0.5, description="share of the reflections in the free set")] = 0.05
    free_choice: Annotated[
        Literal["random", "thin_shells"], Field(description="free set drawn by reflection, or by thin resolution shell")
    ] = "random"
    free_from: Annotated[
        str | None,
        Field(
            description="MTZ or mmCIF file whose free flags are kept and extended with as many values; others, and all without a "
            "file, are drawn as free_fraction and free_choice say"
        ),
    ] = None
    free_twin_laws: Annotated[
        bool,
        Field(description="reflections that a pseudo-merohedral twin law relates share their flag, as merohedral ones always do"),
    ] = False
    unmerged: Annotated[
        bool,
        Field(
            description="write unmerged.mtz; without it, and the statistics over its rows (R_merge, R_meas, R_pim, σ-τ CC1/2,"
            " control between reflections), merging of very many observations is faster and takes half the disk"
        ),
    ] = True
    list_missing: Annotated[
        bool, Field(description="list possible reflections that were not measured in merged.mtz, with a flag")
    ] = False
    composition: Annotated[
        Literal["protein", "nucleic_acid"], Field(description="whose form factors the Wilson plot is divided by")
    ] = "protein"

    @model_validator(mode="after")
    def _limits_in_order(self) -> Self:
        if self.d_min is not None and self.d_max is not None and self.d_max <= self.d_min:
            raise ValueError(f"d_max = {self.d_max} Å must be larger than d_min = {self.d_min} Å")
        if self.stretch_cut is not None and self.stretches is None:
            raise ValueError("stretch_cut needs stretches: say whether they are runs, units, or a number of frames")
        if self.energy_range is not None and not 0 < self.energy_range[0] < self.energy_range[1]:
            low, high = self.energy_range
            raise ValueError(f"energy_range = [{low}, {high}] eV: give the lower energy, above 0, before the higher one")
        return self

    @property
    def fits_width(self) -> bool:
        """Whether partiality is a function of the excitation error, of a width that is fitted."""
        return self.partiality in ("gaussian", "lorentzian", "overlap")

    @property
    def refines_partiality(self) -> bool:
        """Whether lattices are post-refined."""
        return self.post_refine and self.fits_width

    @property
    def fits_errors(self) -> bool:
        """Whether the error model is fitted to the observations: no term of it is given."""
        return self.error_intensity is None and self.error_partiality is None

    @property
    def first_errors(self) -> tuple[float, float]:
        """Relative error of an observation and of the full intensity: as given, else what fits begin with."""
        if self.fits_errors:
            return USUAL_ERRORS
        return self.error_intensity or 0.0, self.error_partiality or 0.0

    @property
    def excluded_flags(self) -> int:
        """Bits of ReflectionFlag that keep an observation out."""
        bits = 0
        for name in self.exclude:
            bits |= int(ReflectionFlag[name])
        return bits

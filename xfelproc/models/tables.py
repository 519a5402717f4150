"""Struct-of-arrays tables with a declared schema; file writers and the reference docs are generated from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

AnyArray = NDArray[Any]


@dataclass(frozen=True)
class Column:
    """One column: ``dtype`` is a numpy type string or ``"str"``; ``shape`` is the shape of one row's entry."""

    name: str
    dtype: str
    unit: str
    doc: str
    shape: tuple[int, ...] = ()

    def empty(self, n: int) -> AnyArray:
        """Return ``n`` rows of zeros (empty strings)."""
        if self.dtype == "str":
            return np.full((n, *self.shape), "", dtype=object)
        return np.zeros((n, *self.shape), dtype=self.dtype)

    def convert(self, values: Any) -> AnyArray:
        """Return ``values`` as an array of this column's type, checking the shape.

        Raises
        ------
        ValueError
            If the shape of an entry is not ``shape``.
        """
        array = np.asarray(values, dtype=object if self.dtype == "str" else self.dtype)
        if array.shape[1:] != self.shape:
            raise ValueError(f"column {self.name!r}: entries have shape {array.shape[1:]}, the schema says {self.shape}")
        return array


class Table:
    """Named columns of equal length, as declared in ``SCHEMA``. Columns not given are filled with zeros."""

    SCHEMA: ClassVar[tuple[Column, ...]] = ()
    __slots__ = ("_columns", "_n")

    def __init__(self, n: int | None = None, **columns: Any) -> None:
        unknown = set(columns) - {c.name for c in self.SCHEMA}
        if unknown:
            raise ValueError(f"{type(self).__name__} has no column {', '.join(sorted(unknown))}")
        converted = {c.name: c.convert(columns[c.name]) for c in self.SCHEMA if c.name in columns}
        lengths = {len(v) for v in converted.values()} | (set() if n is None else {n})
        if len(lengths) > 1:
            raise ValueError(f"{type(self).__name__}: columns of different lengths {sorted(lengths)}")
        self._n = lengths.pop() if lengths else 0
        self._columns: dict[str, AnyArray] = {
            c.name: converted[c.name] if c.name in converted else c.empty(self._n) for c in self.SCHEMA
        }

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, name: str) -> AnyArray:
        return self._columns[name]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._n} rows)"

    def select(self, index: Any) -> Self:
        """Return the rows picked by a mask, slice or index array."""
        return type(self)(None, **{name: values[index] for name, values in self._columns.items()})

    def replace(self, **columns: Any) -> Self:
        """Return the table with some columns exchanged."""
        return type(self)(self._n, **{**self._columns, **columns})

    @classmethod
    def concatenate(cls, tables: Iterable[Self]) -> Self:
        """Return the rows of all tables, in order."""
        parts = list(tables)
        if not parts:
            return cls(0)
        return cls(None, **{c.name: np.concatenate([t[c.name] for t in parts]) for c in cls.SCHEMA})


class FrameTable(Table):
    """One row a frame of a work unit."""

    __slots__ = ()
    SCHEMA = (
        Column("source", "i4", "", "number of the source in the manifest"),
        Column("index", "i8", "", "frame in the source, from 0"),
        Column("status", "u1", "", "FrameStatus"),
        Column("reason", "str", "", "why the frame did not come further; empty if it was integrated"),
        Column("wavelength", "f8", "Å", "wavelength of this frame"),
        Column("n_spots", "i4", "", "spots found"),
        Column("n_lattices", "i4", "", "lattices indexed"),
        Column("n_reflections", "i4", "", "reflections integrated"),
        Column("background", "f4", "photon", "median background under the spots, a pixel"),
        Column("common_mode_failed", "i4", "", "groups of pixels whose common mode could not be determined, left uncorrected"),
        Column("times", "f4", "ms", "CPU time of read, calibrate, find, index, refine, integrate", (6,)),
    )


class SpotTable(Table):
    """Strong spots."""

    __slots__ = ()
    SCHEMA = (
        Column("frame", "i4", "", "row of the unit's FrameTable"),
        Column("panel", "i4", "", "panel"),
        Column("fast", "f8", "px", "centroid along fast; the first pixel's centre is at 0.5"),
        Column("slow", "f8", "px", "centroid along slow"),
        Column("var_fast", "f4", "px2", "variance of the centroid along fast"),
        Column("var_slow", "f4", "px2", "variance of the centroid along slow"),
        Column("intensity", "f4", "photon", "sum over the spot's pixels above background"),
        Column("snr", "f4", "", "intensity over its standard deviation"),
        Column("background", "f4", "photon", "background a pixel"),
        Column("peak", "f4", "photon", "largest pixel"),
        Column("n_pixels", "i4", "", "pixels in the spot"),
        Column("bbox", "i4", "px", "fast0, fast1, slow0, slow1, half open", (4,)),
        Column("d", "f4", "Å", "resolution"),
        Column("flags", "u2", "", "SpotFlag"),
    )


class LatticeTable(Table):
    """One row an indexed and refined lattice."""

    __slots__ = ()
    SCHEMA = (
        Column("frame", "i4", "", "row of the unit's FrameTable"),
        Column("A", "f8", "1/Å", "columns a*, b*, c*, laboratory frame", (3, 3)),
        Column("cell", "f8", "Å, degree", "a b c α β γ", (6,)),
        Column("space_group", "str", "", "Hermann-Mauguin symbol imposed"),
        Column("n_spots", "i4", "", "spots offered"),
        Column("n_indexed", "i4", "", "spots with |Δhkl| ≤ 0.3 in each index under the refined model"),
        Column("rmsd", "f8", "px", "√mean(Δfast² + Δslow²) over exactly these"),
        Column("rmsd_psi", "f8", "degree", "root mean square ΔΨ over exactly these"),
        Column("n_used", "i4", "", "indexed spots that the refinement's outlier rejection kept"),
        Column("rmsd_used", "f8", "px", "√mean(Δfast² + Δslow²) over those"),
        Column("domain_size", "f8", "Å", "domain size D (Sauter 2014)"),
        Column("half_mosaicity", "f8", "degree", "half the full-width mosaic spread, η/2"),
        Column("d_min", "f8", "Å", "resolution to which the lattice was integrated"),
        Column("shift", "f8", "mm", "refined detector translation, laboratory frame", (3,)),
        Column("tilt", "f8", "degree", "refined turn of the detector about its centre, about x and y of the laboratory", (2,)),
        Column("log10_p", "f8", "", "log10 of the chance that random spots give so many inliers"),
        Column("satellite", "?", "", "whether it is part of the crystal of another lattice of the frame: it is not integrated"),
    )


class IndexedTable(Table):
    """Spots that a refined lattice explains."""

    __slots__ = ()
    SCHEMA = (
        Column("lattice", "i4", "", "row of the unit's LatticeTable"),
        Column("spot", "i4", "", "row of the unit's SpotTable"),
        Column("hkl", "i4", "", "Miller index", (3,)),
        Column("fast_calc", "f8", "px", "predicted position along fast"),
        Column("slow_calc", "f8", "px", "predicted position along slow"),
        Column("delta_psi", "f4", "degree", "signed angle to the reflecting condition"),
        Column("used", "?", "", "kept by the refinement's outlier rejection"),
    )


class ReflectionTable(Table):
    """Predicted and integrated reflections, one row an observation."""

    __slots__ = ()
    SCHEMA = (
        Column("lattice", "i4", "", "row of the unit's LatticeTable"),
        Column("hkl", "i4", "", "Miller index, not reduced", (3,)),
        Column("panel", "i4", "", "panel"),
        Column("fast", "f8", "px", "predicted position along fast"),
        Column("slow", "f8", "px", "predicted position along slow"),
        Column("intensity", "f4", "photon", "summed intensity above background"),
        Column("sigma", "f4", "photon", "standard deviation of the intensity from counting"),
        Column("background", "f4", "photon", "background a pixel at the centre"),
        Column("peak", "f4", "photon", "largest pixel of the peak region"),
        Column("n_pixels", "i4", "", "pixels summed"),
        Column("d", "f4", "Å", "resolution"),
        Column("delta_psi", "f4", "degree", "signed angle to the reflecting condition"),
        Column("excitation", "f4", "1/Å", "signed excitation error |s0 + A h| - 1/λ"),
        Column("partiality", "f4", "", "fraction of the full reflection that diffracts, by the lattice's model"),
        Column("polarization", "f4", "", "polarisation factor P: corrected intensity = intensity / P"),
        Column("flags", "u2", "", "ReflectionFlag"),
    )


class SweepSpotTable(Table):
    """Strong spots of a sweep, joined over its frames."""

    __slots__ = ()
    SCHEMA = (
        Column("sweep", "i4", "", "number of the sweep"),
        Column("panel", "i4", "", "panel"),
        Column("fast", "f8", "px", "centroid along fast; the first pixel's centre is at 0.5"),
        Column("slow", "f8", "px", "centroid along slow"),
        Column("z", "f8", "frame", "centroid in frames; the sweep's first frame is from 0 to 1"),
        Column("var_fast", "f4", "px2", "variance of the centroid along fast"),
        Column("var_slow", "f4", "px2", "variance of the centroid along slow"),
        Column("var_z", "f4", "frame2", "variance of the centroid in frames"),
        Column("intensity", "f4", "photon", "sum over the spot's pixels above background"),
        Column("sigma", "f4", "photon", "standard deviation of the intensity"),
        Column("peak", "f4", "photon", "largest pixel"),
        Column("background", "f4", "photon", "background a pixel"),
        Column("n_pixels", "i4", "", "strong pixels"),
        Column("n_frames", "i4", "", "frames it extends over"),
        Column("flags", "u2", "", "SpotFlag"),
    )


class PredictionTable(Table):
    """Reflections of a sweep that cross the Ewald sphere onto a panel, one row a crossing."""

    __slots__ = ()
    SCHEMA = (
        Column("hkl", "i4", "", "Miller index, not reduced", (3,)),
        Column("panel", "i4", "", "panel"),
        Column("fast", "f8", "px", "predicted position along fast"),
        Column("slow", "f8", "px", "predicted position along slow"),
        Column("z", "f8", "frame", "predicted frame coordinate; the first frame is from 0 to 1"),
        Column("phi", "f8", "degree", "predicted scan angle"),
        Column("d", "f4", "Å", "resolution"),
        Column("zeta", "f4", "", "ζ, the scan axis along s1 × s0: angles are longer by 1/ζ on the axis"),
        Column("lorentz", "f4", "", "Lorentz factor L: corrected intensity = intensity / (L P)"),
        Column("polarization", "f4", "", "polarisation factor P"),
        Column("entering", "?", "", "whether the point enters the sphere as the angle grows"),
    )


class MergedTable(Table):
    """Unique reflections."""

    __slots__ = ()
    SCHEMA = (
        Column("hkl", "i4", "", "Miller index in the asymmetric unit", (3,)),
        Column("d", "f4", "Å", "resolution"),
        Column("intensity", "f8", "", "merged intensity"),
        Column("sigma", "f8", "", "its standard deviation"),
        Column("multiplicity", "i4", "", "observations merged"),
        Column("intensity_plus", "f8", "", "merged intensity of hkl and its mates by rotation"),
        Column("sigma_plus", "f8", "", "its standard deviation"),
        Column("n_plus", "i4", "", "observations of it"),
        Column("intensity_minus", "f8", "", "merged intensity of the Friedel mates"),
        Column("sigma_minus", "f8", "", "its standard deviation"),
        Column("n_minus", "i4", "", "observations of them"),
        Column("half1", "f8", "", "merged intensity of the first half of the frames (NaN: none)"),
        Column("half2", "f8", "", "merged intensity of the second half"),
        Column("sigma_half1", "f8", "", "standard deviation of half1"),
        Column("sigma_half2", "f8", "", "standard deviation of half2"),
        Column("n_half1", "i4", "", "observations of half1"),
        Column("n_half2", "i4", "", "observations of half2"),
        Column("centric", "?", "", "centric reflection"),
        Column("free", "i4", "", "free-R flag: 0 is the test set"),
    )


class AmplitudeTable(Table):
    """Amplitudes of the reflections of a MergedTable, row by row (French & Wilson 1978); NaN: none."""

    __slots__ = ()
    SCHEMA = (
        Column("amplitude", "f8", "", "posterior mean of |F| under Wilson's distribution"),
        Column("sigma", "f8", "", "its posterior standard deviation"),
        Column("amplitude_plus", "f8", "", "the same of F(+)"),
        Column("sigma_plus", "f8", "", "its standard deviation"),
        Column("amplitude_minus", "f8", "", "the same of F(-)"),
        Column("sigma_minus", "f8", "", "its standard deviation"),
        Column("anomalous", "f8", "", "F(+) - F(-) of acentric reflections that have both"),
        Column("sigma_anomalous", "f8", "", "its standard deviation"),
    )


class UnmergedTable(Table):
    """Scaled observations, sorted by unique reflection and then by lattice: what goes into an unmerged MTZ."""

    __slots__ = ()
    SCHEMA = (
        Column("lattice", "i4", "", "number of the lattice in the run, from 0"),
        Column("hkl", "i4", "", "Miller index as observed", (3,)),
        Column("hkl_asu", "i4", "", "Miller index in the asymmetric unit", (3,)),
        Column("isym", "i4", "", "2 n - 1 where operator n takes hkl to hkl_asu, 2 n where it takes it to -hkl_asu"),
        Column("panel", "i4", "", "panel"),
        Column("fast", "f4", "px", "predicted position along fast"),
        Column("slow", "f4", "px", "predicted position along slow"),
        Column("intensity", "f8", "", "full intensity on the common scale: polarisation, scale and partiality applied"),
        Column("sigma", "f8", "", "its standard deviation, error terms included; 1/σ² is its weight in merging"),
        Column("scale", "f8", "", "observed = scale · partiality · polarization · full"),
        Column("partiality", "f4", "", "partiality used"),
        Column("polarization", "f4", "", "polarisation factor used"),
        Column("excitation", "f4", "1/Å", "signed excitation error |s0 + A h| - 1/λ"),
        Column("half", "u1", "", "half-set (0 or 1) of the frame"),
        Column("flags", "u2", "", "ReflectionFlag; OUTLIER was not merged"),
    )


class ScaledLatticeTable(Table):
    """One row a lattice that was offered to merging; written to ``merged/lattices.h5``."""

    __slots__ = ()
    SCHEMA = (
        Column("scale", "f8", "", "scale factor; the geometric mean over the lattices is 1"),
        Column("b_factor", "f8", "Å2", "relative B: observed ∝ exp(-B / (2 d²)); the mean over the lattices is 0"),
        Column("width", "f8", "1/Å", "width of the Gaussian of partiality at 1/d = 0"),
        Column("width_slope", "f8", "", "growth of the width with 1/d: width² + (slope / d)²"),
        Column("n_observations", "i4", "", "observations merged"),
        Column("n_rejected", "i4", "", "observations rejected as outliers"),
        Column("correlation", "f8", "", "CC of its observations to the mean of the others (NaN: fewer than 3)"),
        Column("half", "u1", "", "half-set (0 or 1) of its frame"),
        Column("used", "?", "", "merged"),
        Column("unit", "i4", "", "number of the lattice's shard, over all runs that are merged"),
        Column("lattice", "i4", "", "row of its LatticeTable"),
        Column("group", "i2", "", "what it is merged apart with (merge.groups); 0 where there is one group"),
        Column("reason", "u1", "", "why it is left out: algorithms.merging.lattice_models.Reason; 0: it is not"),
        Column("energy", "f8", "eV", "photon energy"),
        Column("d_min", "f4", "Å", "highest resolution of its observations (NaN: none)"),
        Column("cell_deviation", "f4", "", "largest relative difference of a length, or of an angle in rad, from the median cell"),
        Column("mahalanobis", "f4", "", "distance of its cell from the others', in their standard deviations"),
        Column("delta_cc_half", "f4", "", "CC1/2 less that without it; below 0: it does harm (NaN: not known)"),
    )


class SettingTable(Table):
    """One row a lattice, where the lattice could be indexed in several ways; written to ``merged/settings.h5``."""

    __slots__ = ()
    SCHEMA = (
        Column("unit", "i4", "", "number of the lattice's shard, over all runs that are merged"),
        Column("lattice", "i4", "", "row of its LatticeTable"),
        Column("setting", "i4", "", "number of the setting; 0: as indexed"),
        Column("operator", "str", "", "indices in the setting in terms of those indexed, as k,h,-l"),
        Column("probability", "f4", "", "probability of the setting among all (NaN: not known)"),
        Column("margin", "f4", "", "correlation (Fisher's z) there above that in the next best, in standard deviations"),
        Column("correlation", "f4", "", "correlation of its E² to the mean of the others, or to the reference"),
        Column("n_observations", "i4", "", "observations that had a say"),
        Column("doubt", "u1", "", "0: none; 1: no observation; 2: undecided; 3: agrees with the others in no setting"),
    )


class ShellTable(Table):
    """Statistics of merging, one row a resolution shell (or one for all)."""

    __slots__ = ()
    SCHEMA = (
        Column("d_max", "f8", "Å", "low-resolution limit"),
        Column("d_min", "f8", "Å", "high-resolution limit"),
        Column("n_possible", "i8", "", "unique reflections possible, without systematic absences"),
        Column("n_unique", "i8", "", "unique reflections measured"),
        Column("n_observations", "i8", "", "observations merged"),
        Column("n_rejected", "i8", "", "observations rejected as outliers"),
        Column("completeness", "f8", "", "n_unique / n_possible"),
        Column("completeness_twice", "f8", "", "measured twice or more / n_possible"),
        Column("multiplicity", "f8", "", "n_observations / n_unique"),
        Column("mean_intensity", "f8", "", "mean merged intensity"),
        Column("i_over_sigma", "f8", "", "mean of intensity / sigma of the merged reflections"),
        Column("cc_half", "f8", "", "correlation of the half-set intensities"),
        Column("cc_star", "f8", "", "√(2 CC1/2 / (1 + CC1/2)) (NaN where CC1/2 < 0)"),
        Column("r_split", "f8", "", "2^-½ Σ|I1 - I2| / Σ ½ (I1 + I2)"),
        Column("n_pairs", "i8", "", "reflections measured in both halves: the set of cc_half and r_split"),
        Column(
            "n_repeated", "i8", "", "reflections observed twice or more: the set of cc_half_sigma_tau and of the R values below"
        ),
        Column("cc_half_sigma_tau", "f8", "", "CC1/2 from the spread of scaled observations, without half-sets (σ-τ method)"),
        Column("r_merge", "f8", "", "Σ|I - <I>| / Σ <I> of scaled observations I, <I> weighted by 1/σ²: of the unmerged file"),
        Column("r_meas", "f8", "", "the same with √(n / (n - 1)), independent of multiplicity"),
        Column("r_pim", "f8", "", "the same with √(1 / (n - 1)): precision of the mean"),
        Column("r_meas_within", "f8", "", "r_meas with I(+) and I(-) each for itself"),
        Column("r_pim_within", "f8", "", "r_pim with I(+) and I(-) each for itself"),
        Column(
            "r_merge_recorded",
            "f8",
            "",
            "Σ|I - k<I>| / Σ I of observations I as recorded, k scale times partiality: weak parts do not rule it",
        ),
        Column("r_meas_recorded", "f8", "", "the same with √(n / (n - 1))"),
        Column("r_pim_recorded", "f8", "", "the same with √(1 / (n - 1))"),
        Column("cc_anomalous", "f8", "", "correlation of I(+) - I(-) between the halves (NaN: not asked for)"),
        Column("n_anomalous", "i8", "", "acentric reflections with both mates in both halves: the set of cc_anomalous"),
        Column("anomalous_signal", "f8", "", "mean |I(+) - I(-)| over its standard deviation (0.8: noise alone)"),
        Column("bijvoet_ratio", "f8", "", "√(mean square of I(+) - I(-) less its variance) / mean I; 0 where noise explains all"),
        Column("n_bijvoet", "i8", "", "acentric reflections with both mates: the set of anomalous_signal and bijvoet_ratio"),
        Column("chi2", "f8", "", "mean χ² a degree of freedom of observations about their means, under the error model"),
        Column(
            "cc_control",
            "f8",
            "",
            "correlation of the halves of observations shuffled within each lattice: no signal (all: the shells' mean)",
        ),
        Column("n_control", "i8", "", "reflections in both halves of them"),
        Column(
            "cc_off_lattice",
            "f8",
            "",
            "correlation of the halves of what was integrated between the reflections: no signal (all: the shells' mean)",
        ),
        Column("n_off_lattice", "i8", "", "reflections beside which both halves have some"),
        Column("cc_reference", "f8", "", "correlation to the intensities of reference (NaN: none were given)"),
        Column("r_reference", "f8", "", "2 Σ|I - k Ir| / Σ (I + k Ir) to them, with k a scale and a B of the reference"),
        Column("n_reference", "i8", "", "reflections in both"),
    )


class DetectorShiftTable(Table):
    """How the panels of one geometry stand in another, one row a group of panels. Axes are the group's own in the first one."""

    __slots__ = ()
    SCHEMA = (
        Column("level", "i4", "", "level of the hierarchy: 0 is the whole detector, the last one the panels"),
        Column("name", "str", "", "name of the group or panel"),
        Column("n_panels", "i4", "", "panels in it"),
        Column("shift", "f8", "mm", "of its centre, along its fast and slow axes and its normal", (3,)),
        Column("rotation", "f8", "degree", "about its fast and slow axes and its normal", (3,)),
        Column("distance", "f8", "mm", "of its centre, along the beam", ()),
        Column("free_shift", "f8", "mm", "the same shift without the motion of the detector as a whole", (3,)),
        Column("free_rotation", "f8", "degree", "the same rotation without that", (3,)),
        Column("free_distance", "f8", "mm", "the same distance without that", ()),
        Column("own_shift", "f8", "mm", "the same shift without the motion of the group above", (3,)),
        Column("own_rotation", "f8", "degree", "the same rotation without that", (3,)),
    )


class PanelStatisticsTable(Table):
    """Residuals, observed - predicted, of the indexed spots that refinement kept; one row a panel, the last row all of them."""

    __slots__ = ()
    SCHEMA = (
        Column("panel", "i4", "", "panel; -1: all"),
        Column("name", "str", "", "name of the panel"),
        Column("n_spots", "i8", "", "spots"),
        Column("mean_fast", "f8", "px", "mean along fast (NaN: no spots, as in the columns that follow)"),
        Column("mean_slow", "f8", "px", "mean along slow"),
        Column("rmsd_fast", "f8", "px", "root mean square along fast"),
        Column("rmsd_slow", "f8", "px", "root mean square along slow"),
        Column("mean_radial", "f8", "px", "mean away from the beam"),
        Column("mean_transverse", "f8", "px", "mean around the beam"),
        Column("rmsd_radial", "f8", "px", "root mean square away from the beam"),
        Column("rmsd_transverse", "f8", "px", "root mean square around the beam"),
        Column("mean_psi", "f8", "degree", "mean ΔΨ"),
        Column("rmsd_psi", "f8", "degree", "root mean square ΔΨ"),
    )

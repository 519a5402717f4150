"""Tables of differences between groups of lattices that were merged apart."""

from __future__ import annotations

from xfelproc.models.tables import Column, Table


class DifferenceTable(Table):
    """Differences of a group from another, of the reflections that both measured; of halves and amplitudes NaN: none."""

    __slots__ = ()
    SCHEMA = (
        Column("hkl", "i4", "", "Miller index in the asymmetric unit", (3,)),
        Column("d", "f4", "Å", "resolution"),
        Column("centric", "?", "", "centric reflection"),
        Column("free", "i4", "", "free-R flag: 0 is the test set"),
        Column("intensity", "f8", "", "intensity of the group less that of the reference"),
        Column("sigma", "f8", "", "its standard deviation"),
        Column("half1", "f8", "", "the same of the first half of the frames"),
        Column("half2", "f8", "", "the same of the second half"),
        Column("amplitude", "f8", "", "amplitude of the group less that of the reference"),
        Column("sigma_amplitude", "f8", "", "its standard deviation"),
        Column("weight", "f8", "", "S / (S + σ²), S the mean square of true differences of amplitudes at its resolution"),
        Column("own_intensity", "f8", "", "intensity of the group"),
        Column("own_amplitude", "f8", "", "amplitude of the group"),
        Column("sigma_own_amplitude", "f8", "", "its standard deviation"),
        Column("reference_intensity", "f8", "", "intensity of the reference"),
        Column("reference_amplitude", "f8", "", "amplitude of the reference"),
        Column("sigma_reference_amplitude", "f8", "", "its standard deviation"),
    )


class DifferenceShellTable(Table):
    """Statistics of differences, one row a resolution shell (or one for all)."""

    __slots__ = ()
    SCHEMA = (
        Column("d_max", "f8", "Å", "low-resolution limit"),
        Column("d_min", "f8", "Å", "high-resolution limit"),
        Column("n_pairs", "i8", "", "reflections that both groups measured"),
        Column("n_amplitudes", "i8", "", "those of them with amplitudes: the set of r_iso and amplitude_signal"),
        Column("r_iso", "f8", "", "Σ|F - Fr| / Σ Fr"),
        Column("r_iso_intensity", "f8", "", "Σ|I - Ir| / Σ Ir"),
        Column("cc_iso", "f8", "", "correlation of the intensities"),
        Column("amplitude_signal", "f8", "", "mean |F - Fr| over its standard deviation (0.8: noise alone)"),
        Column("chi2", "f8", "", "mean of ((I - Ir) / σ)² (1: noise alone)"),
        Column("cc_half", "f8", "", "correlation of I - Ir between the half-sets (0: noise alone)"),
        Column("n_halves", "i8", "", "reflections that both halves of both groups measured: the set of cc_half"),
        Column("true_difference", "f8", "", "√(mean of (I - Ir)² less its variance) / mean Ir; 0 where noise explains all"),
    )

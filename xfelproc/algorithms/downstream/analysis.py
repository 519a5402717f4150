"""Amplitudes and the statistics of merged intensities, together: what a run says of its merged data beside the shells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.downstream.anisotropy import Anisotropy, anisotropy
from xfelproc.algorithms.downstream.mean_intensity import (
    MeanIntensity,
    Reflections,
    allowed_tensors,
    epsilon_of,
    fit_mean,
    reflections_of,
    significant,
)
from xfelproc.algorithms.downstream.translation import Translation, translation
from xfelproc.algorithms.downstream.truncate import Posterior, french_wilson
from xfelproc.algorithms.downstream.twinning import (
    SIGNIFICANT,
    LTest,
    Moments,
    TwinLaw,
    l_test,
    second_moments,
    twin_laws,
    twin_operators,
)
from xfelproc.algorithms.downstream.wilson import Composition, WilsonPlot, wilson_plot
from xfelproc.geometry.cells import b_matrix
from xfelproc.models.tables import AmplitudeTable, MergedTable

Floats = NDArray[np.float64]

TWINNED_L = 0.44
"""⟨|L|⟩ below which a crystal is said to be twinned: half way from untwinned to perfectly twinned."""
TWIN_FRACTION = 0.05
"""Fraction of a law from which it is told of."""


@dataclass(frozen=True)
class Analysis:
    """What merged intensities tell of the crystal; parts are None where the data are too few for them.

    ``n_rejected`` are measurements too negative to get an amplitude.
    """

    mean: MeanIntensity | None
    wilson: WilsonPlot | None
    moments: Moments | None
    l_test: LTest | None
    twin_laws: tuple[TwinLaw, ...]
    anisotropy: Anisotropy | None
    n_rejected: int
    warnings: tuple[str, ...]
    translation: Translation | None = None


def analyse(
    merged: MergedTable, cell: Sequence[float], group: gemmi.SpaceGroup, composition: Composition = "protein"
) -> tuple[AmplitudeTable, Analysis]:
    """Return amplitudes and statistics of merged intensities.

    Parameters
    ----------
    merged
        Unique reflections; rows without an intensity get no amplitude.
    cell
        Å and degrees.
    group
        Space group of the merging.
    composition
        What the crystal is made of, for the Wilson plot.
    """
    reflections, _ = reflections_of(merged["hkl"], merged["intensity"], merged["sigma"], cell, group)
    mean = fit_mean(reflections, allowed_tensors(cell, group))
    if mean is None:
        nothing = np.full(len(merged), np.nan)
        names = [column.name for column in AmplitudeTable.SCHEMA]
        words = (f"{len(reflections)} reflections are too few, or too weak, for amplitudes and Wilson's statistics",)
        return AmplitudeTable(None, **dict.fromkeys(names, nothing)), Analysis(None, None, None, None, (), None, 0, words)
    amplitudes = amplitude_table(merged, mean, cell, group)
    rejected = int(np.count_nonzero(np.isfinite(merged["intensity"]) & ~np.isfinite(amplitudes["amplitude"])))
    strong, d_min = significant(reflections, SIGNIFICANT)
    chosen = reflections.select(strong)
    expected = mean.at(chosen.q)
    z, z_sigma = chosen.intensity / expected, chosen.sigma / expected
    test = l_test(_normalised(chosen, z, z_sigma), d_min)
    laws = tuple(twin_laws(chosen, z, z_sigma, cell, group)) if len(chosen) else ()
    shifted = translation(reflections, mean.at(reflections.q), cell, group)
    found = Analysis(
        mean=mean,
        wilson=wilson_plot(reflections, mean, composition),
        moments=second_moments(z, z_sigma, chosen.centric) if len(chosen) else None,
        l_test=test,
        twin_laws=laws,
        anisotropy=anisotropy(reflections, mean, cell, group),
        n_rejected=rejected,
        warnings=(*_warnings(test, laws, bool(twin_operators(cell, group))), *_translation_warnings(shifted)),
        translation=shifted,
    )
    return amplitudes, found


def _normalised(reflections: Reflections, z: Floats, z_sigma: Floats) -> Reflections:
    return Reflections(reflections.hkl, reflections.q, z, z_sigma, reflections.centric)


def _warnings(test: LTest | None, laws: Sequence[TwinLaw], possible: bool) -> tuple[str, ...]:
    if test is None or test.mean_abs.value >= TWINNED_L:
        return ()
    text = f"the intensities look twinned: ⟨|L|⟩ is {test.mean_abs.value:.3f} (0.500 untwinned, 0.375 twinned perfectly)"
    fractions = sorted(((law.moments.value, law.operator) for law in laws if law.moments is not None), reverse=True)
    named = [f"{operator} {fraction:.2f}" for fraction, operator in fractions if fraction >= TWIN_FRACTION]
    if named:
        text += f"; fractions by twin law: {', '.join(named)}"
    elif not possible:
        text += "; but the lattice has no twin law: the symmetry may be too high, or the standard deviations too small"
    return (text,)


def _translation_warnings(found: Translation | None) -> tuple[str, ...]:
    if found is None or not found.significant:
        return ()
    vector = ", ".join(f"{v:.3f}" for v in found.vector)
    return (
        f"pseudo-translation: the Patterson (10-5 Å) has a peak of {100 * found.height:.0f} % of the origin at ({vector}), "
        f"{found.distance:.0f} Å away: classes of reflections are weak, which ⟨|L|⟩, moments and amplitudes do not allow for",
    )


def amplitude_table(merged: MergedTable, mean: MeanIntensity, cell: Sequence[float], group: gemmi.SpaceGroup) -> AmplitudeTable:
    """Return the amplitudes of merged intensities, of their mean, of I(+) and of I(-)."""
    hkl = merged["hkl"]
    expected = np.zeros(len(hkl))
    measured = np.isfinite(merged["intensity"])
    q = hkl[measured].astype(np.float64) @ b_matrix(cell).T
    expected[measured] = mean.at(q) * epsilon_of(hkl[measured], group)
    centric = merged["centric"]

    def of(intensity: str, sigma: str, rows: NDArray[np.bool_] | None = None) -> Posterior:
        values = merged[intensity] if rows is None else np.where(rows, merged[intensity], np.nan)
        return french_wilson(values, merged[sigma], expected, centric)

    both = of("intensity", "sigma")
    plus = of("intensity_plus", "sigma_plus", merged["n_plus"] > 0)
    minus = of("intensity_minus", "sigma_minus", merged["n_minus"] > 0)
    difference = np.where(centric, np.nan, plus.amplitude - minus.amplitude)
    return AmplitudeTable(
        None,
        amplitude=both.amplitude,
        sigma=both.amplitude_sigma,
        amplitude_plus=plus.amplitude,
        sigma_plus=plus.amplitude_sigma,
        amplitude_minus=minus.amplitude,
        sigma_minus=minus.amplitude_sigma,
        anomalous=difference,
        sigma_anomalous=np.where(np.isnan(difference), np.nan, np.hypot(plus.amplitude_sigma, minus.amplitude_sigma)),
    )

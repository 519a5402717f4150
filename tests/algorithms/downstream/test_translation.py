"""Pseudo-translation by the Patterson."""

from __future__ import annotations

import numpy as np
import pytest

from tests.algorithms.downstream.wilson_data import Simulated, simulated
from xfelproc.algorithms.downstream.analysis import analyse
from xfelproc.algorithms.downstream.mean_intensity import reflections_of
from xfelproc.algorithms.downstream.translation import translation

CELLS = {
    "P 21 21 21": (60.0, 70.0, 80.0, 90.0, 90.0, 90.0),
    "C 1 2 1": (90.0, 60.0, 70.0, 90.0, 110.0, 90.0),
    "P 3": (70.0, 70.0, 60.0, 90.0, 90.0, 120.0),
}


def modulated(data: Simulated, vector: tuple[float, float, float], share: float) -> Simulated:
    """Two like parts, one moved by the vector: intensities times 1 + share cos 2πht."""
    factor = 1.0 + share * np.cos(2 * np.pi * data.merged["hkl"] @ np.array(vector))
    columns = {name: data.merged[name] * factor for name in ("intensity", "intensity_plus", "intensity_minus")}
    return Simulated(data.merged.replace(**columns), data.truth * factor, data.cell, data.group)


@pytest.mark.parametrize("group", CELLS)
def test_no_peak_without(group: str) -> None:
    data = simulated(CELLS[group], group, d_min=3.0)
    _, found = analyse(data.merged, data.cell, data.group)
    assert found.translation is not None
    assert not found.translation.significant
    assert found.translation.height < 0.2
    assert found.translation.distance > 15.0
    assert not any("pseudo-translation" in text for text in found.warnings)


@pytest.mark.parametrize(
    ("group", "vector"), [("P 21 21 21", (0.5, 0.0, 0.5)), ("C 1 2 1", (0.0, 0.0, 0.5)), ("P 3", (0.0, 0.0, 0.5))]
)
def test_a_translation_is_found(group: str, vector: tuple[float, float, float]) -> None:
    data = modulated(simulated(CELLS[group], group, d_min=3.0), vector, 0.8)
    _, found = analyse(data.merged, data.cell, data.group)
    assert found.translation is not None
    assert found.translation.significant
    # Σ z cos 2πht / Σ z, with z ∝ 1 + 0.8 cos 2πht and a cosine of ±1
    assert found.translation.height == pytest.approx(0.8, abs=0.08)
    apart = np.array(found.translation.vector) - vector
    centred = apart[None] - np.array([[0, 0, 0], [0.5, 0.5, 0]] if group.startswith("C") else [[0, 0, 0]])
    assert np.abs(centred - np.rint(centred)).max(axis=1).min() < 0.04
    assert any("pseudo-translation" in text for text in found.warnings)


def test_few_reflections_tell_nothing() -> None:
    data = simulated((20.0, 21.0, 22.0, 90.0, 90.0, 90.0), "P 1", d_min=2.0)
    merged = data.merged
    reflections, _ = reflections_of(merged["hkl"], merged["intensity"], merged["sigma"], data.cell, data.group)
    few = reflections.select(np.arange(0, len(reflections), 20))
    assert translation(few, np.ones(len(few)), data.cell, data.group) is None

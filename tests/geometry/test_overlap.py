"""Panels that hide one another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.geometry.test_placement import tiles
from xfelproc.geometry.overlap import overlap_warning, overlapping_panels
from xfelproc.models.experiment import Detector, as_vector
from xfelproc.simulation.layout import make_layout
from xfelproc.simulation.settings import DetectorSettings


def with_panel(detector: Detector, number: int, move: tuple[float, float, float]) -> Detector:
    panels = list(detector.panels)
    panels[number] = replace(panels[number], origin=as_vector(np.add(panels[number].origin, move)))
    return Detector(tuple(panels), detector.hierarchy)


def test_detectors_as_they_are_built_do_not_overlap() -> None:
    for layout in ("tiles", "cspad"):
        assert overlapping_panels(make_layout(DetectorSettings(layout=layout, size=(480, 230))).detector) == ()
    assert overlap_warning(tiles()) is None


def test_a_panel_in_its_neighbours_place_is_named() -> None:
    """Gaps are 10 pixels wide: 15 pixels to the left is 5 too far."""
    wrong = with_panel(tiles(), 1, (-1.5, 0.0, 0.0))
    (pair,) = overlapping_panels(wrong)
    assert (pair.first, pair.second) == (0, 1)
    assert pair.depth == pytest.approx(5.0, abs=0.1)
    text = overlap_warning(wrong)
    assert text is not None
    assert "p0 and p1 by 5.0 px" in text


def test_a_small_overlap_is_what_drawings_have() -> None:
    assert overlapping_panels(with_panel(tiles(), 1, (-1.1, 0.0, 0.0))) == ()


def test_panels_one_behind_the_other_overlap_as_seen_from_the_sample() -> None:
    assert overlapping_panels(with_panel(tiles(), 1, (-11.0, 0.0, -20.0)))
    turned = tiles().moved((0.0, 0.0, 0.0), (20.0, 10.0))
    assert overlapping_panels(turned) == ()

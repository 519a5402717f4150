from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.run.combine_runs import detector
from xfelproc.models.experiment import Beam, Detector, as_vector
from xfelproc.stages.combine_models import average_detector, beam_difference, beam_of, beam_row, detector_difference
from xfelproc.stages.combine_settings import Combine


def test_beams_as_numbers() -> None:
    beam = Beam(1.3, as_vector(np.array([0.01, 0.0, 1.0]) / np.hypot(0.01, 1.0)), (0.0, 1.0, 0.0), 0.99, 0.1, 0.002, 5.0)
    assert beam_of(np.array(beam_row(beam))) == beam


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (Beam(1.3 * 1.001), "wavelength differs by 0.001 relative, more than combine.wavelength_tolerance = 1e-06"),
        (
            Beam(1.3, (np.sin(0.01), 0.0, np.cos(0.01))),
            "direction of the beam differs by 0.573 °, more than combine.direction_tolerance",
        ),
        (Beam(1.3, polarization_normal=(1.0, 0.0, 0.0)), "plane of polarisation differs by 90 °"),
        (Beam(1.3, polarization_fraction=0.5), "polarisation fraction differs by 0.499, more than combine.polarization_tolerance"),
    ],
)
def test_what_differs_in_beams_is_named(other: Beam, text: str) -> None:
    rows = np.array([beam_row(Beam(1.3)), beam_row(other), beam_row(Beam(1.3))])
    found = beam_difference(rows[0], rows, Combine())
    assert found is not None
    assert (found[0], found[1][: len(text)]) == (1, text)
    assert beam_difference(rows[0], rows[::2], Combine()) is None


def test_what_differs_in_detectors_is_named() -> None:
    first = detector()
    panels = list(first.panels)
    panels[2] = replace(panels[2], origin=(-10.5, -0.499, -100.0))
    moved = Detector(tuple(panels), first.hierarchy)
    settings = Combine()
    assert detector_difference(first, first, settings) is None
    assert detector_difference(first, moved, settings) == (
        "panel 2 (p2): origin differs by 0.001 mm, more than combine.origin_tolerance = 0.0005"
    )
    assert detector_difference(first, moved, Combine(origin_tolerance=0.002)) is None
    turned = first.moved((0, 0, 0), (0.01, 0.0))
    assert "slow_axis differs by 0.01°" in str(detector_difference(first, turned, settings))
    panels[0] = replace(panels[0], image_size=(100, 99))
    assert "image_size is (100, 99), not (100, 100)" in str(detector_difference(first, Detector(tuple(panels)), settings))
    assert detector_difference(first, Detector(first.panels[:2]), settings) == "2 panels, not 4"


def test_averages() -> None:
    first = detector()
    apart = [first.shifted((0.1, 0.0, 0.0)), first.shifted((-0.1, 0.3, 0.0))]
    mean = average_detector(apart, [3.0, 1.0])
    assert np.allclose(mean.d_matrices, first.shifted((0.05, 0.075, 0.0)).d_matrices, atol=1e-12)
    assert mean.hierarchy is not None
    assert mean.hierarchy.origin == pytest.approx((0.05, 0.075, -100.0))


def test_averages_at_a_level_keep_what_is_below_it() -> None:
    first = detector()
    panels = list(first.panels)
    panels[1] = replace(panels[1], origin=as_vector(np.add(panels[1].origin, (0.0, 0.2, 0.0))))
    other = Detector(tuple(panels), first.hierarchy)
    by_panel = average_detector([first, other], [1.0, 1.0])
    assert by_panel.panels[1].origin[1] - first.panels[1].origin[1] == pytest.approx(0.1)
    by_group = average_detector([first, other], [1.0, 1.0], level=1)
    apart = [np.subtract(d.panels[1].origin, d.panels[0].origin) for d in (first, by_group)]
    assert np.linalg.norm(apart[0]) == pytest.approx(np.linalg.norm(apart[1]))
    assert not np.allclose(by_group.panels[0].origin, first.panels[0].origin)
    assert np.allclose(by_group.d_matrices[2:], first.d_matrices[2:], atol=1e-12)
    assert np.allclose(average_detector([first, other], [1.0, 0.0], level=0).d_matrices, first.d_matrices, atol=1e-12)

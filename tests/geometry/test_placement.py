"""Where panels are, and how a refined geometry reaches the detectors of other frames."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from xfelproc.geometry.detector import pixel_to_lab
from xfelproc.geometry.placement import (
    alike,
    displacements,
    placement_of,
    same_place,
    seen_from,
    transferred,
    whole_motion,
    with_placement,
)
from xfelproc.models.experiment import Detector, DetectorGroup, Panel, as_vector


def tiles(sensor: float = 0.0) -> Detector:
    """Two by two tiles of 100 x 80 pixels of 0.1 mm in two groups, 100 mm away."""
    panels = []
    for row in range(2):
        for column in range(2):
            origin = (-10.5 + 11 * column, 8.5 - 9 * row, -100.0)
            panels.append(
                Panel(
                    f"p{len(panels)}", (1, 0, 0), (0, -1, 0), origin, (0.1, 0.1), (100, 80), thickness=sensor, mu=4.0, material="Si"
                )
            )
    groups = (DetectorGroup("upper", (0, 1), origin=(0, 5, -100)), DetectorGroup("lower", (2, 3), origin=(0, -5, -100)))
    return Detector(tuple(panels), DetectorGroup("all", groups, origin=(0, 0, -100)))


def refined(detector: Detector) -> Detector:
    """Every panel moved, tilted and turned by its own."""
    rng = np.random.default_rng(1)
    panels = []
    for panel in detector.panels:
        own = Detector((panel,)).moved(as_vector(rng.normal(scale=0.05, size=3)), (float(rng.normal(scale=0.1)), 0.05))
        panels.append(own.panels[0])
    return Detector(tuple(panels), detector.hierarchy)


def test_placement_goes_through_json() -> None:
    detector = refined(tiles())
    values = json.loads(json.dumps(placement_of(detector)))
    assert with_placement(tiles(), values) == detector
    flat = Detector(detector.panels)
    assert with_placement(tiles(), json.loads(json.dumps(placement_of(flat)))) == flat
    with pytest.raises(ValueError, match="4 panels"):
        with_placement(Detector(tiles().panels[:3]), values)


def test_the_same_detector_takes_over_exactly() -> None:
    before, after = tiles(), refined(tiles())
    own = Detector(tuple(replace(p, trusted_range=(0, 99)) for p in before.panels))
    found = transferred(own, before, after)
    assert found is not None
    assert placement_of(found) == placement_of(after)
    assert all(panel.trusted_range == (0, 99) for panel in found.panels)


def test_a_detector_elsewhere_takes_over_the_same_displacements() -> None:
    before, after = tiles(), refined(tiles())
    for own in (before.shifted((0.0, 0.0, -50.0)), before.moved((1.0, 2.0, 3.0), (5.0, -3.0))):
        found = transferred(own, before, after)
        assert found is not None
        assert displacements(own, found) == pytest.approx(displacements(before, after), abs=1e-9)
        assert found.hierarchy is not None
        assert found.hierarchy.origin == pytest.approx(own.hierarchy.origin, abs=1e-9)  # type: ignore[union-attr]


def test_another_detector_does_not() -> None:
    before, after = tiles(), refined(tiles())
    assert transferred(Detector(before.panels[:3]), before, after) is None
    assert transferred(refined(before), before, after) is None
    other = Detector(tuple(replace(p, image_size=(100, 81)) for p in before.panels))
    assert not alike(other, before)
    assert transferred(other, before, after) is None


def test_whole_motion_is_that_of_moved() -> None:
    before = tiles()
    after = before.moved((0.3, -0.2, 1.0), (0.4, 0.1))
    motion = whole_motion(before, after)
    assert motion is not None
    points = before.d_matrices[:, :, 2]
    assert motion.points(points) == pytest.approx(after.d_matrices[:, :, 2], abs=1e-10)
    assert same_place(before, tiles())
    assert not same_place(before, after)


@pytest.mark.parametrize("sensor", [0.0, 0.3])
def test_rays_are_seen_from_another_place(sensor: float) -> None:
    """What a detector that was moved recorded, seen on the one that was not: the same rays."""
    own, rng = tiles(sensor), np.random.default_rng(2)
    shift, tilt = np.array([0.2, -0.1, 0.5]), (0.2, -0.1)
    moved = own.moved(as_vector(shift), tilt)
    motion = whole_motion(own, moved)
    assert motion is not None
    panel, pixels = rng.integers(0, 4, 50), rng.uniform(5, 75, (50, 2))
    found = seen_from(own, own, panel, pixels, np.tile(motion.turn, (50, 1, 1)), np.tile(motion.move, (50, 1)))
    before, after = pixel_to_lab(moved, panel, *pixels.T), pixel_to_lab(own, panel, *found.T)
    unit = [rays / np.linalg.norm(rays, axis=1, keepdims=True) for rays in (before, after)]
    assert unit[0] == pytest.approx(unit[1], abs=1e-9 if sensor == 0 else 5e-6)  # 0.005 px of parallax
    assert np.abs(found - pixels).max() > 1


def test_displacements_are_along_the_panels_axes() -> None:
    before = tiles()
    assert displacements(before, before.shifted((0.1, 0.2, -0.5))) == pytest.approx(np.tile([0.1, -0.2, 0.5], (4, 1)))

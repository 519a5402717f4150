from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.run.combine_runs import detector
from xfelproc.errors import ConfigError
from xfelproc.geometry.cells import rotation_matrix
from xfelproc.geometry.motion import corners, levels, panels_of, rigid_motion, with_motions
from xfelproc.geometry.shifts import detector_shifts, displaced
from xfelproc.models.experiment import Detector


def row_of(table: object, level: int, name: str) -> dict[str, np.ndarray]:
    rows = [i for i in range(len(table)) if (table["level"][i], table["name"][i]) == (level, name)]  # type: ignore[arg-type, index]
    assert len(rows) == 1
    return {
        c: table[c][rows[0]] for c in ("shift", "rotation", "distance", "free_shift", "free_rotation", "own_shift", "own_rotation")
    }  # type: ignore[index]


def test_levels() -> None:
    first = detector()
    assert [[panels_of(node) for node in nodes] for nodes in levels(first)] == [
        [(0, 1, 2, 3)],
        [(0, 1), (2, 3)],
        [(0,), (1,), (2,), (3,)],
    ]
    assert len(levels(Detector(first.panels))) == 2
    assert len(levels(Detector(first.panels[:1]))) == 1 or levels(Detector(first.panels[:1]))[-1] == (0,)


def test_a_rigid_motion_is_found() -> None:
    before = corners(detector(), range(4))
    turn, move = rotation_matrix((0.01, -0.02, 0.3)), np.array([0.1, 0.2, -3.0])
    rotation, translation = rigid_motion(before, before @ turn.T + move)
    assert np.allclose(rotation, turn, atol=1e-12)
    assert np.allclose(translation, move, atol=1e-9)


def test_the_motion_of_the_whole_is_told_apart() -> None:
    first = detector()
    second = first.moved((0.2, -0.1, -1.5), (0.3, 0.0))
    table = detector_shifts(first, second)
    whole = row_of(table, 0, "d")
    assert whole["shift"] == pytest.approx([0.2, -0.1, -1.5], abs=1e-9)
    assert whole["rotation"] == pytest.approx([0.3, 0.0, 0.0], abs=1e-9)
    assert whole["distance"] == pytest.approx(1.5), "the beam goes towards -z"
    for name in ("free_shift", "free_rotation", "free_distance"):
        assert np.abs(table[name]).max() < 1e-9
    assert np.abs(table["own_shift"][1:]).max() < 1e-9


def test_shifts_are_along_the_panels_own_axes() -> None:
    first = detector()
    panel = 3
    p = first.panels[panel]
    fast, slow, normal = np.array(p.fast_axis), np.array(p.slow_axis), np.array(p.normal)
    turn = rotation_matrix(0.002 * normal)
    centre = corners(first, [panel]).mean(axis=0)
    move = 0.03 * fast - 0.02 * slow + 0.01 * normal + centre - turn @ centre
    second = with_motions(first, (panel,), [(turn, move)])
    found = row_of(detector_shifts(first, second), 2, "p3")
    assert found["shift"] == pytest.approx([0.03, -0.02, 0.01], abs=1e-9)
    assert found["rotation"] == pytest.approx([0.0, 0.0, np.degrees(0.002)], abs=1e-9)
    assert found["distance"] == pytest.approx(0.01, abs=1e-9), "its normal points along the beam"
    assert np.linalg.norm(found["free_shift"]) < np.linalg.norm(found["shift"])


def test_groups_move_together_and_panels_in_them() -> None:
    first = detector()
    nodes = levels(first)[1]
    second = with_motions(first, nodes, [(np.eye(3), np.array([0.1, 0.0, 0.0])), (np.eye(3), np.array([-0.1, 0.0, 0.0]))])
    table = detector_shifts(first, second)
    found = row_of(table, 1, "q0")
    assert found["shift"] == pytest.approx([0.1, 0.0, 0.0], abs=1e-9)
    assert found["own_shift"] == pytest.approx(found["free_shift"], abs=1e-9)
    assert found["own_rotation"][2] > 0.1, "the whole turns the other way"
    assert np.linalg.norm(row_of(table, 2, "p0")["own_shift"]) < 1e-9
    assert second.hierarchy is not None
    assert second.hierarchy.children[0].origin[0] == pytest.approx(0.1)  # type: ignore[union-attr]
    centre, move = displaced(first, second)
    assert centre.shape == move.shape == (4, 3)
    assert np.sign(move[:, 0]).tolist() == [1, 1, -1, -1]


def test_panels_are_matched_by_name() -> None:
    first = detector()
    second = Detector(first.panels[::-1])
    assert np.abs(detector_shifts(first, second)["shift"]).max() < 1e-9
    renamed = Detector(tuple(replace(p, name=f"x{k}") for k, p in enumerate(first.panels)))
    assert np.abs(detector_shifts(first, renamed)["shift"]).max() < 1e-9


def test_geometries_of_other_detectors() -> None:
    first = detector()
    with pytest.raises(ConfigError, match="4 panels, the second 3"):
        detector_shifts(first, Detector(first.panels[:3]))
    other = tuple(replace(p, pixel_size=(0.2, 0.2)) for p in first.panels)
    with pytest.raises(ConfigError, match=r"'p0' has .* of \(0.2, 0.2\) mm, not"):
        detector_shifts(first, Detector(other))


@pytest.mark.peer
def test_the_planted_motions_of_real_sensors_are_found(shared_data: Path) -> None:
    from xfelproc.io.exchange import load_geometry

    files = [shared_data / "metrology_cspad" / f"{name}.expt.xz" for name in ("experiments", "perturbed")]
    first, second = (load_geometry(path).detector for path in files)
    table = detector_shifts(first, second)
    sensors = table.select(table["level"] == 2)
    assert len(sensors) == 32
    # every sensor was moved by N(0, 0.1 mm) and turned by 3 mrad about its quadrant's origin, which adds to the first
    assert 0.1 < np.std(sensors["shift"][:, :2]) < 0.2
    assert np.std(np.radians(sensors["rotation"][:, 2])) == pytest.approx(0.003, rel=0.4)
    panels = table.select(table["level"] == 3)
    assert np.abs(panels["own_shift"]).max() < 1e-6, "the two ASICs of a sensor move as one"

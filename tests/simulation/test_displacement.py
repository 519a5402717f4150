from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from xfelproc.errors import ConfigError
from xfelproc.io.exchange.geom import read_geom
from xfelproc.io.exchange.nexus_read import read_nexus
from xfelproc.models.experiment import Detector, DetectorGroup
from xfelproc.simulation import preset, simulate
from xfelproc.simulation.displacement import displaced
from xfelproc.simulation.experiment import recorded_layout
from xfelproc.simulation.layout import make_layout, middle
from xfelproc.simulation.settings import DetectorSettings, Displacement, GeometryErrorSettings
from xfelproc.simulation.writing import FrameWriter, write_geometry

CSPAD = make_layout(DetectorSettings(layout="cspad", pixel_size=0.11, distance=110.0)).detector


def middles(detector: Detector) -> np.ndarray:
    return np.array([middle(panel) for panel in detector.panels])


def angles(one: Detector, other: Detector) -> np.ndarray:
    """(panel,) degrees between orientations."""
    frames = [[np.column_stack([p.fast_axis, p.slow_axis, p.normal]) for p in d.panels] for d in (one, other)]
    dots = [np.trace(p.T @ q) for p, q in zip(*frames, strict=True)]
    return np.degrees(np.arccos(np.clip((np.array(dots) - 1) / 2, -1, 1)))


def test_panels_are_as_far_off_as_asked() -> None:
    error = GeometryErrorSettings(panels=Displacement(in_plane=0.8, out_of_plane=0.5, rotation=0.1, tilt=0.2))
    moved = displaced(CSPAD, error, seed=5)
    shift = (middles(moved) - middles(CSPAD)) / 0.11
    along = np.array([[s @ p.fast_axis, s @ p.slow_axis, s @ p.normal] for s, p in zip(shift, CSPAD.panels, strict=True)])
    np.testing.assert_allclose(np.sqrt(np.mean(along**2, axis=0)), (0.8, 0.8, 0.5), rtol=1e-6)
    assert np.sqrt(np.mean(angles(moved, CSPAD) ** 2)) == pytest.approx(np.sqrt(0.1**2 + 2 * 0.2**2), rel=1e-3)
    assert np.all(np.abs(shift).max(axis=1) > 0)


def test_parts_move_as_rigid_bodies() -> None:
    moved = displaced(CSPAD, GeometryErrorSettings(sensors=Displacement(in_plane=3.0, tilt=0.5, rotation=0.5)), seed=5)
    before, after = middles(CSPAD), middles(moved)
    for sensor in range(32):
        a, b = 2 * sensor, 2 * sensor + 1
        assert np.linalg.norm(after[a] - after[b]) == pytest.approx(np.linalg.norm(before[a] - before[b]), abs=1e-9)
        np.testing.assert_allclose(moved.panels[a].fast_axis, moved.panels[b].fast_axis, atol=1e-12)
    assert np.linalg.norm(after[1] - after[2]) != pytest.approx(np.linalg.norm(before[1] - before[2]), abs=1e-3)


def test_the_whole_is_off_centre_and_nearer() -> None:
    moved = displaced(CSPAD, GeometryErrorSettings(centre=(2.0, 1.0), distance=-0.4), seed=5)
    np.testing.assert_allclose(middles(moved) - middles(CSPAD), np.tile((0.22, -0.11, 0.4), (64, 1)), atol=1e-12)


def test_no_such_parts() -> None:
    tiles = make_layout(DetectorSettings(layout="tiles", size=(60, 40))).detector
    with pytest.raises(ConfigError, match=r"geometry_error\.sensors"):
        displaced(tiles, GeometryErrorSettings(sensors=Displacement(in_plane=1.0)), seed=1)


def tree(detector: Detector, group: DetectorGroup | int | None) -> object:
    """Return names, nested: readers number the panels in the order of their data."""
    if isinstance(group, int):
        return detector.panels[group].name.removeprefix("module_")
    assert group is not None
    return (group.name, sorted((tree(detector, child) for child in group.children), key=str))


def origins(detector: Detector) -> dict[str, np.ndarray]:
    return {panel.name.removeprefix("module_"): np.array(panel.origin) for panel in detector.panels}


def test_files_state_the_wrong_places_and_the_tree(tmp_path: Path) -> None:
    error = {"quadrants": {"in_plane": 2.0}, "sensors": {"in_plane": 0.8, "out_of_plane": 0.5, "rotation": 0.1, "tilt": 0.1}}
    settings = preset("cspad", frames=1, geometry_error=error)
    layout = recorded_layout(settings, make_layout(settings.detector))
    assert 1.0 < np.sqrt(np.mean((middles(layout.detector) - middles(CSPAD)) ** 2)) / 0.11 < 4.0
    with FrameWriter(tmp_path / "frames.h5", settings, layout, np.zeros(CSPAD.stack_shape, dtype=bool), 1) as writer:
        writer.write(np.zeros(layout.shape, dtype=np.uint16), 1.3)
    write_geometry(tmp_path / "frames.geom", settings, layout)
    for detector in (read_nexus(tmp_path / "frames.h5").detector(), read_geom(tmp_path / "frames.geom").detector()):
        found = origins(detector)
        assert len(found) == 64
        np.testing.assert_allclose([found[p.name] for p in layout.detector.panels], layout.geometry[:, 0], atol=2e-7)
        assert tree(detector, detector.hierarchy) == tree(CSPAD, CSPAD.hierarchy)


def test_truth_has_both_geometries(tmp_path: Path) -> None:
    detector = {"layout": "tiles", "size": (60, 40), "pixel_size": 0.8}
    run = simulate(preset("blank", frames=1, detector=detector, geometry_error={"panels": {"in_plane": 0.8}}), tmp_path)
    with h5py.File(run.truth) as truth:
        off = (truth["geometry/recorded"][:, 0] - truth["geometry/true"][:, 0]) / 0.8
        names = list(truth["geometry"].attrs["panels"])
    assert np.sqrt(np.mean(np.sum(off**2, axis=1))) == pytest.approx(0.8 * np.sqrt(2), rel=1e-6)
    for path, known in ((run.true_geometry, 0.0), (run.geometry, 1.0)):
        found = origins(read_geom(path).detector())
        true = origins(make_layout(DetectorSettings(**detector)).detector)  # type: ignore[arg-type]
        np.testing.assert_allclose([found[name] - true[name] for name in names], known * off * 0.8, atol=2e-6)

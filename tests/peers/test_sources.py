"""Frames of real detectors, against other readers and other people's geometry."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from xfelproc.geometry.cells import rotation_matrix
from xfelproc.io.sources import open_source
from xfelproc.io.sources.overrides import beam_center, detector_distance

pytestmark = pytest.mark.peer

THERMOLYSIN = ["idx-20130301060858401.cbf", "idx-20130301060858601.cbf"]


def _pycbf_arrays(path: Path) -> list[NDArray[np.int32]]:
    pycbf = pytest.importorskip("pycbf", reason="pycbf is not installed: no independent decoder of packed CBF")
    handle = pycbf.cbf_handle_struct()
    handle.read_widefile(str(path).encode(), pycbf.MSG_DIGEST)
    handle.find_category(b"array_data")
    handle.find_column(b"data")
    handle.rewind_row()
    arrays = []
    for row in range(handle.count_rows()):
        handle.select_row(row)
        size = handle.get_integerarrayparameters_wdims_fs()
        fast, second, third = size[9:12]
        arrays.append(np.frombuffer(handle.get_integerarray_as_string(), np.int32).reshape(max(1, third), second, fast))
    return arrays


@pytest.mark.parametrize("name", THERMOLYSIN)
def test_cspad_pixels_are_those_of_cbflib(shared_data: Path, name: str) -> None:
    path = shared_data / "stills_thermolysin" / name
    frame = open_source(path).read(0)
    modules = np.concatenate(_pycbf_arrays(path))
    assert frame.pixels.shape == (64, 185, 194)
    for sensor in range(32):
        assert np.array_equal(frame.pixels[2 * sensor], modules[sensor, :, :194])
        assert np.array_equal(frame.pixels[2 * sensor + 1], modules[sensor, :, 194:])


@pytest.mark.parametrize(
    "name",
    [
        "rotation_lcysteine/l-cyst_01_00003.cbf.bz2",
        "single_images/DLS_I03_smargon_0001.cbf.gz",
        "stills_thaumatin/thau_3_2_0010.cbf.bz2",
    ],
)
def test_byte_offset_pixels_are_those_of_cbflib(shared_data: Path, tmp_path: Path, name: str) -> None:
    wrapped = shared_data / name
    plain = tmp_path / "plain.cbf"
    plain.write_bytes((bz2 if name.endswith("bz2") else gzip).open(wrapped).read())  # type: ignore[attr-defined]
    (expected,) = _pycbf_arrays(plain)
    for path in (wrapped, plain):
        assert np.array_equal(open_source(path).read(0).pixels, expected)


@pytest.mark.parametrize("name", ["adsc.img.bz2", "TIMEPIX_SU_512-stdgoni_0001.img", "somedata_0001.mccd.bz2"])
def test_other_pixels_are_those_of_fabio(shared_data: Path, name: str) -> None:
    import fabio

    path = shared_data / "single_images" / name
    expected = fabio.open(str(path)).data
    source = open_source(path)
    assert np.array_equal(np.asarray(source.read_pixels(0), dtype=np.int64), expected)  # type: ignore[attr-defined]


def _dials_panels(folder: dict[str, Any]) -> dict[str, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Laboratory origin, fast and slow axis of the panels of a DIALS detector with a hierarchy, by name."""
    found = {}

    def walk(node: dict[str, Any], turn: NDArray[Any], origin: NDArray[Any]) -> None:
        own = folder["panels"][node["panel"]] if "panel" in node else node
        fast, slow = np.array(own["fast_axis"]), np.array(own["slow_axis"])
        origin = origin + turn @ np.array(own["origin"])
        turn = turn @ np.column_stack([fast, slow, np.cross(fast, slow)])
        if "panel" in node:
            found[own["name"]] = (origin, turn[:, 0], turn[:, 1])
        for child in node.get("children", []):
            walk(child, turn, origin)

    walk(folder["hierarchy"], np.eye(3), np.zeros(3))
    return found


def test_cspad_stands_where_metrology_found_it(shared_data: Path) -> None:
    """The header's geometry and one refined against 300 shots of the same beamtime differ by tenths of mm in every panel."""
    with lzma.open(shared_data / "stills_thermolysin" / "cspad_refined_300shots.json.xz") as file:
        refined = _dials_panels(json.load(file)["detector"][0])
    detector = open_source(shared_data / "stills_thermolysin" / THERMOLYSIN[0]).experiment(0).detector
    assert [p.name for p in detector.panels] == list(refined)
    for panel in detector.panels:
        origin, fast, slow = refined[panel.name]
        assert np.linalg.norm(np.array(panel.origin) - origin) < 0.45
        assert np.dot(panel.fast_axis, fast) > np.cos(np.radians(0.25))
        assert np.dot(panel.slow_axis, slow) > np.cos(np.radians(0.25))
        assert panel.pixel_size == (0.10992, 0.10992)
        assert panel.mu == pytest.approx(8.5157, rel=8e-3)
    tree = detector.hierarchy
    assert tree is not None
    assert (tree.name, len(tree.children), tree.panels()) == ("AXIS_D0_R", 4, tuple(range(64)))
    assert all(len(quadrant.children) == 8 for quadrant in tree.children)  # type: ignore[union-attr]


def test_shots_of_one_geometry_share_their_detector(shared_data: Path) -> None:
    first, second = (open_source(shared_data / "stills_thermolysin" / name).experiment(0) for name in THERMOLYSIN)
    assert first.beam.wavelength != second.beam.wavelength
    assert first.detector is second.detector


def test_lcysteine_loops(shared_data: Path) -> None:
    """2θ of 30 degrees about +x, and GON_OMEGA carrying GON_PHI at 0 and 120 degrees."""
    for sweep, phi in ((1, 0.0), (2, 120.0)):
        experiment = open_source(shared_data / "rotation_lcysteine" / f"l-cyst_0{sweep}_00005.cbf.bz2").experiment(0)
        goniometer, scan = experiment.goniometer, experiment.scan
        assert goniometer is not None
        assert scan is not None
        assert goniometer.names == ("GON_PHI", "GON_OMEGA")
        assert np.allclose(goniometer.axes, [(0.5774, -0.8165, 0), (1, 0, 0)], atol=1e-4)
        assert (goniometer.angles[0], goniometer.scan_axis) == (phi, 1)
        assert (scan.oscillation[1], scan.image_range) == (0.1, (5, 5))
        assert scan.oscillation[0] == pytest.approx(-145.0 + 0.4)
        panel = experiment.detector.panels[0]
        turn = rotation_matrix(np.radians([30.0, 0.0, 0.0]))
        assert np.allclose(panel.origin, turn @ [-148.78, -125.56, -160.0])
        assert np.allclose(panel.fast_axis, turn @ [0, 1, 0])
        assert np.allclose(panel.slow_axis, turn @ [1, 0, 0])
        assert detector_distance(experiment.detector, experiment.beam) == pytest.approx(160.0)


@pytest.mark.parametrize(
    ("name", "kind", "panels", "distance", "center", "sensor"),
    [
        ("single_images/run2_1_00148.cbf.bz2", "miniCBF", 1, 300.0, (1230.10, 1310.50), ("Si", 0.32)),
        ("single_images/DLS_I03_smargon_0001.cbf.gz", "imgCIF", 1, 291.47, (1229.30, 1200.48), ("Si", 1.0)),
        ("single_images/dlsnxs2cbf_therm_0001.cbf.gz", "miniCBF", 1, 213.96, (2216.06, 2300.41), ("Si", 0.45)),
        ("single_images/adsc.img.bz2", "SMV", 1, 250.0, (99.30 / 0.0816, 93.30 / 0.0816), ("", 0.0)),
        ("single_images/TIMEPIX_SU_516-stdgoni_0001.img", "SMV", 1, 531.85, (246.14, 240.35), ("", 0.0)),
        ("stills_thaumatin/thau_3_2_0017.cbf.bz2", "miniCBF", 1, 351.0, (1261.61, 1306.96), ("Si", 0.45)),
        ("stills_thermolysin/idx-20130301060858601.cbf", "imgCIF", 64, 130.1, None, ("Si", 0.5)),
    ],
)
def test_headers_of_real_files(
    shared_data: Path,
    name: str,
    kind: str,
    panels: int,
    distance: float,
    center: tuple[float, float] | None,
    sensor: tuple[str, float],
) -> None:
    summary = open_source(shared_data / name).summary()
    experiment = summary.experiment
    assert summary.format.startswith(kind)
    assert len(experiment.detector) == panels
    assert detector_distance(experiment.detector, experiment.beam) == pytest.approx(distance, abs=0.05)
    if center is not None:
        assert beam_center(experiment.detector, experiment.beam) == pytest.approx(center, abs=0.02)
    panel = experiment.detector.panels[0]
    assert (panel.material, panel.thickness) == (sensor[0], pytest.approx(sensor[1]))


def test_rings_of_an_adsc_frame_lie_about_its_beam_centre(shared_data: Path) -> None:
    """Air and loop scattering inside 60 mm is round about the beam: the mean along circles varies least about the true centre."""
    source = open_source(shared_data / "single_images" / "adsc.img.bz2")
    frame = source.read(0)
    pixels = frame.pixels[0, ::4, ::4].astype(np.float64)
    slow, fast = np.indices(pixels.shape) * 4 + 0.5
    good = (pixels > 0) & (pixels < np.percentile(pixels, 99))

    def spread(center: tuple[float, float]) -> float:
        radius = np.hypot(fast - center[0], slow - center[1]) * 0.0816
        ring = good & (radius > 20) & (radius < 60)
        number = ((radius[ring] - 20) * 1.5).astype(int)
        n, total, squares = (np.bincount(number, weights=w) for w in (np.ones(ring.sum()), pixels[ring], pixels[ring] ** 2))
        return float(np.sum(squares - total**2 / n) / n.sum())

    stated = beam_center(frame.detector, frame.beam)
    others = [(stated[0] + dx, stated[1] + dy) for dx, dy in ((20, 0), (-20, 0), (0, 20), (0, -20))]
    assert all(spread(stated) < spread(other) for other in others)

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xfelproc.errors import ConfigError, DataError
from xfelproc.geometry.cells import b_matrix, rotation_matrix
from xfelproc.io.exchange.dials_expt import goniometer_rotation, parse_expt, read_expt, rotation_vector, write_expt
from xfelproc.io.exchange.dials_write import expt_content
from xfelproc.models.experiment import Beam, Crystal, Detector, DetectorGroup, Experiment, Goniometer, Panel, Scan, as_matrix


def detector() -> Detector:
    r = rotation_matrix((0.1, 0.2, -0.3))
    panels = tuple(
        Panel(f"p{k}", tuple(r[:, 0]), tuple(r[:, 1]), (k, 2.0, -100), (0.1, 0.1), (10, 20), (-1, 100), 0.32, "Si", 3.9)
        for k in range(3)
    )
    group = DetectorGroup("q", (1, 2), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (5.0, 6.0, -90.0))
    return Detector(panels, DetectorGroup("root", (0, group), origin=(0.0, 0.0, -100.0)))


def crystal(seed: int = 0) -> Crystal:
    rotation = rotation_matrix(np.random.default_rng(seed).normal(size=3))
    return Crystal(as_matrix(rotation @ b_matrix((79.1, 79.1, 38.0, 90, 90, 90))), "P 43 21 2", 1200.0, 0.03)


def test_models_are_kept(tmp_path: Path) -> None:
    shared, beam = detector(), Beam(1.3, (0.0, 0.01, 0.99995), bandwidth=0.0)
    experiments = [Experiment(beam, shared, crystal=crystal(k), image=("/x/y.h5", k), identifier=str(k)) for k in range(3)]
    write_expt(experiments, tmp_path / "a.expt")
    found = read_expt(tmp_path / "a.expt")
    content = json.loads((tmp_path / "a.expt").read_text())
    assert (len(content["detector"]), len(content["beam"]), len(content["crystal"]), len(content["imageset"])) == (1, 1, 3, 3)
    assert found[0].detector is found[2].detector
    for a, b in zip(experiments, found, strict=True):
        assert a.crystal is not None
        assert b.crystal is not None
        assert np.allclose(a.crystal.a_matrix, b.crystal.a_matrix, atol=1e-15)
        assert (a.crystal.space_group, b.crystal.domain_size, b.crystal.half_mosaicity) == (b.crystal.space_group, 1200.0, 0.03)
        assert (a.image, a.identifier) == (b.image, b.identifier)
        assert np.allclose(a.detector.d_matrices, b.detector.d_matrices, atol=1e-12)
        assert b.detector.panels[0].mu == 3.9
        assert b.detector.hierarchy is not None
        assert [c if isinstance(c, int) else c.name for c in b.detector.hierarchy.children] == [0, "q"]


def test_local_frames_are_relative_to_the_group() -> None:
    content = expt_content([Experiment(Beam(1.0), detector())])["detector"][0]
    group = content["hierarchy"]["children"][1]
    assert group["origin"] == pytest.approx((5, 6, 10))
    # the group's fast axis is our y, its slow axis our -x
    assert content["panels"][1]["origin"] == pytest.approx((2 - 6, -(1 - 5), -10))


def test_wrapped_files_open_as_they_are(tmp_path: Path) -> None:
    write_expt([Experiment(Beam(1.0), detector())], tmp_path / "a.expt")
    with gzip.open(tmp_path / "a.expt.gz", "wb") as stream:
        stream.write((tmp_path / "a.expt").read_bytes())
    assert read_expt(tmp_path / "a.expt.gz")[0].detector == read_expt(tmp_path / "a.expt")[0].detector


def test_goniometers_and_scans(tmp_path: Path) -> None:
    chain = Goniometer(((0.0, 1.0, 0.0), (1.0, 0.0, 0.0)), (30.0, 0.0), ("phi", "omega"), 1)
    scan = Scan((5.0, 0.1), (3, 12), 0.05)
    write_expt([Experiment(Beam(1.0), detector(), chain, scan, image=("x_####.cbf", 2))], tmp_path / "a.expt")
    found = read_expt(tmp_path / "a.expt")[0]
    assert (found.goniometer, found.scan, found.image) == (chain, scan, ("x_####.cbf", 2))


def single(**more: Any) -> dict[str, Any]:
    content = expt_content([Experiment(Beam(1.0), detector(), Goniometer(), Scan((0.0, 1.0), (1, 4)))])
    for key, values in more.items():
        content[key][0].update(values)
    return content


def test_fixed_and_setting_rotations_become_axes() -> None:
    fixed, setting = rotation_matrix((0.3, -0.2, 0.9)), rotation_matrix((0.0, 3.0, 0.4))
    content = single(goniometer={"fixed_rotation": fixed.reshape(-1).tolist(), "setting_rotation": setting.reshape(-1).tolist()})
    goniometer = parse_expt(content)[0].goniometer
    assert goniometer is not None
    expected = setting @ rotation_matrix((np.radians(25.0), 0, 0)) @ fixed
    assert np.allclose(goniometer_rotation(goniometer, 25.0), expected, atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.1, 2.0, np.pi - 1e-9, np.pi])
def test_rotation_vectors(angle: float) -> None:
    axis = np.array([0.36, 0.48, -0.8])
    matrix = rotation_matrix(axis * angle)
    assert np.allclose(rotation_matrix(rotation_vector(matrix)), matrix, atol=1e-12)


def test_newer_scans_with_properties() -> None:
    content = single()
    content["scan"] = [{"image_range": [1, 3], "properties": {"oscillation": [10.0, 10.5, 11.0], "exposure_time": [0.1, 0.1, 0.1]}}]
    assert parse_expt(content)[0].scan == Scan((10.0, 0.5), (1, 3), 0.1)


def test_a_scan_of_no_width_is_a_still() -> None:
    assert parse_expt(single(scan={"oscillation": [0.0, 0.0]}))[0].scan is None


def test_parallax_in_the_older_place() -> None:
    content = single()
    content["detector"][0]["panels"][0].update(
        {"mu": 0.0, "thickness": 0.0, "px_mm_strategy": {"type": "ParallaxCorrectedPxMmStrategy", "mu": 8.5, "t0": 0.5}}
    )
    content["detector"][0]["panels"][1]["px_mm_strategy"] = {"type": "SimplePxMmStrategy"}
    panels = parse_expt(content)[0].detector.panels
    assert (panels[0].mu, panels[0].thickness) == (8.5, 0.5)
    assert panels[1].mu == 0.0


def test_skew_axes_can_be_squared() -> None:
    panel = Panel("p", (1, 0, 0), (0.001, float(np.sqrt(1 - 1e-6)), 0), (0, 0, -100), (0.1, 0.1), (100, 100))
    skew = Experiment(Beam(1.0), Detector((panel,)))
    exact = expt_content([skew])["detector"][0]["panels"][0]
    square = expt_content([skew], orthogonal=True)["detector"][0]["panels"][0]
    assert np.dot(exact["fast_axis"], exact["slow_axis"]) == pytest.approx(0.001)
    assert np.dot(square["fast_axis"], square["slow_axis"]) == pytest.approx(0.0, abs=1e-15)
    assert np.dot(square["fast_axis"], (1, 0, 0)) == pytest.approx(np.cos(0.0005), abs=1e-9)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"__id__": "ExperimentList", "experiment": []}', '{"a": 1'])
def test_no_experiment_lists(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.expt").write_text(text)
    with pytest.raises(DataError):
        read_expt(tmp_path / "a.expt")


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "a.expt.xz").write_bytes(b"\xfd7zXZ\x00 nothing")
    with pytest.raises(DataError, match="damaged"):
        read_expt(tmp_path / "a.expt.xz")
    with pytest.raises(DataError, match="no such file"):
        read_expt(tmp_path / "b.expt")
    content = single()
    del content["detector"][0]["panels"][0]["pixel_size"]
    with pytest.raises(DataError, match="pixel_size"):
        parse_expt(content, "x")


def test_an_unknown_wavelength_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wavelength"):
        write_expt([Experiment(Beam(float("nan")), detector())], tmp_path / "a.expt")

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.io.sources.cbf_files import MINI, mini_cbf, write
from xfelproc.errors import DataError
from xfelproc.geometry.detector import pixel_to_q
from xfelproc.io.sources import SourceSettings, open_source
from xfelproc.io.sources.minicbf import parse_comments, read_comments
from xfelproc.io.sources.overrides import beam_center, detector_distance
from xfelproc.models.experiment import Beam


def test_comment_lines_to_models() -> None:
    header = read_comments(MINI, (487, 619), 17)
    experiment = header.experiment
    panel = experiment.detector.panels[0]
    assert detector_distance(experiment.detector, experiment.beam) == pytest.approx(351.0)
    assert beam_center(experiment.detector, experiment.beam) == pytest.approx((3.5, 2.25))
    assert panel.pixel_size == (0.172, 0.172)
    assert (panel.material, panel.thickness) == ("Si", pytest.approx(0.45))
    assert panel.mu == pytest.approx(3.833, rel=2e-3)
    assert panel.trusted_range == (0.0, 115897.0)
    assert experiment.beam == Beam(0.96859, polarization_fraction=0.99)
    assert experiment.scan is not None
    assert (experiment.scan.oscillation, experiment.scan.image_range) == ((90.0, 0.1), (17, 17))
    assert header.missing == ()
    assert "negative" in header.mask


def test_fast_is_to_the_right_and_slow_down_seen_from_the_sample() -> None:
    experiment = read_comments(MINI, (487, 619), 1).experiment
    q = pixel_to_q(experiment.detector, experiment.beam, 0, [103.5, 3.5], [2.25, 102.25])
    assert q[0, 0] > 0
    assert q[1, 1] < 0
    assert abs(q[0, 1]) < 1e-12


def test_no_increment_is_a_still() -> None:
    header = read_comments(MINI.replace("Angle_increment 0.1", "Angle_increment 0.0"), (487, 619), 1)
    assert header.experiment.scan is None
    assert header.experiment.goniometer is not None
    assert any("still" in note for note in header.notes)


def test_two_theta_turns_the_detector_about_x() -> None:
    experiment = read_comments(MINI.replace("2theta 0.0", "2theta 30.0"), (487, 619), 1).experiment
    panel = experiment.detector.panels[0]
    assert detector_distance(experiment.detector, experiment.beam) == pytest.approx(351.0)
    assert panel.slow_axis == pytest.approx((0, -np.cos(np.radians(30)), -0.5))


@pytest.mark.parametrize(
    ("old", "new", "axis"),
    [
        ("X.CW", "X, CCW", (-1, 0, 0)),
        ("X.CW", "X.CW +SLOW", (0, -1, 0)),
        ("X.CW", "X.CW -FAST", (-1, 0, 0)),
        ("X.CW", "OMEGA", (1, 0, 0)),
        ("3-0100", "60-0119", (0, 1, 0)),
    ],
)
def test_spindles(old: str, new: str, axis: tuple[float, float, float]) -> None:
    header = read_comments(MINI.replace(old, new), (487, 619), 1)
    assert header.experiment.goniometer is not None
    assert header.experiment.goniometer.axes == (axis,)
    assert any("spindle" in note for note in header.notes)


def test_sensors_and_forms_of_lines() -> None:
    comments = parse_comments("# CdTe sensor, thickness 0.001000 m\n# Count_cutoff = 77 counts\n# Beam_xy: (1, 2.5e1) pixels\n")
    assert (comments.material, comments.thickness) == ("CdTe", 1.0)
    assert comments.number("Count_cutoff") == 77
    assert comments.numbers("Beam_xy") == (1.0, 25.0)
    assert comments.number("Wavelength") is None


def test_missing_values_are_said_and_can_be_given(tmp_path: Path) -> None:
    bare = "\n".join(line for line in MINI.splitlines() if "Wavelength" not in line and "distance" not in line)
    path = write(tmp_path / "a.cbf", mini_cbf(np.ones((4, 4), dtype=np.int32), bare + "\n"))
    source = open_source(path)
    assert any("wavelength not stated" in note for note in source.summary().notes)
    with pytest.raises(DataError, match="distance and wavelength not stated"):
        source.read(0)
    given = open_source(path, SourceSettings(distance=120.0, wavelength=1.0, sensor_thickness=0.45))
    experiment = given.experiment(0)
    assert detector_distance(experiment.detector, experiment.beam) == pytest.approx(120.0)
    assert experiment.detector.panels[0].mu == pytest.approx(4.2, rel=0.02)
    assert not any("not stated: set" in note for note in given.summary().notes)

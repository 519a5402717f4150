from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from xfelproc.errors import ConfigError
from xfelproc.geometry.cells import rotation_matrix
from xfelproc.geometry.detector import ray_to_pixel
from xfelproc.io.sources.attenuation import attenuation
from xfelproc.io.sources.overrides import (
    apply_settings,
    beam_center,
    describe_overrides,
    detector_distance,
    take_reference,
    unused_of,
    with_beam_center,
    with_distance,
)
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.experiment import Beam, Detector, DetectorGroup, Experiment, Panel, as_vector


def _panel(name: str = "p", **values: object) -> Panel:
    base = Panel(name, (1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (-50.0, 60.0, -200.0), (0.1, 0.1), (1000, 1200))
    return replace(base, **values)  # type: ignore[arg-type]


def test_flat_detector_has_its_distance_and_beam_centre() -> None:
    detector, beam = Detector((_panel(),)), Beam(1.0)
    assert detector_distance(detector, beam) == pytest.approx(200.0)
    assert beam_center(detector, beam) == pytest.approx((500.0, 600.0))


@given(
    tilt=st.tuples(*[st.floats(-0.6, 0.6)] * 3),
    distance=st.floats(20, 900),
    center=st.tuples(st.floats(-500, 2000), st.floats(-500, 2000)),
)
def test_distance_and_centre_are_reached_on_any_detector(
    tilt: tuple[float, float, float], distance: float, center: tuple[float, float]
) -> None:
    turn = rotation_matrix(tilt)
    panels = tuple(
        replace(
            p, fast_axis=as_vector(turn @ p.fast_axis), slow_axis=as_vector(turn @ p.slow_axis), origin=as_vector(turn @ p.origin)
        )
        for p in (_panel("a"), _panel("b", origin=(51.0, 60.0, -200.0)))
    )
    beam = Beam(1.0)
    detector = Detector(panels, DetectorGroup("root", (0, 1)))
    moved = with_distance(detector, beam, distance)
    assert detector_distance(moved, beam) == pytest.approx(distance)
    centred = with_beam_center(moved, beam, center)
    assert beam_center(centred, beam) == pytest.approx(center, abs=1e-6)
    assert detector_distance(centred, beam) == pytest.approx(distance)
    assert np.allclose(np.diff([p.origin for p in centred.panels], axis=0), np.diff([p.origin for p in panels], axis=0))
    if 1 < center[0] < 999 and 1 < center[1] < 1199:
        assert ray_to_pixel(centred, -np.asarray(beam.direction))[1][0] == pytest.approx(center, abs=1e-5)


def test_beam_that_misses_the_plane_is_a_wrong_job() -> None:
    side_on = Detector((_panel(fast_axis=(0.0, 0.0, -1.0)),))
    with pytest.raises(ConfigError, match="does not meet the plane"):
        beam_center(side_on, Beam(1.0))


def test_settings_replace_single_values() -> None:
    experiment = Experiment(Beam(1.0), Detector((_panel(),)))
    settings = SourceSettings(
        distance=150.0,
        beam_center=(400.0, 500.0),
        wavelength=1.3,
        bandwidth=0.01,
        trusted_range=(-5.0, 900.0),
        polarization_fraction=0.5,
        polarization_normal=(2.0, 0.0, 0.0),
        adu_per_photon=7.5,
    )
    done = apply_settings(experiment, settings)
    panel = done.detector.panels[0]
    assert (panel.trusted_range, panel.gain) == ((-5.0, 900.0), 7.5)
    assert panel.origin == pytest.approx((-40.0, 50.0, -150.0))
    assert done.beam == Beam(1.3, polarization_normal=(1.0, 0.0, 0.0), polarization_fraction=0.5, bandwidth=0.01)
    assert len(describe_overrides(settings)) == 8
    assert apply_settings(experiment, SourceSettings()) == experiment


def _own() -> Experiment:
    panel = _panel(trusted_range=(0.0, 99.0), thickness=0.3, material="Si", mu=2.0, gain=3.0)
    return Experiment(Beam(1.1, polarization_fraction=0.7), Detector((panel,)))


def test_reference_geometry_keeps_what_only_the_header_knows() -> None:
    reference = Experiment(Beam(float("nan"), (0.0, 0.1, 0.9)), Detector((_panel("other", origin=(0.0, 0.0, -100.0)),)))
    merged = take_reference(_own(), reference)
    panel = merged.detector.panels[0]
    assert (merged.beam.wavelength, merged.beam.polarization_fraction, merged.beam.direction) == (1.1, 0.7, (0.0, 0.1, 0.9))
    assert (panel.name, panel.origin) == ("other", (0.0, 0.0, -100.0))
    assert (panel.trusted_range, panel.thickness, panel.gain) == ((0.0, 99.0), 0.3, 3.0)


def test_reference_of_another_wavelength_or_trusted_range() -> None:
    given = _panel("other", trusted_range=(-1.0, 50.0), thickness=0.5, material="Si", mu=9.0)
    merged = take_reference(_own(), Experiment(Beam(1.5), Detector((given,))))
    panel = merged.detector.panels[0]
    assert merged.beam.wavelength == 1.1
    assert panel.trusted_range == (0.0, 99.0)
    assert (panel.thickness, panel.mu) == (0.5, attenuation("Si", 1.1))
    assert "1.5" in unused_of(Experiment(Beam(1.5), merged.detector), merged)[0]
    assert unused_of(Experiment(Beam(1.1), merged.detector), merged) == ()


def test_reference_gives_all_to_frames_that_state_nothing() -> None:
    bare = Experiment(Beam(0.0), Detector((_panel(pixel_size=(1.0, 1.0), origin=(-500.0, 600.0, 0.0)),)))
    merged = take_reference(bare, Experiment(Beam(1.5, bandwidth=0.01), Detector((_panel("other", trusted_range=(0.0, 7.0)),))))
    assert merged.beam == Beam(1.5, bandwidth=0.01)
    assert merged.detector.panels[0].trusted_range == (0.0, 7.0)


def test_distance_that_a_geometry_leaves_to_the_frames() -> None:
    reference = Experiment(Beam(float("nan")), Detector((_panel("other", origin=(-50.0, 60.0, 0.6)),)))
    assert take_reference(_own(), reference).detector.panels[0].origin == pytest.approx((-50.0, 60.0, -199.4))


def test_reference_of_other_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(9, 9\).*\(1000, 1200\)"):
        take_reference(_own(), Experiment(Beam(1.0), Detector((_panel("other", image_size=(9, 9)),))))


@pytest.mark.parametrize(
    "settings", [{"trusted_range": (5.0, 5.0)}, {"polarization_normal": (0, 0, 0)}, {"polarization_normal": (0, 0, 1)}]
)
def test_values_without_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        apply_settings(Experiment(Beam(1.0), Detector((_panel(),))), SourceSettings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("distance", [float("nan"), float("inf"), -1.0, 0.0])
def test_settings_refuse_impossible_distances(distance: float) -> None:
    with pytest.raises(ValidationError):
        SourceSettings(distance=distance)

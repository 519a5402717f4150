"""Crossings of the Ewald sphere against brute force and against turning the crystal itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfelproc.geometry.cells import b_matrix, rotation_matrix
from xfelproc.geometry.rotation import Sweep, angle_to_frame, fixed_rotation, frame_to_angle, scan_axis, setting_rotation
from xfelproc.models.experiment import Beam, Crystal, Detector, Goniometer, Panel, Scan, as_matrix, as_vector

PANEL = Panel("p", (1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (-50.0, 50.0, -80.0), (0.2, 0.2), (500, 500))
DIRECTION = np.array([0.01, -0.02, 1.0]) / np.linalg.norm([0.01, -0.02, 1.0])
BEAM = Beam(1.1, direction=as_vector(DIRECTION))
CELL = (31.0, 42.0, 53.0, 80.0, 95.0, 101.0)
KAPPA = Goniometer(
    ((1.0, 0.0, 0.0), (0.6, -0.8, 0.0), (-0.98, 0.05, 0.19)), (35.0, -50.0, 12.0), ("phi", "kappa", "omega"), scan_axis=0
)


def sweep_of(goniometer: Goniometer, oscillation: tuple[float, float], n: int = 40) -> Sweep:
    turn = rotation_matrix([0.3, -1.1, 0.7])
    crystal = Crystal(as_matrix(turn @ b_matrix(CELL)))
    return Sweep.of(crystal, BEAM, Detector((PANEL,)), goniometer, Scan(oscillation, (1, n)))


def excitation(sweep: Sweep, hkl: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """|s0 + q| - |s0| with the whole chain of rotations made anew at each angle (degrees)."""
    found = []
    for h, angle in zip(hkl, phi, strict=True):
        goniometer = sweep.goniometer
        total = np.eye(3)
        for i, axis in enumerate(goniometer.axes):
            turn = angle if i == goniometer.scan_axis else goniometer.angles[i]
            unit = np.asarray(axis) / np.linalg.norm(axis)
            total = rotation_matrix(unit * np.radians(turn)) @ total
        ray = sweep.beam.s0 + total @ sweep.matrices[0] @ h
        found.append(np.linalg.norm(ray) - 1.0 / sweep.beam.wavelength)
    return np.array(found)


@pytest.mark.parametrize("scan_axis_number", [0, 1, 2])
@pytest.mark.parametrize("oscillation", [(-20.0, 0.5), (100.0, -0.7)])
def test_predicted_points_are_on_the_sphere(scan_axis_number: int, oscillation: tuple[float, float]) -> None:
    goniometer = Goniometer(KAPPA.axes, KAPPA.angles, KAPPA.names, scan_axis_number)
    sweep = sweep_of(goniometer, oscillation)
    found = sweep.predict(3.0)
    assert len(found) > 300
    assert np.abs(excitation(sweep, found["hkl"], found["phi"])).max() < 1e-9
    assert (found["z"] >= 0).all()
    assert (found["z"] <= 40).all()
    small = 1e-4
    after = excitation(sweep, found["hkl"], found["phi"] + small)
    assert ((after < 0) == found["entering"]).all()


def test_none_is_missed() -> None:
    """Every index whose excitation error changes its sign between two frames, and whose ray meets the panel, is predicted."""
    sweep = sweep_of(KAPPA, (10.0, 0.5), 24)
    found = sweep.predict(4.0)
    index = np.indices((41, 41, 41)).reshape(3, -1).T - 20
    length = np.linalg.norm(index @ sweep.matrices[0].T, axis=1)
    index = index[(length < 1 / 4.0) & (length > 0)]
    angles = frame_to_angle(sweep.scan, np.arange(25))
    errors = np.array([excitation(sweep, index, np.full(len(index), angle)) for angle in angles])
    crossed = np.argwhere((errors[:-1] < 0) != (errors[1:] < 0))
    on_panel = [
        (*index[row], frame)
        for frame, row in crossed
        if not np.isnan(position := sweep.predict_indices(index[row], frame + 0.5, 0)[0]).any()
        and 0 <= position[0] < 500
        and 0 <= position[1] < 500
    ]
    assert sorted(on_panel) == sorted((*h, int(z)) for h, z in zip(found["hkl"], found["z"], strict=True))


def test_lorentz_factor_is_the_time_in_the_sphere() -> None:
    """The speed at which a point crosses the sphere, by differences, is |s0| / L (per radian, in units of 1/λ)."""
    sweep = sweep_of(KAPPA, (0.0, 1.0))
    found = sweep.predict(3.0)
    step = 1e-3
    speed = (
        excitation(sweep, found["hkl"], found["phi"] + step) - excitation(sweep, found["hkl"], found["phi"] - step)
    ) / np.radians(2 * step)
    np.testing.assert_allclose(1.0 / (sweep.beam.wavelength * np.abs(speed)), found["lorentz"], rtol=1e-3)


def test_a_drifting_crystal() -> None:
    still = sweep_of(KAPPA, (0.0, 0.5))
    turns = [rotation_matrix(np.radians([0.3 * t, -0.2 * t, 0.5 * t * t])) for t in np.linspace(0, 1, 11)]
    moving = Sweep(still.beam, still.detector, still.goniometer, still.scan, np.array(turns) @ still.matrices[0], "P 1")
    found = moving.predict(3.0)
    for row in range(0, len(found), 17):
        place = float(found["z"][row]) / 4.0
        k = min(int(place), 9)
        a = (1 - place + k) * moving.matrices[k] + (place - k) * moving.matrices[k + 1]
        alone = Sweep(still.beam, still.detector, still.goniometer, still.scan, a[None], "P 1")
        assert abs(excitation(alone, found["hkl"][row][None], found["phi"][row][None])[0]) < 1e-8
    again = moving.predict_indices(found["hkl"], found["z"] + 0.3, found["panel"])
    np.testing.assert_allclose(again[:, 2], found["z"], atol=1e-6)
    np.testing.assert_allclose(again[:, :2], np.column_stack([found["fast"], found["slow"]]), atol=1e-6)
    halves = [moving.predict(3.0, frames=ends) for ends in ((0.0, 17.0), (17.0, 40.0))]
    assert sum(map(len, halves)) == len(found)


def test_more_than_a_turn() -> None:
    sweep = sweep_of(Goniometer(), (0.0, 5.0), 144)
    found = sweep.predict(5.0)
    first, second = found["z"] < 72, found["z"] >= 72
    assert sorted(map(tuple, found["hkl"][first])) == sorted(map(tuple, found["hkl"][second]))


@given(st.floats(-180, 180), st.floats(0.01, 5.0), st.floats(-1000, 1000))
def test_frames_and_angles(start: float, width: float, z: float) -> None:
    scan = Scan((start, width), (1, 10))
    assert angle_to_frame(scan, frame_to_angle(scan, z)) == pytest.approx(z, abs=1e-6)


def test_settings_of_a_goniometer() -> None:
    np.testing.assert_allclose(fixed_rotation(KAPPA), np.eye(3))
    middle = Goniometer(KAPPA.axes, KAPPA.angles, KAPPA.names, 1)
    np.testing.assert_allclose(fixed_rotation(middle), rotation_matrix(np.radians([35.0, 0.0, 0.0])))
    unit = np.array(KAPPA.axes[2]) / np.linalg.norm(KAPPA.axes[2])
    np.testing.assert_allclose(setting_rotation(middle), rotation_matrix(unit * np.radians(12.0)))
    np.testing.assert_allclose(scan_axis(middle), setting_rotation(middle) @ [0.6, -0.8, 0.0])

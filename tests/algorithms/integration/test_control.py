"""Places between the reflections."""

from __future__ import annotations

import numpy as np
import pytest

from tests.algorithms.integration.test_summation import BEAM, frame_of, lattice
from xfelproc.algorithms.integration import Integrate
from xfelproc.algorithms.integration.control import between, clear_of, is_control
from xfelproc.models.frames import FrameRef
from xfelproc.models.tables import ReflectionTable, SpotTable


def test_nothing_is_found_between_the_reflections() -> None:
    lattices = [lattice(1), lattice(2)]
    frame, _ = frame_of(lattices)
    result = Integrate(control=1.0).integrate(frame, lattices, SpotTable(0))
    table, control = result.reflections, result.control
    assert control is not None
    assert len(control) > 100
    assert set(control.lattice.tolist()) == {0, 1}
    background_noise = float(np.median(table["sigma"][table["intensity"] < 10]))
    assert abs(control.intensity.mean()) < 4.0 * background_noise / np.sqrt(len(control))
    assert control.intensity.std() == pytest.approx(background_noise, rel=0.2)
    known = {(n, *h) for n, h in zip(table["lattice"].tolist(), table["hkl"].tolist(), strict=True)}
    assert {(n, *h) for n, h in zip(control.lattice.tolist(), control.hkl.tolist(), strict=True)} <= known
    again = Integrate(control=0.0).integrate(frame, lattices, SpotTable(0))
    assert again.control is None
    assert np.array_equal(again.reflections["intensity"], table["intensity"])


def test_places_are_half_way_and_clear() -> None:
    one = lattice(3)
    table = Integrate().predict(one.crystal, one.detector, BEAM, 3.0)
    places = between(one, BEAM, table)
    rows = {tuple(h): i for i, h in enumerate(table["hkl"].tolist())}
    beside = table.select([rows[tuple(h)] for h in places["hkl"].tolist()])
    apart = np.hypot(places["fast"] - beside["fast"], places["slow"] - beside["slow"])
    assert 5.0 < np.median(apart) < 40.0
    clear = places.select(clear_of(places, table, 7.0))
    assert 0 < len(clear) < len(places)
    for panel, fast, slow in zip(clear["panel"], clear["fast"], clear["slow"], strict=True):
        near = table["panel"] == panel
        assert np.hypot(table["fast"][near] - fast, table["slow"][near] - slow).min() > 7.0
    assert len(between(one, BEAM, ReflectionTable(0))) == 0


def test_a_tenth_of_the_frames() -> None:
    chosen = [is_control(FrameRef(source, index), 0.1) for source in range(20) for index in range(500)]
    assert 0.08 < np.mean(chosen) < 0.12
    assert not any(is_control(FrameRef(0, index), 0.0) for index in range(100))
    assert all(is_control(FrameRef(3, index), 1.0) for index in range(100))

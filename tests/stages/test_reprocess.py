"""A frame again with another geometry: what is kept, what is integrated again, and in which setting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.run.metrology_runs import BEAM, CELL, TARGET, displaced, recorded, shot
from tests.stages.fakes import FakeCalibrate
from xfelproc.algorithms.indexing import Index
from xfelproc.algorithms.integration import Integrate
from xfelproc.algorithms.refinement import Refine
from xfelproc.geometry.cells import lattice_rotations, misorientation
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.experiment import Detector
from xfelproc.models.frames import Frame, FrameRef, IndexingResult
from xfelproc.models.tables import LatticeTable, SpotTable
from xfelproc.stages.reprocess import KnownFrame, KnownUnit, in_old_setting, reprocess, unchanged
from xfelproc.stages.stills import Stills, UnitBuilder, process

ROTATIONS = lattice_rotations(CELL)


class Listed(FakeCalibrate):
    """Finds one list of spots."""

    def find(self, frame: Frame) -> SpotTable:
        return SPOTS

    def judge(self, spots: SpotTable) -> tuple[bool, str]:
        return True, ""


SPOTS = shot(recorded(), np.random.default_rng(3), 0.02)
INDEX = Index(cell=CELL, space_group="P 43 21 2")
STILLS = Stills(FakeCalibrate(), Listed(), INDEX, Refine(), Integrate(d_min=3.0), TARGET)


def frame(detector: Detector) -> Frame:
    shape = detector.stack_shape
    return Frame(FrameRef(0, 7), np.zeros(shape, np.uint16), np.zeros(shape, np.uint8), detector.trusted_ranges, detector, BEAM)


@pytest.fixture(scope="module")
def known() -> KnownFrame:
    """What a shard says of a frame with one lattice, the second of its unit."""
    result, _ = process(STILLS, frame(recorded()), 1)
    builder = UnitBuilder()
    for index in range(2):
        builder.add(FrameRef(0, index), result, 1.0)
    return KnownUnit(builder.build(), None).frame(1)


class Reads:
    """Gives a frame, and remembers how often."""

    def __init__(self, detector: Detector) -> None:
        self.detector, self.n = detector, 0

    def __call__(self) -> Frame:
        self.n += 1
        return frame(self.detector)


def again(known: KnownFrame, detector: Detector, tolerance: float | None = 0.1, stills: Stills = STILLS) -> tuple[Any, int]:
    reads = Reads(detector)
    return reprocess(stills, known, detector, BEAM, tolerance, reads), reads.n


def test_a_shard_gives_its_frames_back(known: KnownFrame) -> None:
    assert known.status == FrameStatus.INTEGRATED
    assert len(known.spots) == len(SPOTS)
    assert set(known.indexed["lattice"]) == set(known.reflections["lattice"]) == {0}
    assert known.indexed["spot"].max() < len(SPOTS)


def test_with_the_same_geometry_all_is_the_same(known: KnownFrame) -> None:
    result, n = again(known, recorded())
    assert n == 0
    assert np.allclose(result.lattices[0].crystal.a_matrix, known.lattices["A"][0], rtol=1e-9)
    assert np.array_equal(result.integration.reflections["intensity"], known.reflections["intensity"])
    assert result.status == FrameStatus.INTEGRATED


def test_a_small_move_keeps_the_reflections(known: KnownFrame) -> None:
    """The panels move by 0.03 px on the average: lattices are refined, but no pixel is read."""
    result, n = again(known, displaced(recorded(), 0.03))
    assert n == 0
    assert np.array_equal(result.integration.reflections["fast"], known.reflections["fast"])
    assert not np.array_equal(result.lattices[0].crystal.a_matrix, known.lattices["A"][0])
    assert result.integration.d_min == tuple(known.lattices["d_min"])


def test_a_large_move_integrates_again(known: KnownFrame) -> None:
    detector = displaced(recorded(), 0.5)
    result, n = again(known, detector)
    assert n == 1
    assert result.status == FrameStatus.INTEGRATED
    assert not np.array_equal(result.integration.reflections["fast"], known.reflections["fast"])
    assert again(known, detector, tolerance=50.0)[1] == 0


def test_without_tolerance_nothing_is_integrated(known: KnownFrame) -> None:
    result, n = again(known, displaced(recorded(), 0.5), tolerance=None)
    assert (n, result.status, result.integration) == (0, FrameStatus.INDEXED, None)


def test_a_hit_that_indexes_now_is_integrated(known: KnownFrame) -> None:
    hit = replace(
        known,
        status=FrameStatus.HIT,
        lattices=LatticeTable(0),
        indexed=known.indexed.select(slice(0, 0)),
        reflections=known.reflections.select(slice(0, 0)),
    )
    result, n = again(hit, recorded())
    assert (n, result.status) == (1, FrameStatus.INTEGRATED)


class Nothing(Index):
    def index(self, *arguments: Any) -> IndexingResult:
        return IndexingResult((), "nothing found")


def test_a_lattice_that_is_not_found_again_is_refined_from_what_it_was(known: KnownFrame) -> None:
    result, n = again(known, recorded(), stills=replace(STILLS, index=Nothing()))
    assert (n, result.status) == (0, FrameStatus.INTEGRATED)
    assert np.allclose(result.lattices[0].crystal.a_matrix, known.lattices["A"][0], rtol=1e-6)


def test_a_frame_that_cannot_be_indexed_says_why(known: KnownFrame) -> None:
    hit = replace(known, status=FrameStatus.HIT, lattices=LatticeTable(0))
    result, n = again(hit, recorded(), stills=replace(STILLS, index=Nothing()))
    assert (n, result.status, result.reason) == (0, FrameStatus.HIT, "nothing found")


def test_blank_frames_stay(known: KnownFrame) -> None:
    blank = replace(known, status=FrameStatus.BLANK, reason="no spots")
    result, n = again(blank, displaced(recorded()))
    assert (n, result.status, result.reason) == (0, FrameStatus.BLANK, "no spots")


def test_unchanged_is_what_the_shard_said(known: KnownFrame) -> None:
    builder = UnitBuilder()
    builder.add(FrameRef(0, 7), unchanged(known, recorded()), known.times[0])
    found = KnownUnit(builder.build(), None).frame(0)
    for name in ("spots", "lattices", "indexed", "reflections"):
        first, second = getattr(known, name), getattr(found, name)
        for column in first.SCHEMA:
            if column.name != "frame":
                assert np.array_equal(first[column.name], second[column.name]), column.name


@pytest.fixture(scope="module")
def settings(known: KnownFrame) -> Iterator[Any]:
    """The lattice in each of the settings that indexing may choose."""
    lattice = unchanged(known, recorded()).lattices[0]
    found = []
    for rotation in ROTATIONS:
        a = lattice.crystal.a_matrix @ np.linalg.inv(rotation)
        hkl = (lattice.indexed["hkl"] @ rotation.T).astype(np.int32)
        crystal = replace(lattice.crystal, A=tuple(map(tuple, a)))
        found.append(replace(lattice, crystal=crystal, indexed=lattice.indexed.replace(hkl=hkl)))
    return iter(found)


def test_the_setting_is_that_of_before(known: KnownFrame, settings: Any) -> None:
    n = 0
    for lattice in settings:
        (found,), places = in_old_setting([lattice], known.lattices)
        assert places.tolist() == [0]
        assert np.allclose(found.crystal.a_matrix, known.lattices["A"][0], atol=1e-9)
        assert np.array_equal(found.indexed["hkl"], known.indexed["hkl"])
        n += 1
    assert n == len(ROTATIONS) == 8


def test_another_lattice_is_not_taken_for_it(known: KnownFrame) -> None:
    lattice = unchanged(known, recorded()).lattices[0]
    turn = np.array([[np.cos(0.1), -np.sin(0.1), 0], [np.sin(0.1), np.cos(0.1), 0], [0, 0, 1]])
    other = replace(lattice, crystal=replace(lattice.crystal, A=tuple(map(tuple, turn @ lattice.crystal.a_matrix))))
    assert misorientation(other.crystal.a_matrix, lattice.crystal.a_matrix, ROTATIONS) > 1
    found, places = in_old_setting([other, lattice], known.lattices)
    assert places.tolist() == [0]
    assert found[0] is lattice
    _, places = in_old_setting([other], known.lattices)
    assert places.tolist() == [-1]

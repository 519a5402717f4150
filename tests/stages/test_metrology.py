"""What workers do in metrology: the spots of shards in one frame, whatever place each frame's detector had."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.run.metrology_runs import BEAM, recorded
from xfelproc.errors import DataError
from xfelproc.geometry.detector import pixel_to_q
from xfelproc.io.atomic import make_folder
from xfelproc.io.manifest import Manifest, Sources, SourceTable, write_manifest
from xfelproc.io.names import FileNames
from xfelproc.io.shards import ShardHeader, shard_path, write_shard
from xfelproc.io.sources.base import FrameSource, SourceSummary
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.experiment import Detector, Experiment, as_vector
from xfelproc.models.frames import Frame, UnitResult
from xfelproc.models.tables import FrameTable, IndexedTable, LatticeTable, ReflectionTable, SpotTable
from xfelproc.stages.fold import Shards
from xfelproc.stages.metrology import PlaceSurvey, SpotExtract, UnitOpening, crystals_of, frame_key, packed_state, unpacked_state

SHIFTS = np.array([[0.1, -0.05, 0.0], [0.0, 0.02, 0.3], [-0.02, 0.0, -0.1], [0.0, 0.0, 0.05]])
TILTS = np.array([[0.05, 0.0], [0.0, -0.1], [0.02, 0.03], [0.0, 0.0]])
"""Of the lattices of four frames."""


class Models(FrameSource):
    """Four frames: the second is 5 mm further away, the last is of another detector."""

    def __init__(self, path: str, settings: SourceSettings) -> None:
        self.path, self.n_frames = path, 4
        own = recorded()
        self.detectors = [own, own.shifted((0.0, 0.0, -5.0)), own, Detector(own.panels[:2])]

    def experiment(self, index: int) -> Experiment:
        return Experiment(BEAM, self.detectors[index])

    def summary(self) -> SourceSummary:
        raise NotImplementedError

    def static_mask(self) -> NDArray[np.uint8]:
        raise NotImplementedError

    def read(self, index: int, source: int = 0) -> Frame:
        raise AssertionError("no pixels are needed")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one unit: four frames with a lattice of ten spots each, and a satellite."""
    folder, rng = tmp_path_factory.mktemp("run"), np.random.default_rng(4)
    data = folder / "frames.h5"
    data.touch()
    state = data.stat()
    table = SourceTable(1, n_frames=[4], chunk_frames=[1], size=[state.st_size], mtime=[state.st_mtime_ns])
    sources = Sources(FileNames.of([str(folder)], [0], ["frames.h5"]), table)
    write_manifest(folder / "manifest.h5", Manifest(sources, np.zeros(4, np.int32), np.arange(4), np.array([0, 4])))
    n = 10
    spots = SpotTable(
        4 * n,
        frame=np.repeat(np.arange(4), n),
        panel=np.tile(np.arange(n) % 4, 4),
        fast=rng.uniform(20, 180, 4 * n),
        slow=rng.uniform(20, 180, 4 * n),
        var_fast=np.full(4 * n, 0.01),
        var_slow=np.full(4 * n, 0.02),
    )
    lattices = LatticeTable(
        5,
        frame=[0, 0, 1, 2, 3],
        A=np.broadcast_to(np.eye(3) / 50, (5, 3, 3)),
        space_group=["P 43 21 2"] * 5,
        n_used=[n - 1] * 5,
        shift=SHIFTS[[0, 0, 1, 2, 3]],
        tilt=TILTS[[0, 0, 1, 2, 3]],
        satellite=[False, True, False, False, False],
    )
    owner = np.repeat(np.arange(5), n)
    spot = np.concatenate([np.arange(n), np.arange(n), *(k * n + np.arange(n) for k in (1, 2, 3))])
    indexed = IndexedTable(5 * n, lattice=owner, spot=spot, hkl=rng.integers(-9, 9, (5 * n, 3)), used=np.arange(5 * n) % n > 0)
    frames = FrameTable(4, index=np.arange(4), status=[FrameStatus.INTEGRATED] * 4, wavelength=[1.3, 1.31, 1.32, 1.33])
    path = shard_path(folder, "process", 0)
    make_folder(path.parent)
    result = UnitResult(frames, spots, lattices, indexed, ReflectionTable(0))
    write_shard(path, ShardHeader(0, "lineage", "", {}, 0.1, path), result)
    return folder


def blocks(run: Path) -> list[Any]:
    return [Shards("process", ((run, 1),)).open(0)]


def extracted(run: Path, **options: Any) -> Any:
    opening = UnitOpening(run / "manifest.h5", Models, SourceSettings())
    settings = {"before": recorded(), "after": recorded(), "target": recorded(), "individual": False} | options
    return SpotExtract(opening, **settings).accumulate(blocks(run))


def spots_of(run: Path, lattice: int) -> tuple[SpotTable, IndexedTable]:
    result = blocks(run)[0].result()
    indexed = result.indexed.select((result.indexed["lattice"] == lattice) & result.indexed["used"])
    return result.spots.select(indexed["spot"]), indexed


def test_survey_has_lattices_and_their_own_places(run: Path) -> None:
    survey = PlaceSurvey(run / "manifest.h5")
    found = survey.accumulate(blocks(run))
    assert found["counts"].tolist() == [4, 36]
    order = np.argsort([frame_key("frames.h5", index) for index in range(4)])
    assert np.array_equal(found["place"], np.column_stack([SHIFTS, TILTS])[order])
    both = survey.combine(found, found)
    assert both["counts"].tolist() == [8, 72]
    assert np.median(both["place"], axis=0) == pytest.approx(np.median(found["place"], axis=0))


def test_spots_that_are_used_of_lattices_that_count(run: Path) -> None:
    node = extracted(run)
    crystals = list(crystals_of(node))
    assert node["frames"].tolist() == [4, 1]
    assert [crystal.key for crystal in crystals] == [frame_key("frames.h5", index) for index in range(3)]
    assert [crystal.wavelength for crystal in crystals] == [1.3, 1.31, 1.32]
    for crystal, lattice in zip(crystals, (0, 2, 3), strict=True):
        spots, indexed = spots_of(run, lattice)
        assert len(crystal.fast) == 9
        assert np.array_equal(crystal.hkl, indexed["hkl"])
        assert np.array_equal(crystal.panel, spots["panel"])
        assert np.array_equal(crystal.var_slow, spots["var_slow"])
        assert crystal.space_group == "P 43 21 2"
        assert np.allclose(crystal.A, np.eye(3) / 50)
    assert np.allclose(crystals[0].fast, spots_of(run, 0)[0]["fast"], atol=1e-9)


def rays(detector: Detector, spots: Any) -> NDArray[np.float64]:
    panel, fast, slow = (spots["panel"], spots["fast"], spots["slow"]) if isinstance(spots, SpotTable) else spots
    return pixel_to_q(detector, BEAM, panel, fast, slow)


def test_a_frame_further_away_is_seen_at_the_runs_distance(run: Path) -> None:
    crystal = list(crystals_of(extracted(run)))[1]
    spots, _ = spots_of(run, 2)
    own = recorded().shifted((0.0, 0.0, -5.0))
    assert np.allclose(rays(recorded(), (crystal.panel, crystal.fast, crystal.slow)), rays(own, spots), atol=1e-9)
    assert np.abs(crystal.fast - spots["fast"]).max() > 1


@pytest.mark.parametrize("individual", [True, False])
def test_the_place_of_each_frame_is_believed_where_it_was_refined(run: Path, individual: bool) -> None:
    """Otherwise all frames' detectors stand where their mean does, and pixels are pixels."""
    middle = np.median(np.column_stack([SHIFTS, TILTS]), axis=0)
    target = recorded().moved(as_vector(middle[:3]), (float(middle[3]), float(middle[4])))
    node = extracted(run, target=target, individual=individual)
    for crystal, lattice, shot in zip(crystals_of(node), (0, 2, 3), (0, 1, 2), strict=True):
        spots, _ = spots_of(run, lattice)
        own = recorded().moved(as_vector(SHIFTS[shot]), (float(TILTS[shot, 0]), float(TILTS[shot, 1]))) if individual else target
        if shot == 1:
            own = own.shifted((0.0, 0.0, -5.0))
        assert np.allclose(rays(target, (crystal.panel, crystal.fast, crystal.slow)), rays(own, spots), atol=1e-9)


def test_after_a_round_spots_are_seen_on_the_refined_detector(run: Path) -> None:
    after = recorded().shifted((0.3, 0.0, 1.0))
    crystals = list(crystals_of(extracted(run, after=after, target=after)))
    assert np.allclose(crystals[0].fast, spots_of(run, 0)[0]["fast"], atol=1e-9)
    own = after.shifted((0.0, 0.0, -5.0))
    assert np.allclose(
        rays(after, (crystals[1].panel, crystals[1].fast, crystals[1].slow)), rays(own, spots_of(run, 2)[0]), atol=1e-9
    )


def test_tasks_are_pickled_and_lineage_tells_geometries_apart(run: Path) -> None:
    opening = UnitOpening(run / "manifest.h5", Models, SourceSettings())
    first = SpotExtract(opening, recorded(), recorded(), recorded(), False)
    other = SpotExtract(opening, recorded(), recorded(), recorded().shifted((0.0, 0.0, 1e-6)), False)
    assert pickle.loads(pickle.dumps(first)).lineage == first.lineage
    assert first.lineage != other.lineage


def test_a_state_that_cannot_be_read_says_what_to_do() -> None:
    assert unpacked_state(packed_state({"a": 1})) == {"a": 1}
    with pytest.raises(DataError, match="remove gather/metrology"):
        unpacked_state(np.zeros(5, np.uint8))

"""The gather stage over lists of spots: rounds, what is processed again, what is not done twice, and when nothing is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.run.metrology_runs import MeanResidual, blanks, displaced, recorded, run_metrology, shots
from tests.run.spot_lists import SpotListSource
from xfelproc.geometry.placement import displacements, with_placement
from xfelproc.io.exchange import load_geometry
from xfelproc.io.shards import read_shard, shard_path
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.tables import SpotTable
from xfelproc.run.directory import RunDirectory
from xfelproc.run.folding import Gathering
from xfelproc.run.journal import read_journal
from xfelproc.run.progress import Progress
from xfelproc.run.session import Session

N = 6


@pytest.fixture(scope="module")
def spots() -> list[SpotTable]:
    return [*blanks(2), *shots(N, displaced(recorded()))]


@pytest.fixture(scope="module")
def finished(spots: list[SpotTable], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run_metrology(spots, folder)
    return folder


def record_of(folder: Path) -> dict[str, Any]:
    found = RunDirectory(folder / "run").read_json("metrology.json")
    assert found is not None
    return found


def in_plane_error(after: Any, truth: Any) -> float:
    """Root mean square over panels of what is left of the displacements, px, their mean apart."""
    off = displacements(with_placement(recorded(), after), truth)[:, :2] / 0.3
    return float(np.sqrt(np.mean(np.sum((off - off.mean(axis=0)) ** 2, axis=1))))


def stamps(folder: Path, *stages: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for stage in stages for path in (folder / "run" / "shards" / stage).rglob("*.h5")}


def contents(folder: Path) -> list[bytes]:
    """Bytes of what the result's tables hold, times apart."""
    found = []
    for path in sorted((folder / "run" / "shards" / "reprocess").rglob("*.h5")):
        result = read_shard(path)
        for table in (result.spots, result.lattices, result.indexed, result.reflections):
            found += [np.asarray(table[c.name], dtype=None if c.dtype != "str" else "S32").tobytes() for c in table.SCHEMA]
    return [*found, json.dumps(record_of(folder)["after"]).encode()]


def test_the_panels_are_found(finished: Path) -> None:
    record = record_of(finished)
    assert record["stage"] == "reprocess"
    before = in_plane_error(record["before"], displaced(recorded()))
    assert in_plane_error(record["after"], displaced(recorded())) < 0.4 * before
    assert len(record["rounds"]) > 1
    assert record["warnings"] == []
    assert not (finished / "run" / "shards" / "reindex").exists()


def test_the_geometry_is_written_for_others(finished: Path) -> None:
    after = with_placement(recorded(), record_of(finished)["after"])
    for suffix in (".geom", ".expt", ".nxs"):
        found = load_geometry(finished / "run" / "gather" / f"geometry{suffix}").detector
        assert displacements(after, found) == pytest.approx(0, abs=1e-5)


def test_every_frame_is_there_with_its_spots(finished: Path, spots: list[SpotTable]) -> None:
    run, row = finished / "run", 0
    for unit in range(-(-len(spots) // 4)):
        first, last = (read_shard(shard_path(run, stage, unit)) for stage in ("process", "reprocess"))
        for name in ("source", "index", "n_spots", "wavelength"):
            assert np.array_equal(first.frames[name], last.frames[name])
        assert np.array_equal(first.spots["fast"], last.spots["fast"])
        for status in last.frames["status"]:
            assert status == (FrameStatus.BLANK if row < 2 else FrameStatus.INTEGRATED)
            row += 1
        assert np.median(last.lattices["rmsd_used"]) < 0.5 * np.median(first.lattices["rmsd_used"]) if len(first.lattices) else True


def test_second_run_does_nothing(finished: Path, spots: list[SpotTable], monkeypatch: pytest.MonkeyPatch) -> None:
    before, record = stamps(finished, "process", "reprocess"), record_of(finished)
    monkeypatch.setattr(MeanResidual, "begin", None)  # not called
    again = run_metrology(spots, finished)
    assert stamps(finished, "process", "reprocess") == before
    assert record_of(finished) == record
    assert [line for line in again.lines if "8/8" not in line] == []


def test_status_counts_the_result(finished: Path) -> None:
    run = finished / "run"
    progress = Progress(np.diff(RunDirectory(run).read_manifest().offsets))
    for event in read_journal(run):
        progress.feed(event)
    assert (progress.counts["INTEGRATED"], progress.frames) == (N, N + 2)
    looked = Progress(progress.sizes)
    looked.look(run, "reprocess")
    assert looked.counts == progress.counts


class Reads:
    """How often pixels were read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n = 0
        whole = SpotListSource.read

        def read(source: SpotListSource, index: int, number: int = 0) -> Any:
            self.n += 1
            return whole(source, index, number)

        monkeypatch.setattr(SpotListSource, "read", read)


def test_pixels_are_read_where_predictions_moved(spots: list[SpotTable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    run_metrology(spots, tmp_path)
    assert reads.n == len(spots) + N
    before = record_of(tmp_path)
    run_metrology(spots, tmp_path, metrology={"max_move": 50.0})  # the geometry is the same, and nothing moves that far
    assert reads.n == len(spots) + N
    assert record_of(tmp_path) == before
    units = [[read_shard(shard_path(tmp_path / "run", stage, unit)) for unit in range(2)] for stage in ("process", "reprocess")]
    for first, last in zip(*units, strict=True):
        assert np.array_equal(first.reflections["intensity"], last.reflections["intensity"])
        assert np.array_equal(first.reflections["fast"], last.reflections["fast"])
        assert not np.array_equal(first.lattices["A"], last.lattices["A"]) or len(first.lattices) == 0


def test_disabled_it_is_as_if_it_had_never_been(spots: list[SpotTable], tmp_path: Path) -> None:
    run_metrology(spots, tmp_path)
    kept = stamps(tmp_path, "process", "reprocess")
    off = run_metrology(spots, tmp_path, metrology={"enabled": False})
    assert not (tmp_path / "run" / "gather" / "metrology.json").exists()
    assert not (tmp_path / "run" / "gather" / "geometry.expt").exists()
    plain = run_metrology(spots, tmp_path / "plain", metrology={"enabled": False})
    for first, last in zip(off.units, plain.units, strict=True):
        assert np.array_equal(first.reflections["fast"], last.reflections["fast"])
    run_metrology(spots, tmp_path)
    assert stamps(tmp_path, "process", "reprocess") == kept  # on again: the same geometry, the same shards


def test_right_geometry_stays(tmp_path: Path) -> None:
    run = run_metrology(shots(6, recorded(), noise=0.0), tmp_path, metrology={"gain": 0.01})
    assert record_of(tmp_path)["stage"] == "process"
    assert any("the recorded geometry stays" in line for line in run.lines)
    assert not (tmp_path / "run" / "shards" / "reprocess").exists()


@pytest.mark.parametrize(
    ("keys", "lists", "why"),
    [({"min_crystals": 7}, 6, "6 lattices are too few"), ({"fails": "it diverges: rmsd 1 to 3 px"}, 6, "it diverges")],
)
def test_where_it_fails_the_geometry_is_kept_with_a_word(tmp_path: Path, keys: dict[str, Any], lists: int, why: str) -> None:
    run = run_metrology(shots(lists, displaced(recorded())), tmp_path, metrology=keys)
    record = record_of(tmp_path)
    assert record["stage"] == "process"
    assert why in record["why"]
    (warning,) = [line for line in run.lines if line.startswith("warning")]
    assert "the recorded geometry is kept" in warning
    assert why in warning
    again = run_metrology(shots(lists, displaced(recorded())), tmp_path, metrology=keys)
    assert not [line for line in again.lines if why in line]


def test_a_geometry_with_which_less_indexes_is_not_taken(tmp_path: Path) -> None:
    """A refinement that pushes the panels the wrong way by ten times what is right."""
    run_metrology(shots(6, displaced(recorded())), tmp_path, metrology={"gain": -20.0})
    record = record_of(tmp_path)
    assert record["stage"] == "process"
    assert "that before it 6 of" in record["why"]


def test_panels_that_overlap_afterwards_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xfelproc.run.stage_metrology.overlap_warning", lambda detector: None if same(detector) else "p0 and p1")

    def same(detector: Any) -> bool:
        return bool(np.allclose(detector.d_matrices, recorded().d_matrices))

    run_metrology(shots(6, displaced(recorded())), tmp_path)
    assert record_of(tmp_path)["stage"] == "process"
    assert "p0 and p1" in record_of(tmp_path)["warnings"][0]


def test_a_panel_without_spots_is_told(tmp_path: Path) -> None:
    lists = [table.select(table["panel"] != 3) for table in shots(6, displaced(recorded()))]
    run = run_metrology(lists, tmp_path)
    assert record_of(tmp_path)["stage"] == "reprocess"
    assert any("panel 3 has no spots" in line for line in run.lines if line.startswith("warning"))


class Stop(BaseException):
    """Stands for a kill."""


def killed(monkeypatch: pytest.MonkeyPatch, cls: Any, name: str, calls: int) -> None:
    """Let the ``calls``-th call of a method end the run."""
    whole, left = getattr(cls, name), [calls]

    def method(self: Any, *arguments: Any, **keys: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Stop
        return whole(self, *arguments, **keys)

    monkeypatch.setattr(cls, name, method)


@pytest.mark.parametrize(
    ("cls", "name", "calls"),
    [
        (Gathering, "fold", 1),  # the survey
        (Gathering, "update", 1),  # the spots
        (Gathering, "fold", 3),  # the second iteration
        (MeanResidual, "advance", 2),
        (Session, "run_units", 2),  # the first time that spots are indexed again
        (Gathering, "update", 2),  # the spots of the second round
        (Gathering, "fold", 5),
        (RunDirectory, "write_json", 1),  # the record
        (SpotListSource, "read", 11),  # frames integrated again
    ],
)
def test_killed_in_each_phase_it_goes_on_to_the_same(
    spots: list[SpotTable], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: Any, name: str, calls: int
) -> None:
    with monkeypatch.context() as patch:
        killed(patch, cls, name, calls)
        with pytest.raises(Stop):
            run_metrology(spots, tmp_path)
    advances = [0]
    whole = MeanResidual.advance

    def advance(self: Any, *arguments: Any) -> Any:
        advances[0] += 1
        return whole(self, *arguments)

    monkeypatch.setattr(MeanResidual, "advance", advance)
    run_metrology(spots, tmp_path)
    assert contents(tmp_path) == contents(finished)
    if name in ("write_json", "read"):
        assert advances[0] <= 2  # what is known is not found again


def test_iterate_limits_the_rounds(spots: list[SpotTable], tmp_path: Path) -> None:
    run_metrology(spots, tmp_path, metrology={"iterate": 0})
    record = record_of(tmp_path)
    assert len(record["rounds"]) == 1
    assert record["stage"] == "reprocess"
    assert "metrology.iterate" in record["why"]


def test_drift_along_the_run(spots: list[SpotTable], tmp_path: Path) -> None:
    """In blocks of a unit each; the first holds two blank frames and two hits, which are too few."""
    run_metrology(spots, tmp_path, metrology={"block_frames": 4, "iterate": 0})
    drift = RunDirectory(tmp_path / "run").read_json("metrology_drift.json")
    assert drift is not None
    first, second = drift["blocks"]
    assert (first["frames"], second["frames"]) == ([0, 4], [4, 8])
    assert (first["lattices"], second["lattices"]) == (2, 4)
    assert "too few" in first["why"]
    assert second["distance"] == pytest.approx(92.5, abs=0.1)
    assert np.abs(second["panels"]).max() < 1
    stamp = (tmp_path / "run" / "gather" / "metrology_drift.json").stat().st_mtime_ns
    run_metrology(spots, tmp_path, metrology={"block_frames": 4, "iterate": 0})
    assert (tmp_path / "run" / "gather" / "metrology_drift.json").stat().st_mtime_ns == stamp

"""Merging of shards: in one leaf, in many, on every driver, killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pytest

from tests.run.synthetic_shards import gathering, make_shards
from xfelproc.algorithms.merging import Merge
from xfelproc.errors import ConfigError, DamagedPartError, NothingLeftError
from xfelproc.io.columns import write_columns
from xfelproc.run.journal import read_journal
from xfelproc.run.loop import Interrupted
from xfelproc.run.merging import FoundShards, MergeInput, merge_inputs
from xfelproc.run.target import MergingGroup
from xfelproc.stages.merge_parts import MergeJob

pytestmark = pytest.mark.slow

GROUP = MergingGroup("P 43 21 2", False)
FILES = ("merged.mtz", "unmerged.mtz")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MergeInput:
    return make_shards(tmp_path_factory.mktemp("shards"), 60, 300, 7, d_min=3.5, outliers=3)


def merged(folder: Path, inputs: list[MergeInput], settings: Merge | None = None, **execution: Any) -> dict[str, Any]:
    """Merge; return the record and the bytes of the files."""
    place = gathering(folder, **execution)
    try:
        found = merge_inputs(place, FoundShards.of(inputs), settings or Merge(), GROUP, folder / "merged", 0.002)
    finally:
        place.driver.close()
        place.journal.close()
    if found is None:
        return {}
    assert not (folder / "gather" / "merge").exists()
    return found | {name: (folder / "merged" / name).read_bytes() for name in FILES}


def plain(result: dict[str, Any]) -> dict[str, Any]:
    """Without numbers that are not equal to themselves."""
    text = json.dumps({name: value for name, value in result.items() if name not in FILES})
    return {name: result[name] for name in FILES if name in result} | {"record": text}


def assert_close(one: dict[str, Any], two: dict[str, Any], tmp_path: Path) -> None:
    """Equal but for the rounding of sums."""
    for name in FILES:
        arrays = []
        for i, result in enumerate((one, two)):
            (tmp_path / f"{i}.mtz").write_bytes(result[name])
            arrays.append(np.array(gemmi.read_mtz_file(str(tmp_path / f"{i}.mtz"))))
        assert arrays[0].shape == arrays[1].shape
        assert arrays[0] == pytest.approx(arrays[1], rel=1e-5, abs=1e-4, nan_ok=True)
    assert one["overall"] == pytest.approx(two["overall"], rel=1e-6, nan_ok=True)
    assert one["n_lattices_used"] == two["n_lattices_used"]
    assert one["warnings"] == two["warnings"]


@pytest.fixture(scope="module")
def streamed(run: MergeInput, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return merged(tmp_path_factory.mktemp("streamed"), [run], bucket_size=3000, fold_size=10)


@pytest.mark.parametrize(
    "settings",
    [
        Merge(),
        Merge(min_lattice_cc=0.5, partiality="model", b_factor=False),
        Merge(scale=False, partiality="unity", outlier_cut=0.0, d_min=4.0),
    ],
)
def test_leaves_make_no_difference(run: MergeInput, tmp_path: Path, settings: Merge) -> None:
    one = merged(tmp_path / "one", [run], settings)
    two = merged(tmp_path / "two", [run], settings, bucket_size=3000, fold_size=10)
    assert_close(one, two, tmp_path)
    events = [[e["stage"] for e in read_journal(tmp_path / name) if e["event"] == "fold"] for name in ("one", "two")]
    assert events[0] == events[1], "a small run goes the same way"
    assert set(events[0]) == {f"merge/{stage}" for stage in ("leaves", "begin", "pass", "output")}


def test_statistics_are_those_of_the_unmerged_file(streamed: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "unmerged.mtz"
    path.write_bytes(streamed["unmerged.mtz"])
    theirs = gemmi.Intensities()
    theirs.import_mtz(gemmi.read_mtz_file(str(path)), gemmi.DataType.Unmerged)
    theirs.prepare_for_merging(gemmi.DataType.Mean)
    binner = gemmi.Binner()
    theirs.unit_cell = gemmi.UnitCell(*streamed["cell"])
    binner.setup(len(streamed["shells"]), gemmi.Binner.Method.Dstar3, theirs)
    every = [*theirs.calculate_merging_stats(binner), theirs.calculate_merging_stats(None)[0]]
    for ours, shell in zip([*streamed["shells"], streamed["overall"]], every, strict=True):
        assert (ours["n_observations"], ours["n_unique"]) == (shell.all_refl, shell.unique_refl)
        for name in ("r_merge", "r_meas", "r_pim"):
            assert ours[name] == pytest.approx(getattr(shell, name)(), rel=1e-5, nan_ok=True)
        assert ours["cc_half_sigma_tau"] == pytest.approx(shell.cc_half(), abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_drivers_give_the_same_bytes(run: MergeInput, streamed: dict[str, Any], tmp_path: Path, workers: int) -> None:
    found = merged(tmp_path, [run], driver="pool", workers=workers, bucket_size=3000, fold_size=10)
    assert plain(found) == plain(streamed)


def test_without_the_unmerged_file(run: MergeInput, streamed: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "unmerged.mtz").touch()
    place = gathering(tmp_path, bucket_size=3000, fold_size=10)
    found = merge_inputs(place, FoundShards.of([run]), Merge(unmerged=False), GROUP, tmp_path / "merged", 0.002)
    assert found is not None
    assert not (tmp_path / "merged" / "unmerged.mtz").exists(), "of a merging before"
    assert found["overall"]["cc_half"] == streamed["overall"]["cc_half"]
    assert np.isnan(found["overall"]["r_meas"])


def test_whole_on_a_worker(run: MergeInput, tmp_path: Path) -> None:
    two = merged(tmp_path / "b", [run], driver="pool", workers=2)
    assert plain(merged(tmp_path / "a", [run])) == plain(two)


class StopAfter:
    """A journal that asks for a stop after some folds."""

    def __init__(self, place: Any, folds: int) -> None:
        self._journal, self._stop, self._left = place.journal, place.stop, folds
        self.stages: list[str] = []

    def write(self, event: str, **details: Any) -> None:
        self._journal.write(event, **details)
        if event == "fold":
            self.stages.append(details["stage"])
            self._left -= 1
            if self._left == 0:
                self._stop.raised = 15


@pytest.mark.parametrize("folds", [1, 2, 3, 5, 7])
def test_goes_on_where_it_was_stopped(run: MergeInput, streamed: dict[str, Any], tmp_path: Path, folds: int) -> None:
    place = gathering(tmp_path, bucket_size=3000, fold_size=10)
    journal = StopAfter(place, folds)
    object.__setattr__(place, "journal", journal)
    with pytest.raises(Interrupted):
        merge_inputs(place, FoundShards.of([run]), Merge(), GROUP, tmp_path / "merged", 0.002)
    assert plain(merged(tmp_path, [run], bucket_size=3000, fold_size=10)) == plain(streamed)
    events = [e for e in read_journal(tmp_path) if e["event"] == "fold" and e["stage"] == "merge/pass"]
    again = len(events) - len({e["iteration"] for e in events})
    assert again <= 1, "no pass is repeated but the one that was stopped"


def test_runs_are_merged_together(tmp_path: Path) -> None:
    parts = [make_shards(tmp_path / f"r{i}", 30, 200, 7, f"run_{i}.h5", i, d_min=4.0) for i in range(2)]
    both = merged(tmp_path / "both", parts)
    assert both["n_lattices"] == 60
    assert_close(both, merged(tmp_path / "streamed", parts, bucket_size=2000), tmp_path)
    assert both != merged(tmp_path / "turned", parts[::-1])


def test_a_larger_run_than_the_sample(tmp_path: Path) -> None:
    run = make_shards(tmp_path / "run", 300, 300, 50, d_min=4.0)
    assert_close(merged(tmp_path / "a", [run]), merged(tmp_path / "b", [run], bucket_size=30_000), tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Merge(d_max=1.0), "of the observations, 2,000 are flagged by integration, or beyond the resolution limits"),
        (Merge(exclude_panels=(0,)), r"of the observations, 2,000 are on panels left out \(merge.exclude_panels\)"),
        (
            Merge(min_observations=150, energy_range=(9000.0, 9500.0), exclude_panels=(7,)),
            r"none of 10 lattices is left; of the lattices, 10 have another photon energy \(merge.energy_range",
        ),
    ],
)
def test_filters_that_leave_nothing_say_so(tmp_path: Path, settings: Merge, words: str) -> None:
    run = make_shards(tmp_path / "run", 10, 200, 5)
    with pytest.raises(NothingLeftError, match=words):
        merged(tmp_path / "out", [run], settings)
    assert not (tmp_path / "out" / "gather" / "merge").exists()


def test_missing_unit(run: MergeInput) -> None:
    with pytest.raises(ConfigError, match=r"unit 9 of .* is not processed"):
        FoundShards.of([MergeInput(run.run, run.n_units + 1)])


@pytest.mark.parametrize(
    ("folds", "folder", "damage"),
    [(2, "observations", "truncated"), (4, "places", "missing"), (6, "models/3", "of another merging")],
)
def test_damaged_parts_are_made_again(
    run: MergeInput, streamed: dict[str, Any], tmp_path: Path, folds: int, folder: str, damage: str
) -> None:
    place = gathering(tmp_path, bucket_size=3000, fold_size=10)
    object.__setattr__(place, "journal", StopAfter(place, folds + 1))
    with pytest.raises(Interrupted):
        merge_inputs(place, FoundShards.of([run]), Merge(), GROUP, tmp_path / "merged", 0.002)
    part = min((tmp_path / "gather" / "merge" / folder).iterdir())
    if damage == "truncated":
        part.write_bytes(part.read_bytes()[:-3000])
    elif damage == "missing":
        part.unlink()
    else:
        write_columns(part, "another", {})
    again = gathering(tmp_path, bucket_size=3000, fold_size=10)
    events: list[tuple[str, dict[str, Any]]] = []
    object.__setattr__(again, "on_event", lambda word, details: events.append((word, details)))
    found = merge_inputs(again, FoundShards.of([run]), Merge(), GROUP, tmp_path / "merged", 0.002)
    assert found is not None
    assert plain(found | {name: (tmp_path / "merged" / name).read_bytes() for name in FILES}) == plain(streamed)
    assert [(word, details["what"]) for word, details in events] == [("made_again", "merge")]
    assert part.name in events[0][1]["why"]


def test_a_part_that_is_damaged_again_stops_it(run: MergeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(self: MergeJob, path: Path, *more: Any) -> Any:
        raise DamagedPartError("is missing or damaged", path)

    monkeypatch.setattr(MergeJob, "read", damaged)
    with pytest.raises(DamagedPartError, match=r"states/0000\.h5: is missing or damaged"):
        merged(tmp_path, [run])

"""Filters of a run's merging: planted lattices and stretches leave, also after a stop, with the same bytes in any leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.run.synthetic_shards import gathering, unit_of_shards, write_units
from tests.run.test_merging import StopAfter
from xfelproc.algorithms.merging import Merge
from xfelproc.algorithms.merging.lattice_models import Reason
from xfelproc.models.conventions import HC
from xfelproc.models.frames import UnitResult
from xfelproc.models.tables import ReflectionTable
from xfelproc.run.loop import Interrupted
from xfelproc.run.merge_influence import stretch_bounds
from xfelproc.run.merging import FoundShards, MergeInput, merge_inputs
from xfelproc.run.target import MergingGroup
from xfelproc.simulation.observations import ObservationSimulator

GROUP = MergingGroup("P 43 21 2", False)
N, UNIT = 160, 10
WRONG_CELL, WRONG_ENERGY, BAD_LATTICES, BAD_UNITS = [13, 90], [31, 122], [44, 108], (60, 80)
SETTINGS = Merge(
    max_cycles=3,
    max_cell_mahalanobis=6.0,
    max_energy_deviation=8.0,
    error_intensity=0.05,
    error_partiality=0.03,
    delta_cc_half_cut=12.0,
    stretches=20,
    stretch_cut=5.0,
    ambiguity={"resolve": "off"},
)


def planted(simulator: ObservationSimulator, first: int, last: int) -> UnitResult:
    """Return a unit with some wrong cells and photon energies; lattices, and a stretch, of which a share has other intensities."""
    seen = simulator.simulate(first, last)
    matrices, wavelength = seen.crystals.A * 1.0, seen.crystals.wavelength * 1.0
    rng = np.random.default_rng(first)
    intensity, lattice = seen.intensity * 1.0, seen.lattice + first
    for number in range(first, last):
        place = number - first
        if number in WRONG_CELL:
            matrices[place] *= 1.01
        if number in WRONG_ENERGY:
            wavelength[place] = HC / (HC / wavelength[place] + 300.0)
        share = 0.7 if number in BAD_LATTICES else 0.35 if BAD_UNITS[0] <= number < BAD_UNITS[1] else 0.0
        rows = np.flatnonzero((lattice == number) & (rng.random(len(lattice)) < share))
        intensity[rows] = rng.permutation(intensity[rows])
    table: ReflectionTable = seen.table().replace(intensity=intensity)
    return unit_of_shards(first, table, matrices, wavelength)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MergeInput:
    simulator = ObservationSimulator.of(d_min=4.0, wavelength_jitter=1e-3, cell_spread=1e-3, scale_spread=0.2)
    return write_units(tmp_path_factory.mktemp("shards"), N, UNIT, lambda first, last: planted(simulator, first, last))


def merged(folder: Path, run: MergeInput, settings: Merge = SETTINGS, **execution: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Merge; return the record and the table of lattices."""
    place = gathering(folder, **execution)
    try:
        record = merge_inputs(place, FoundShards.of([run]), settings, GROUP, folder / "merged")
    finally:
        place.driver.close()
        place.journal.close()
    assert record is not None
    with h5py.File(folder / "merged" / "lattices.h5") as file:
        table = {name: column[()] for name, column in file["lattices"].items()}
    return record, table


@pytest.fixture(scope="module")
def result(run: MergeInput, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    folder = tmp_path_factory.mktemp("merged")
    record, table = merged(folder, run, bucket_size=8000, fold_size=10)
    return record, table, (folder / "merged" / "lattices.h5").read_bytes()


def test_precisely_those_planted_leave(result: tuple[dict[str, Any], dict[str, Any], bytes]) -> None:
    record, table, _ = result
    reason = table["reason"]
    assert np.flatnonzero(reason == Reason.MAHALANOBIS).tolist() == WRONG_CELL
    assert np.flatnonzero(reason == Reason.ENERGY).tolist() == WRONG_ENERGY
    assert np.flatnonzero(reason == Reason.STRETCH).tolist() == [*range(*BAD_UNITS)]
    assert np.flatnonzero(reason == Reason.DELTA_CC).tolist() == BAD_LATTICES
    assert table["unit"].tolist() == (np.arange(N) // UNIT).tolist()
    assert np.array_equal(table["used"], reason == Reason.USED)
    left_out = record["quality"]["left_out"]
    assert left_out == {"few": 0, "correlation": 0, "cell": 0, "mahalanobis": 2, "energy": 2, "delta_cc": 2, "stretch": 20}


def test_the_record_tells_of_them(result: tuple[dict[str, Any], dict[str, Any], bytes]) -> None:
    lattices = json.loads(json.dumps(result[0]["lattices"]))
    stretches = lattices["stretches"]
    assert [(row["first"], row["end"]) for row in stretches if row["left_out"]] == [(6, 8)]
    assert stretches[0]["first"] == 6
    assert stretches[0]["delta_cc_half"] < 0
    assert len(stretches) == 8
    assert sum(lattices["along"]["left_out"]["energy"]) == 2
    assert lattices["along"]["lattices"] == [UNIT] * (N // UNIT)
    assert {(row["unit"], row["lattice"]) for row in lattices["lowest_delta_cc_half"]} >= {(4, 4), (10, 8)}
    assert sum(lattices["histograms"]["delta_cc_half"]["kept"]) == N - 26
    assert lattices["observations"] == {"flagged": 0, "panel": 0, "edge": 0, "significance": 0}


@pytest.mark.slow
def test_goes_on_where_it_was_stopped(
    run: MergeInput, result: tuple[dict[str, Any], dict[str, Any], bytes], tmp_path: Path
) -> None:
    place = gathering(tmp_path, bucket_size=8000, fold_size=10)
    journal = StopAfter(place, 9)
    object.__setattr__(place, "journal", journal)
    with pytest.raises(Interrupted):
        merge_inputs(place, FoundShards.of([run]), SETTINGS, GROUP, tmp_path / "merged")
    assert journal.stages[-3:] == ["merge/influence", "merge/stretches", "merge/pass"]
    record, _ = merged(tmp_path, run, driver="pool", workers=2, bucket_size=8000, fold_size=10)
    assert (tmp_path / "merged" / "lattices.h5").read_bytes() == result[2]
    assert json.dumps(record) == json.dumps(result[0])


def test_stretches_end_with_their_runs() -> None:
    frames = np.array([10, 10, 5, 10, 10, 10, 3])
    assert stretch_bounds("run", frames, (3, 4)).tolist() == [0, 3, 7]
    assert stretch_bounds("unit", frames, (3, 4)).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert stretch_bounds(20, frames, (3, 4)).tolist() == [0, 2, 3, 5, 7]


def test_a_stretch_cut_needs_stretches() -> None:
    with pytest.raises(ValueError, match="stretch_cut needs stretches"):
        Merge(stretch_cut=3.0)

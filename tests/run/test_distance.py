"""The run's own judgement of the recorded distance, over lists of spots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.algorithms.indexing.generator import basis_of, beam, lattice_spots, random_pixels, random_rotation, table
from tests.run.spot_lists import SpotRun, run_spots
from xfelproc.models.experiment import Detector, Panel
from xfelproc.models.frames import CellTarget
from xfelproc.models.tables import SpotTable
from xfelproc.run import distance as module
from xfelproc.run.journal import read_journal

CELL = (79.1, 79.1, 38.0, 90.0, 90.0, 90.0)
TARGET = CellTarget(CELL, "P 43 21 2")
TRUE = 92.5


def declared(distance: float) -> Detector:
    """The generator's detector, declared at a distance; of coarser pixels, of which nobody reads one."""
    return Detector((Panel("p0", (1, 0, 0), (0, -1, 0), (-75.24, 74.8725, -distance), (0.075, 0.075), (200, 200)),))


def crystals(n: int, seed: int = 1) -> list[SpotTable]:
    rng = np.random.default_rng(seed)
    return [table(lattice_spots(basis_of(CELL) @ random_rotation(rng).T, "P", rng, 60)[0], rng) for _ in range(n)]


def noise(n: int, seed: int = 2) -> list[SpotTable]:
    rng = np.random.default_rng(seed)
    return [table(random_pixels(rng, int(rng.integers(15, 100))), rng) for _ in range(n)]


def run(lists: list[SpotTable], distance: float, folder: Path, target: CellTarget = TARGET, **sections: Any) -> SpotRun:
    return run_spots(lists, declared(distance), beam(), target, folder, **sections)


@pytest.mark.parametrize("error", [-0.09, -0.04, 0.025, 0.09])
def test_wrong_distance_is_found(tmp_path: Path, error: float) -> None:
    """Four stills, as many as there may be: all index, with the cell they have, at the true distance."""
    found = run(crystals(4), TRUE * (1 + error), tmp_path)
    assert found.distance == pytest.approx(TRUE, rel=0.002)
    assert found.n_indexed == 4
    cells = np.concatenate([unit.lattices["cell"] for unit in found.units])
    assert np.allclose(cells[:, :3], CELL[:3], rtol=0.006)
    warnings = [line for line in found.lines if line.startswith("warning")]
    assert len(warnings) == 1
    assert f"{TRUE * (1 + error):.1f} mm" in warnings[0]
    assert "4 of 4 sample frames" in warnings[0]
    assert [e["text"] for e in read_journal(tmp_path / "run") if e["event"] == "warning"] == [warnings[0][9:]]


def test_right_distance_costs_nothing(tmp_path: Path) -> None:
    found = run(crystals(4), TRUE, tmp_path)
    assert found.record is None
    assert found.lines == ("process 0/4",)


def test_many_lattices_are_judged_by_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a long run, each against each, would not fit into memory."""
    compared: list[int] = []

    def largest_cluster(values: Any, tolerance: float) -> Any:
        compared.append(len(values))
        return whole(values, tolerance)

    whole = module.largest_cluster
    monkeypatch.setattr(module, "largest_cluster", largest_cluster)
    monkeypatch.setattr(module, "JUDGED", 5)
    assert run(crystals(8), TRUE, tmp_path).record is None
    assert compared == [5]


def test_few_crystals_among_hits_prove_the_distance(tmp_path: Path) -> None:
    found = run([*noise(12), *crystals(3)], TRUE, tmp_path)
    assert found.record is None


@pytest.mark.parametrize("n", [2, 3, 20])
def test_no_distance_is_invented(tmp_path: Path, n: int) -> None:
    found = run(noise(n), TRUE, tmp_path)
    assert found.distance is None
    assert found.n_indexed == 0
    assert (found.record is None) == (n == 2)  # two frames can prove nothing: not tried
    assert not any(line.startswith("warning") for line in found.lines)


def test_a_cell_given_too_small_moves_nothing(tmp_path: Path) -> None:
    """The cells come out 3 % larger than given, but the spots fit best at the recorded distance."""
    target = CellTarget((*(v / 1.03 for v in CELL[:3]), 90.0, 90.0, 90.0), "P 43 21 2")
    found = run(crystals(5), TRUE, tmp_path, target)
    assert found.record is not None
    assert found.distance is None
    assert found.n_indexed == 5


@pytest.mark.parametrize("keys", [{"sample": {"max_distance_error": 0.0}}, {"input": {"distance": 84.0}}])
def test_switched_off(tmp_path: Path, keys: dict[str, Any]) -> None:
    found = run(crystals(4), 84.0, tmp_path, **keys)
    assert found.record is None
    assert found.n_indexed == 0


def test_no_cell_no_distance(tmp_path: Path) -> None:
    assert run(crystals(4), 84.0, tmp_path, CellTarget()).record is None


def test_second_run_does_nothing(tmp_path: Path) -> None:
    first = run(crystals(4), 84.0, tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.h5") if "shards" in p.parts}
    again = run(crystals(4), 84.0, tmp_path)
    assert again.lines == ("process 4/4",)
    assert again.record == first.record
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.h5") if "shards" in p.parts}


def test_the_first_hits_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all frames are processed at the wrong distance; a run killed at any point goes on to the same result."""
    monkeypatch.setattr(module, "ENOUGH_HITS", 10)
    lists = crystals(40)
    found = run(lists, 84.0, tmp_path / "whole")
    assert found.distance == pytest.approx(TRUE, rel=0.002)
    assert found.record is not None
    assert found.record["units"] == 2  # of five, with eight hits each
    assert found.n_indexed == 40
    done = [e["unit"] for e in read_journal(tmp_path / "whole" / "run") if e["event"] == "unit" and e["stage"] == "process"]
    assert done == [0, 1, 0, 1, 2, 3, 4]

    class Killed(BaseException):
        pass

    write_json = module.RunDirectory.write_json

    def killed(self: Any, name: str, content: Any) -> None:
        raise Killed

    monkeypatch.setattr(module.RunDirectory, "write_json", killed)
    with pytest.raises(Killed):
        run(lists, 84.0, tmp_path / "killed")
    monkeypatch.setattr(module.RunDirectory, "write_json", write_json)
    again = run(lists, 84.0, tmp_path / "killed")
    assert again.lines[0] == "process 16/40"  # what was done at the recorded distance is not done again to see it fail
    assert again.distance == found.distance
    assert [u.lattices["cell"].tolist() for u in again.units] == [u.lattices["cell"].tolist() for u in found.units]


def test_a_bad_beginning_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first hits are no crystals: the rest of the run is tried at its end."""
    monkeypatch.setattr(module, "ENOUGH_HITS", 8)
    found = run([*noise(8), *crystals(16)], 84.0, tmp_path)
    assert found.distance == pytest.approx(TRUE, rel=0.002)
    assert found.n_indexed == 16
    assert sum("no distance within 12 %" in line for line in found.lines) == 1

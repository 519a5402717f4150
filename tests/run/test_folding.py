from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.run.sessions import fake_session
from tests.stages.folds import Deadly, Intensities, Numbers, Raises, Sum
from xfelproc.errors import ConfigError, DataError
from xfelproc.io.nodes import read_node
from xfelproc.run import stage_process
from xfelproc.run.journal import read_journal
from xfelproc.run.signals import Interrupted

VALUES = tuple(float(v) for v in np.random.default_rng(3).normal(size=40) * 1e5)
LEAVES = tuple(range(0, 41, 2))


def opened(notes: Path) -> int:
    return sum(len(p.read_text().split()) for p in notes.iterdir())


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("leaves", [LEAVES, (0, 40)])
def test_drivers_and_workers_give_the_same_bytes(tmp_path: Path, leaves: tuple[int, ...]) -> None:
    contents = []
    for name, execution in {"a": {}, "b": {"driver": "pool"}, "c": {"driver": "pool", "workers": 1}}.items():
        (tmp_path / name).mkdir()
        with fake_session(tmp_path / name, ["hit"] * 4, **execution) as session:
            partial = session.fold(Sum(), "sum", 0, Numbers(VALUES), leaves)
            assert partial["seen"].tolist() == list(VALUES)
            folder = session.directory.gather / "sum" / "0"
            contents.append({p.name: p.read_bytes() for p in sorted(folder.iterdir())})
    assert contents[0] == contents[1] == contents[2]
    assert len(contents[0]) == (1 if leaves == (0, 40) else 20 + 2 + 1)


def test_over_the_shards_of_the_run(tmp_path: Path) -> None:
    with fake_session(tmp_path, ["hit", "blank"] * 10, fold_size=8) as session:
        with pytest.raises(ConfigError, match="not processed"):
            session.fold(Intensities(), "report")
        stage_process.run_stage(session)
        rows = session.fold(Intensities(), "report")["rows"]
        assert rows[:, 0].tolist() == [0, 1, 2, 3, 4]
        paths = session.update(Intensities(), "each")
        assert np.array_equal(np.concatenate([read_node(p)[1]["rows"] for p in paths]), rows)
        assert len(paths) == 3


def test_goes_on_after_an_error(tmp_path: Path, notes: Path) -> None:
    fold = Raises(at=VALUES[21], mark=tmp_path / "space")
    with fake_session(tmp_path, ["hit"] * 4) as session:
        with pytest.raises(OSError, match="No space"):
            session.fold(fold, "sum", 0, Numbers(VALUES, notes), LEAVES)
        before = opened(notes)
        fold.mark.touch()
        partial = session.fold(fold, "sum", 0, Numbers(VALUES, notes), LEAVES)
        assert partial["seen"].tolist() == list(VALUES)
        session.fold(fold, "sum", 0, Numbers(VALUES, notes), LEAVES)
        assert opened(notes) == before + 2, "one leaf was left to do"


def test_death_of_a_worker_is_survived(tmp_path: Path) -> None:
    fold = Deadly(at=VALUES[21], mark=tmp_path / "mark")
    with fake_session(tmp_path, ["hit"] * 4, driver="pool") as session:
        assert session.fold(fold, "sum", 0, Numbers(VALUES), LEAVES)["seen"].tolist() == list(VALUES)
    assert "workers_lost" in {event["event"] for event in read_journal(tmp_path / "out")}


def test_second_death_stops_with_a_reason(tmp_path: Path) -> None:
    with (
        fake_session(tmp_path, ["hit"] * 4, driver="pool") as session,
        pytest.raises(DataError, match=r"stage sum, part 10 of 20 .* memory"),
    ):
        session.fold(Deadly(at=VALUES[21]), "sum", 0, Numbers(VALUES), LEAVES)


def test_interrupt(tmp_path: Path) -> None:
    with fake_session(tmp_path, ["hit"] * 4) as session:
        session.stop.raised = 15
        with pytest.raises(Interrupted):
            session.fold(Sum(), "sum", 0, Numbers(VALUES), LEAVES)


def test_last_two_iterations_are_kept(tmp_path: Path) -> None:
    with fake_session(tmp_path, ["hit"] * 4) as session:
        for iteration in range(5):
            session.fold(Sum(), "sum", iteration, Numbers(VALUES), LEAVES)
        assert sorted(p.name for p in (session.directory.gather / "sum").iterdir()) == ["3", "4"]


def test_other_blocks_need_leaves(tmp_path: Path) -> None:
    with fake_session(tmp_path, ["hit"] * 4) as session, pytest.raises(ValueError, match="needs its leaves"):
        session.update(Sum(), "sum", 0, Numbers(VALUES))

"""A run that waits for the one that holds its directory, as a job does that SLURM has moved to another node."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from xfelproc.errors import RunDirectoryError
from xfelproc.run import lock
from xfelproc.run.lock import run_lock
from xfelproc.run.signals import Interrupted


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOOK_EVERY", 0.05)


def held_elsewhere(run: Path, heartbeat: float) -> None:
    lease = {"host": "another-node", "pid": 1, "started": "", "heartbeat": heartbeat}
    (run / "lock").write_text(json.dumps(lease))


def test_a_lease_runs_out_while_it_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "EXPIRES", 1.0)
    held_elsewhere(tmp_path, time.time())
    with pytest.raises(RunDirectoryError, match="another run is at work here"), run_lock(tmp_path):
        pass
    with pytest.raises(RunDirectoryError, match="another run is at work here"), run_lock(tmp_path, patience=0.2):
        pass
    with run_lock(tmp_path, patience=60.0):
        lease = json.loads((tmp_path / "lock").read_text())
        assert lease["host"] != "another-node"
        assert time.time() - lease["heartbeat"] < 0.5  # of now, not of when the waiting began


def test_the_holder_ends(tmp_path: Path) -> None:
    held_elsewhere(tmp_path, time.time())
    timer = threading.Timer(0.3, (tmp_path / "lock").unlink)
    timer.start()
    with run_lock(tmp_path, patience=60.0):
        pass
    timer.join()


def lose_it(run: Path, error: Exception | None) -> None:
    """Hold the lock, have another host take it, and end, with an error or without."""
    lost = threading.Event()
    with run_lock(run, on_lost=lost.set) as lease:
        held_elsewhere(run, time.time())
        assert lost.wait(60)
        assert lease.lost
        if error is not None:
            raise error


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_holder_that_slept_too_long_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.02)
    with pytest.raises(RunDirectoryError, match="another one has taken its place"):
        lose_it(tmp_path, Interrupted() if interrupted else None)
    assert json.loads((tmp_path / "lock").read_text())["host"] == "another-node"


def test_errors_of_its_own_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.02)
    with pytest.raises(ZeroDivisionError):
        lose_it(tmp_path, ZeroDivisionError())


def test_a_lock_that_was_removed_is_made_again(tmp_path: Path) -> None:
    with run_lock(tmp_path) as lease:
        before = json.loads((tmp_path / "lock").read_text())
        (tmp_path / "lock").unlink()
        lease.renew()
        after = json.loads((tmp_path / "lock").read_text())
        assert after.pop("heartbeat") >= before.pop("heartbeat")
        assert after == before
        (tmp_path / "lock").write_text("{")  # of one who is just writing
        lease.renew()
        assert (tmp_path / "lock").read_text() == "{"
        assert not lease.lost

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

"""Faults of a pool through the real command: whatever dies, the same command ends complete, with the bytes of an undisturbed run.

The faults come from outside, or from a spot finder that joins by entry point and springs a trap at one frame; apart from that
it is the usual one, so that its results have the bytes of a run without it. It also waits where a test wants to find a worker at
work, however slow the test itself is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import ROOT, Result, command, environment
from tests.integration.test_resume import assert_same
from tests.once import made_once
from xfelproc.io.inflight import InFlight, read_inflight
from xfelproc.io.shards import read_frames, shard_path
from xfelproc.models.conventions import FrameStatus
from xfelproc.run.journal import read_journal

pytestmark = pytest.mark.slow

TRAPPED = 13
UNIT, ROW = divmod(TRAPPED, 2)
TIMEOUT = 25
"""Seconds a frame may take: a worker loads its kernels before its first, beside whatever else this machine does."""
PATIENCE = 600.0
"""Seconds after which a test gives up: more than any of them takes on a busy machine."""

PLUGIN = """
import ctypes, json, time
from pathlib import Path
from typing import Literal
from xfelproc.algorithms.spotfinding.block_background import BlockBackground

class Trap(BlockBackground):
    method: Literal["trap"] = "trap"

    def strong_pixels(self, frame, workspace):
        folder = Path(__file__).parent
        end = time.monotonic() + 600.0
        while frame.ref.index >= 4 and (folder / "hold").exists() and time.monotonic() < end:
            time.sleep(0.02)
        pace = folder / "pace"
        time.sleep(float(pace.read_text()) if pace.exists() else 0.0)
        file = folder / "trap.json"
        trap = json.loads(file.read_text()) if file.exists() else {}
        if frame.ref.index == trap.get("frame"):
            if trap["what"] == "segfault":
                ctypes.string_at(0)
            if trap["what"] == "hang":
                time.sleep(1000)
            raise ValueError("trapped")
        return super().strong_pixels(frame, workspace)
"""


class Lab:
    """A run directory, the plug-in, and the command."""

    def __init__(self, experiment: Path, folder: Path) -> None:
        self.run, self.plugins = folder / "run", folder / "plugins"
        info = self.plugins / "trap-1.0.dist-info"
        info.mkdir(parents=True)
        (self.plugins / "trap_plugin.py").write_text(PLUGIN)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trap\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[xfelproc.spotfinders]\ntrap = trap_plugin:Trap\n")
        self.job = experiment / "job.toml"
        self.started: list[subprocess.Popen[str]] = []

    def set(self, what: str) -> None:
        """Set the trap."""
        (self.plugins / "trap.json").write_text(json.dumps({"frame": TRAPPED, "what": what}))

    def hold(self) -> None:
        """Let every frame from the third unit on wait until `release`."""
        (self.plugins / "hold").touch()

    def release(self, seconds: float = 0.0) -> None:
        """Let the frames go on, each after so many seconds."""
        (self.plugins / "pace.new").write_text(str(seconds))
        (self.plugins / "pace.new").replace(self.plugins / "pace")
        (self.plugins / "hold").unlink(missing_ok=True)

    def arguments(self, *more: object) -> list[str]:
        given = ("spots.method=trap", "execution.max_failed=1", *more)
        options = [word for value in given for word in ("--set", value)]
        return command(["run", self.job, "-o", self.run, "--driver", "pool", *options])

    def start(self, *more: object) -> subprocess.Popen[str]:
        """Start the command in a process group of its own."""
        process = subprocess.Popen(
            self.arguments(*more),
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def close(self) -> None:
        """End what a test that failed has left."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()

    def environment(self) -> dict[str, str]:
        return {**environment(), "PYTHONPATH": os.pathsep.join([str(ROOT), str(self.plugins)])}

    def finish(self, *more: object) -> Result:
        """Run the command to its end."""
        return end(self.start(*more))

    def events(self, word: str) -> list[dict[str, Any]]:
        return [event for event in read_journal(self.run) if event["event"] == word]

    def reasons(self) -> dict[tuple[int, int], str]:
        """What is said of failed frames, by unit and row."""
        tables = {unit: read_frames(shard_path(self.run, "process", unit)) for unit in range(12)}
        return {
            (unit, row): str(table["reason"][row])
            for unit, table in tables.items()
            for row in range(len(table))
            if table["status"][row] == FrameStatus.FAILED
        }


def end(process: subprocess.Popen[str]) -> Result:
    output, _ = process.communicate(timeout=PATIENCE)
    return Result(process.returncode, output)


def caught(run: Path, process: subprocess.Popen[str], wanted: Callable[[InFlight], bool]) -> InFlight:
    """Return the first worker seen at what is wanted."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        for record in read_inflight(run):
            if wanted(record):
                return record
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    raise AssertionError("no worker came to it")


@pytest.fixture
def lab(experiment: Path, tmp_path: Path) -> Iterator[Lab]:
    one = Lab(experiment, tmp_path)
    yield one
    one.close()


@pytest.fixture(scope="module")
def without_frame(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which the trapped frame fails by an exception, and nothing dies."""

    def make(folder: Path) -> None:
        lab = Lab(experiment, folder)
        lab.set("raise")
        result = lab.finish("execution.driver=inline")
        assert result.code == 0, result.output

    return made_once(tmp_path_factory, "without_frame", make) / "run"


def test_worker_killed(lab: Lab, undisturbed: Path) -> None:
    lab.hold()
    process = lab.start()
    os.kill(caught(lab.run, process, lambda record: record.unit >= 2).worker, signal.SIGKILL)
    lab.release()
    result = end(process)
    assert result.code == 0, result.output
    assert_same(lab.run, undisturbed)
    assert lab.events("workers_lost")
    assert not lab.events("quarantine")


def test_worker_stopped(lab: Lab, undisturbed: Path) -> None:
    lab.hold()
    process = lab.start(f"execution.unit_timeout={TIMEOUT}")
    os.kill(caught(lab.run, process, lambda record: record.unit >= 2 and record.row >= 0).worker, signal.SIGSTOP)
    lab.release()
    result = end(process)
    assert result.code == 0, result.output
    assert_same(lab.run, undisturbed)
    assert not lab.events("quarantine")


def test_frame_that_ends_its_worker(lab: Lab, without_frame: Path) -> None:
    lab.set("segfault")
    result = lab.finish()
    assert result.code == 0, result.output
    assert_same(lab.run, without_frame)
    assert lab.reasons() == {(UNIT, ROW): "its worker died twice at this frame: left out"}
    assert [(e["unit"], e["row"]) for e in lab.events("quarantine")] == [(UNIT, ROW)]
    assert [e["code"] for e in lab.events("suspect_died")] == [-signal.SIGSEGV]
    assert f"frame {ROW} of unit {UNIT} is left out" in result.output
    assert json.loads((lab.run / "gather" / "suspects.json").read_text()) == {"suspects": []}


def test_frame_that_never_returns(lab: Lab, without_frame: Path) -> None:
    lab.set("hang")
    result = lab.finish(f"execution.unit_timeout={TIMEOUT}")
    assert result.code == 0, result.output
    assert_same(lab.run, without_frame)
    assert lab.reasons() == {(UNIT, ROW): f"its worker took more than {TIMEOUT} s twice at this frame: left out"}


def test_job_killed_twice_at_a_frame(lab: Lab, without_frame: Path) -> None:
    lab.set("hang")
    for _ in range(2):
        process, begun = lab.start(), time.time()
        caught(lab.run, process, lambda record, begun=begun: (record.unit, record.row) == (UNIT, ROW) and record.at > begun)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    result = lab.finish()
    assert result.code == 0, result.output
    assert_same(lab.run, without_frame)
    assert lab.reasons() == {(UNIT, ROW): "its worker died twice at this frame: left out"}


def test_dispatcher_killed_at_a_frame(lab: Lab, undisturbed: Path) -> None:
    """The workers see that their dispatcher is gone: no frame is to blame."""
    lab.set("hang")
    process = lab.start()
    caught(lab.run, process, lambda record: (record.unit, record.row) == (UNIT, ROW))
    process.kill()
    process.communicate()
    (lab.plugins / "trap.json").unlink()
    limit = time.monotonic() + 120
    while read_inflight(lab.run) and time.monotonic() < limit:
        time.sleep(0.1)
    assert lab.finish().code == 0
    assert_same(lab.run, undisturbed)
    assert not (lab.run / "gather" / "suspects.json").exists()


def test_two_at_once(lab: Lab, undisturbed: Path) -> None:
    lab.hold()
    first = lab.start()
    caught(lab.run, first, lambda record: True)
    second = lab.finish()
    lab.release()
    assert second.code == 2
    assert f"another run is at work here (process {first.pid} on " in second.output
    result = end(first)
    assert result.code == 0, result.output
    assert_same(lab.run, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("a small file system cannot be mounted here: not root, or not allowed")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_disk_full_and_freed(lab: Lab, undisturbed: Path, small_disk: Path) -> None:
    lab.run, ballast = small_disk / "run", small_disk / "ballast"
    size = sum(path.stat().st_size for path in (undisturbed / "shards").rglob("*.h5"))
    ballast.write_bytes(bytes((24 << 20) - size // 2 - (400 << 10)))
    result = lab.finish()
    assert result.code == 1, result.output
    assert "the disk is full: free some space and run the same command again" in result.output
    ballast.unlink()
    result = lab.finish()
    assert result.code == 0, result.output
    assert_same(lab.run, undisturbed)

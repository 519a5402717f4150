"""Whatever is killed whenever: the same command finishes, and the merged file has the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.conftest import command, environment, xfelproc
from xfelproc.io.manifest import read_manifest
from xfelproc.io.shards import read_frames, shard_path
from xfelproc.run.journal import read_journal

pytestmark = pytest.mark.slow


def assert_same(run: Path, undisturbed: Path) -> None:
    for name in ("merged.mtz", "unmerged.mtz"):
        assert (run / "merged" / name).read_bytes() == (undisturbed / "merged" / name).read_bytes()
    manifest = read_manifest(run / "manifest.h5")
    frames = [
        (int(s), int(i))
        for unit in range(manifest.n_units)
        for s, i in zip(*(read_frames(shard_path(run, "process", unit))[c] for c in ("source", "index")), strict=True)
    ]
    assert frames == [(0, i) for i in range(24)]
    assert not list(run.rglob(".tmp-*"))


def test_pool_equals_inline(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    result = xfelproc("run", experiment / "job.toml", "-o", tmp_path / "run", "--driver", "pool", "--workers", 2)
    assert result.code == 0, result.output
    assert_same(tmp_path / "run", undisturbed)


def kill_after(seconds: float, arguments: list[object], group: bool) -> int:
    """Start the command and kill it, alone or with its workers."""
    process = subprocess.Popen(
        command(arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        return process.wait()


@pytest.mark.parametrize("group", [False, True])
def test_killed_at_random_moments(experiment: Path, undisturbed: Path, tmp_path: Path, group: bool) -> None:
    run, moments = tmp_path / "run", random.Random(20260101 + group)
    arguments: list[object] = ["run", experiment / "job.toml", "-o", run, "--driver", "pool"]
    for _ in range(5):
        kill_after(moments.uniform(0.2, 6.0), arguments, group)
    result = xfelproc(*arguments)
    assert result.code == 0, result.output
    assert_same(run, undisturbed)


def test_workers_end_with_a_killed_run(experiment: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(command(["run", experiment / "job.toml", "-o", run]), env=environment(), start_new_session=True)
    while not list((run / "logs").glob("inflight/*")):
        assert process.poll() is None
        time.sleep(0.05)
    workers = [int(p.name.rpartition("-")[2]) for p in (run / "logs" / "inflight").iterdir()]
    process.kill()
    process.wait()
    end = time.monotonic() + 120
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGUSR1, 75)])
def test_interrupted(experiment: Path, undisturbed: Path, tmp_path: Path, number: int, code: int) -> None:
    run = tmp_path / "run"
    arguments: list[object] = ["run", experiment / "job.toml", "-o", run]
    process = subprocess.Popen(command(arguments), env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list((run / "shards").rglob("*.h5")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=300)
    if process.returncode != 0:  # it may just have finished
        assert process.returncode == code
        assert "the same command goes on" in error
        assert not (run / "lock").exists()
    assert xfelproc(*arguments).code == 0
    assert_same(run, undisturbed)


def test_truncated_shard_is_redone(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    arguments: list[object] = ["run", experiment / "job.toml", "-o", tmp_path / "run", "--driver", "inline"]
    assert xfelproc(*arguments).code == 0
    path = shard_path(tmp_path / "run", "process", 3)
    os.truncate(path, path.stat().st_size // 2)
    result = xfelproc(*arguments)
    assert "22 of them done before" in result.output
    assert_same(tmp_path / "run", undisturbed)


def test_killed_while_merging_through_buckets(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Observations go through files, in many tasks, and a kill leaves some of them."""
    through = ["--only", "merge", "--set", "execution.bucket_size=500", "--set", "execution.fold_size=5"]
    for name in ("calm", "killed"):
        shutil.copytree(undisturbed, tmp_path / name)
        (tmp_path / name / "gather" / "merge.json").unlink()
    calm: list[object] = ["run", experiment / "job.toml", "-o", tmp_path / "calm", *through, "--driver", "inline"]
    assert xfelproc(*calm).code == 0
    stages = [e["stage"] for e in read_journal(tmp_path / "calm") if e["event"] == "fold"]
    assert stages.count("merge/pass") > 10
    moments = random.Random(7)
    arguments: list[object] = ["run", experiment / "job.toml", "-o", tmp_path / "killed", *through, "--driver", "pool"]
    for _ in range(3):
        kill_after(moments.uniform(1.0, 5.0), arguments, True)
    assert xfelproc(*arguments).code == 0
    assert_same(tmp_path / "killed", tmp_path / "calm")
    assert not (tmp_path / "killed" / "gather" / "merge").exists()

"""Faults of Dask through the real command: whatever dies, the same command ends complete, with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import environment
from tests.integration.test_faults_pool import ROW, TIMEOUT, UNIT, Lab, caught, end, without_frame
from tests.integration.test_resume import assert_same

pytest.importorskip("distributed", reason="Dask is not installed: pip install 'xfelproc[dask]'")

__all__ = ["without_frame"]

pytestmark = pytest.mark.slow


class DaskLab(Lab):
    """The same with Dask workers."""

    def arguments(self, *more: object) -> list[str]:
        return [*super().arguments(*more), "--driver", "dask"]


@pytest.fixture
def lab(experiment: Path, tmp_path: Path) -> Iterator[DaskLab]:
    one = DaskLab(experiment, tmp_path)
    yield one
    one.close()


def test_worker_killed(lab: DaskLab, undisturbed: Path) -> None:
    lab.hold()
    process = lab.start()
    os.kill(caught(lab.run, process, lambda record: record.unit >= 2 and record.row >= 0).worker, signal.SIGKILL)
    lab.release()
    result = end(process)
    assert result.code == 0, result.output
    assert "distributed" not in result.output
    assert_same(lab.run, undisturbed)
    assert lab.events("workers_lost")
    assert not lab.events("quarantine")


def test_frame_that_ends_its_worker(lab: DaskLab, without_frame: Path) -> None:
    lab.set("segfault")
    result = lab.finish()
    assert result.code == 0, result.output
    assert_same(lab.run, without_frame)
    assert lab.reasons() == {(UNIT, ROW): "its worker died twice at this frame: left out"}


def test_worker_stopped(lab: DaskLab, undisturbed: Path) -> None:
    lab.hold()
    process = lab.start(f"execution.unit_timeout={TIMEOUT}")
    os.kill(caught(lab.run, process, lambda record: record.unit >= 2 and record.row >= 0).worker, signal.SIGSTOP)
    lab.release()
    result = end(process)
    assert result.code == 0, result.output
    assert_same(lab.run, undisturbed)


def test_interrupted(lab: DaskLab, undisturbed: Path) -> None:
    lab.hold()
    process = lab.start()
    record = caught(lab.run, process, lambda record: record.unit >= 2)
    os.killpg(process.pid, signal.SIGINT)
    lab.release(0.5)
    result = end(process)
    assert result.code == 130, result.output
    assert not Path(f"/proc/{record.worker}").exists()
    lab.release()
    result = lab.finish()
    assert result.code == 0, result.output
    assert_same(lab.run, undisturbed)


def test_dispatcher_killed(lab: DaskLab, undisturbed: Path) -> None:
    lab.hold()
    process = lab.start()
    worker = caught(lab.run, process, lambda record: record.unit >= 2).worker
    process.kill()
    process.communicate()
    lab.release()
    limit = time.monotonic() + 120
    while Path(f"/proc/{worker}").exists() and time.monotonic() < limit:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()
    result = lab.finish()
    assert result.code == 0, result.output
    assert_same(lab.run, undisturbed)


class Cluster:
    """A scheduler and a worker of somebody's."""

    def __init__(self, folder: Path, variables: dict[str, str], threads: int = 1) -> None:
        self.file = folder / "scheduler.json"
        self.file.unlink(missing_ok=True)
        log = (folder / "cluster.log").open("a")

        def start(tool: str, *options: str) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{tool}", "--scheduler-file", str(self.file), "--no-dashboard", *options],
                env={**environment(), **variables},
                stdout=log,
                stderr=log,
                cwd=folder,
            )

        self.scheduler = start("dask_scheduler", "--port", "0", "--host", "127.0.0.1")
        self.worker = start("dask_worker", "--nthreads", str(threads), "--nworkers", "2")
        log.close()
        limit = time.monotonic() + 120
        while not self.file.exists() and time.monotonic() < limit:
            time.sleep(0.1)

    def stop(self) -> None:
        for process in (self.worker, self.scheduler):
            process.terminate()
        for process in (self.worker, self.scheduler):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def cluster(lab: DaskLab, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, lab.environment())
    yield cluster
    cluster.stop()


def test_scheduler_gone(lab: DaskLab, undisturbed: Path, cluster: Cluster, tmp_path: Path) -> None:
    where = f"execution.dask.scheduler={cluster.file}"
    lab.hold()
    process = lab.start(where)
    caught(lab.run, process, lambda record: record.unit >= 2)
    cluster.scheduler.kill()
    result = end(process)
    lab.release()
    assert result.code == 75, result.output
    assert "no Dask scheduler answers" in result.output
    assert "Traceback" not in result.output
    cluster.stop()
    again = Cluster(tmp_path, lab.environment())
    try:
        result = lab.finish(where)
    finally:
        again.stop()
    assert result.code == 0, result.output
    assert_same(lab.run, undisturbed)


def test_workers_with_threads_are_refused(lab: DaskLab, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, lab.environment(), threads=2)
    try:
        result = lab.finish(f"execution.dask.scheduler={cluster.file}")
    finally:
        cluster.stop()
    assert result.code == 2, result.output
    assert "--nthreads 1" in result.output

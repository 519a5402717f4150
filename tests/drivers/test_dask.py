"""A local cluster by itself; the real command is in tests/integration."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xfelproc.drivers import dask
from xfelproc.drivers.base import WorkerLost
from xfelproc.drivers.dask import DaskDriver
from xfelproc.drivers.settings import Dask
from xfelproc.errors import ConfigError

pytest.importorskip("distributed", reason="Dask is not installed: pip install 'xfelproc[dask]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskDriver]:
    driver = DaskDriver(2, Dask(), ("json",), tmp_path_factory.mktemp("logs"))
    yield driver
    driver.close()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_compute(driver: DaskDriver) -> None:
    assert (driver.workers, driver.note) == (2, None)
    futures = [driver.executor().submit(pow, 2, n) for n in range(20)]
    assert [future.result(60) for future in futures] == [2**n for n in range(20)]
    with pytest.raises(ValueError, match="invalid literal"):
        driver.executor().submit(int, "x").result(60)


def test_a_task_is_computed_again_each_time(driver: DaskDriver) -> None:
    first, second = (driver.executor().submit(time.monotonic_ns).result(60) for _ in range(2))
    assert first != second


def test_death_is_told_and_survived(driver: DaskDriver) -> None:
    with pytest.raises(WorkerLost, match="died"):
        driver.executor().submit(die).result(60)
    assert driver.executor().submit(pow, 3, 2).result(60) == 9


def test_a_task_that_does_not_end_is_killed(driver: DaskDriver, tmp_path: Path) -> None:
    driver.executor().submit(time.sleep, 1000)
    time.sleep(0.5)
    driver.discard()
    assert driver.executor().submit(pow, 3, 2).result(60) == 9


def test_no_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask, "_ANSWER", 1.0)
    with pytest.raises(ConfigError, match="no such file"):
        DaskDriver(1, Dask(scheduler=str(tmp_path / "scheduler.json")), logs=tmp_path)
    with pytest.raises(ConfigError, match="no Dask scheduler answers"):
        DaskDriver(1, Dask(scheduler="tcp://127.0.0.1:9"), logs=tmp_path)

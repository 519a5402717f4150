"""Ranks by themselves; the real command is in tests/integration."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.integration.conftest import environment, mpiexec
from xfelproc.drivers import mpi
from xfelproc.errors import ConfigError

SERVE = """
import os, sys, time
from xfelproc.drivers.threads import pin_threads
pin_threads()
from xfelproc.drivers import mpi
from xfelproc.errors import JobLostError
mpi.start(("json",))
{body}
"""
USE = """
driver = mpi.MPIDriver()
futures = [driver.executor().submit(pow, 2, n) for n in range(20)]
print([f.result() for f in futures] == [2**n for n in range(20)], driver.workers, driver.isolated, driver.note)
try:
    driver.executor().submit(int, "x").result()
except ValueError as error:
    print(error)
driver.close()
mpi.finish({code})
sys.exit({code})
"""


def run(ranks: int, body: str, timeout: float = 300) -> tuple[int, str]:
    done = subprocess.run(
        [*mpiexec(), str(ranks), sys.executable, "-c", SERVE.format(body=body)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize("ranks", [1, 3])
def test_compute(ranks: int, code: int) -> None:
    returned, output = run(ranks, USE.format(code=code))
    assert returned == code, output
    assert f"True {max(1, ranks - 1)} {ranks > 1} {'None' if ranks > 1 else 'one MPI rank alone'}" in output
    assert "invalid literal" in output


def test_nobody_waits_for_a_rank_that_ends_before_it_dispatches() -> None:
    returned, output = run(3, "mpi.finish(2); sys.exit(2)")
    assert returned == 2, output


def test_nobody_waits_for_a_task_that_does_not_end() -> None:
    body = """
driver = mpi.MPIDriver()
future = driver.executor().submit(time.sleep, 1000)
while not future.running():
    time.sleep(0.01)
driver.discard()
try:
    driver.executor()
except JobLostError as error:
    print(error, error.exit_code)
driver.close()
mpi.finish(75)
"""
    returned, output = run(3, body)
    assert returned == 75, output
    assert "the same command goes on from here 75" in output


@pytest.mark.parametrize(
    ("variables", "launch"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}, mpi.Launch(2, 4)),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "8"}, mpi.Launch(1, 8)),
    ],
)
def test_launched(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], launch: mpi.Launch | None) -> None:
    for name in list(os.environ):
        if name.startswith(("OMPI_", "PMI", "SLURM_", "MV2_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert mpi.launched() == launch
    mpi.check_launch("mpi")
    if launch is not None:
        with pytest.raises(ConfigError, match="add --driver mpi"):
            mpi.check_launch("pool")


def test_without_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(ConfigError, match=r"xfelproc\[mpi\]"):
        mpi.start()

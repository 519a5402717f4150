"""Faults of an MPI job through the real command: whatever dies, the same command ends complete, with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Result, mpiexec
from tests.integration.test_faults_pool import ROW, TIMEOUT, UNIT, Lab, caught, end, without_frame
from tests.integration.test_resume import assert_same
from xfelproc.io.inflight import InFlight

__all__ = ["without_frame"]

pytestmark = pytest.mark.slow


class MPILab(Lab):
    """The same in three ranks."""

    def arguments(self, *more: object) -> list[str]:
        return [*mpiexec(), "3", *super().arguments(*more), "--driver", "mpi"]

    def rank0(self) -> int:
        return int(json.loads((self.run / "lock").read_text())["pid"])

    def gone(self, pids: list[int]) -> bool:
        """Wait until the processes are gone."""
        limit = time.monotonic() + 120
        while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < limit:
            time.sleep(0.1)
        return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.fixture
def lab(experiment: Path, tmp_path: Path) -> Iterator[MPILab]:
    one = MPILab(experiment, tmp_path)
    yield one
    one.close()


def at_a_frame(record: InFlight) -> bool:
    return record.unit >= 2 and record.row >= 0


def start_held(lab: MPILab, *more: object) -> tuple[subprocess.Popen[str], InFlight]:
    """Start the command; return it with a rank that waits at a frame."""
    lab.hold()
    process = lab.start(*more)
    return process, caught(lab.run, process, at_a_frame)


def complete(lab: MPILab, reference: Path) -> Result:
    """Run the command to its end, nothing held."""
    lab.release()
    result = lab.finish()
    assert result.code == 0, result.output
    assert_same(lab.run, reference)
    return result


def test_rank_killed(lab: MPILab, undisturbed: Path) -> None:
    process, record = start_held(lab)
    rank0 = lab.rank0()
    os.kill(record.worker, signal.SIGKILL)
    result = end(process)
    assert result.code == 137, result.output
    assert lab.gone([rank0, record.worker])
    complete(lab, undisturbed)
    assert not lab.events("quarantine")


def test_rank0_killed(lab: MPILab, undisturbed: Path) -> None:
    process, record = start_held(lab)
    os.kill(lab.rank0(), signal.SIGKILL)
    assert end(process).code == 137
    assert lab.gone([record.worker])
    complete(lab, undisturbed)


def test_job_killed(lab: MPILab, undisturbed: Path) -> None:
    process, record = start_held(lab)
    rank0 = lab.rank0()
    process.kill()  # the ranks see that mpiexec is gone
    lab.release()
    process.communicate()
    assert lab.gone([rank0, record.worker])
    complete(lab, undisturbed)
    assert not lab.events("quarantine")


def test_job_interrupted(lab: MPILab, undisturbed: Path) -> None:
    """mpiexec ends its ranks within half a second, and itself with 1, whatever they say."""
    process, record = start_held(lab)
    rank0 = lab.rank0()
    process.send_signal(signal.SIGINT)
    assert end(process).code != 0
    assert lab.gone([rank0, record.worker])
    complete(lab, undisturbed)
    assert not lab.events("quarantine")


def test_warned(lab: MPILab, undisturbed: Path) -> None:
    """mpiexec passes SIGUSR1 on; what is in flight is finished, and nothing is to blame."""
    process, _ = start_held(lab)
    process.send_signal(signal.SIGUSR1)
    lab.release(0.5)
    result = end(process)
    assert result.code == 75, result.output
    assert result.output.count("the same command goes on from here") == 1
    assert not (lab.run / "lock").exists()
    complete(lab, undisturbed)
    assert not lab.events("suspect_died")


def test_rank_stopped(lab: MPILab, undisturbed: Path) -> None:
    process, record = start_held(lab, f"execution.unit_timeout={TIMEOUT}")
    os.kill(record.worker, signal.SIGSTOP)
    lab.release()
    result = end(process)
    assert result.code == 75, result.output
    assert lab.gone([record.worker])
    complete(lab, undisturbed)
    assert not lab.events("quarantine")


def test_frame_that_ends_its_rank(lab: MPILab, without_frame: Path) -> None:
    lab.set("segfault")
    first = lab.finish()
    assert first.code not in (0, 1, 2), first.output
    result = complete(lab, without_frame)
    assert lab.reasons() == {(UNIT, ROW): "its worker died twice at this frame: left out"}
    assert f"frame {ROW} of unit {UNIT} is left out" in result.output


def test_wrong_job_is_told_once(lab: MPILab, tmp_path: Path) -> None:
    for job, more in ((tmp_path / "missing.toml", ()), (lab.job, ("spots.nonsense=1",))):
        lab.job = job
        result = lab.finish(*more)
        assert result.code == 2, result.output
        assert result.output.count("xfelproc: ") == 1, result.output


def test_ranks_without_the_driver(lab: MPILab) -> None:
    arguments = lab.arguments()[:-1]
    done = subprocess.run([*arguments, "pool"], env=lab.environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stderr.count("add --driver mpi") == 1

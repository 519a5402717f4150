"""What SLURM's commands say, with stubs in their place; the real ones are called in tests/integration/test_slurm.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xfelproc.drivers import slurm
from xfelproc.drivers.slurm import QueueState, SubmittedJob, add_record, parse_sacct, parse_squeue, queue_state, read_record
from xfelproc.errors import QueueError

Stub = Callable[[str, str], None]
SQUEUE = """12|PENDING|Dependency|10:00|0||N/A|
13_0|RUNNING|None|1-02:03:04|2|n[1-4]|2026-01-01T10:00:00|
13_1|PENDING|BeginTime|INVALID|1|(null)|2026-01-01T11:00:00|
14|CANCELLED|None|0:10|0|n1|2026-01-01T10:00:00|
half a line"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "TIMEOUT", 10.0)

    def make(name: str, body: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    make("squeue", "exit 3")
    make("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    return make


def submitted(number: str, task: int | None = None, part: str = "process", when: str = "1") -> SubmittedJob:
    return SubmittedJob(number, task, part, "/script", when)


def test_parse_squeue() -> None:
    found = parse_squeue(SQUEUE)
    assert list(found) == ["12", "13_0", "13_1", "14"]
    running = QueueState("13_0", "process", **found["13_0"])
    assert running.line() == "job 13_0 (process): RUNNING on n[1-4], 1-02:03:04 left, requeued 2 times"
    assert running.is_alive
    waiting = QueueState("12", "merge", **found["12"])
    assert waiting.line() == "job 12 (merge): PENDING (Dependency)"
    assert QueueState("13_1", "process", **found["13_1"]).line() == "job 13_1 (process): PENDING (BeginTime), requeued 1 times"
    assert not QueueState("14", "process", **found["14"]).is_alive


def test_parse_sacct() -> None:
    found = parse_sacct("12|COMPLETED\n13_0|CANCELLED by 1000\n\n14|")
    assert found == {"12": {"state": "COMPLETED", "reason": ""}, "13_0": {"state": "CANCELLED", "reason": "by 1000"}}


def test_record(tmp_path: Path) -> None:
    assert read_record(tmp_path) == []
    add_record(tmp_path, [submitted("12", when="1")])
    add_record(tmp_path, [submitted("13", 4, when="2")])
    add_record(tmp_path, [submitted("14", 4, "merge", when="2")])
    assert [job.name for job in read_record(tmp_path)] == ["12", "13_4", "14_4"]
    assert [job.name for job in slurm.latest(read_record(tmp_path))] == ["13_4", "14_4"]
    (tmp_path / "logs" / "slurm.json").write_text("{")
    assert read_record(tmp_path) == []


def test_state_of_a_run(tmp_path: Path, stub: Stub) -> None:
    assert queue_state(tmp_path) == []
    add_record(tmp_path, [submitted("13", 0), submitted("15", 0, "merge"), submitted("16", 0, "report")])
    stub("squeue", f"echo '{SQUEUE}'")
    stub("sacct", "echo '15_0|CANCELLED by 1000'")
    first, second, third = queue_state(tmp_path)
    assert (first.state, first.restarts) == ("RUNNING", 2)
    assert (second.state, second.reason, second.part) == ("CANCELLED", "by 1000", "merge")
    assert (third.state, third.reason) == ("UNKNOWN", "SLURM does not remember it")


def test_state_where_slurm_says_nothing(tmp_path: Path, stub: Stub) -> None:
    add_record(tmp_path, [submitted("13")])
    stub("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert queue_state(tmp_path)[0].reason == "SLURM does not remember it"
    stub("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert "Unable to contact" in queue_state(tmp_path)[0].reason


def test_state_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    add_record(tmp_path, [submitted("13")])
    (state,) = queue_state(tmp_path)
    assert state.line().startswith("job 13 (process): UNKNOWN (squeue is not on this machine")
    assert not state.is_alive
    assert not slurm.is_installed()


def test_errors_say_what_slurm_said(tmp_path: Path, stub: Stub) -> None:
    stub("sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    with pytest.raises(QueueError, match="invalid partition specified: x"):
        slurm.sbatch(tmp_path / "script")
    stub("sbatch", "echo Submitted")
    with pytest.raises(QueueError, match="answered 'Submitted' instead of the number"):
        slurm.sbatch(tmp_path / "script")
    stub("sbatch", "sleep 5")
    with pytest.raises(QueueError, match=r"did not answer within 0.2 s: is the SLURM controller up"):
        slurm.ask("sbatch", timeout=0.2)


def test_sbatch(tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "3")
    monkeypatch.setenv("SLURM_CONF", "/conf")
    stub("sbatch", f'echo "$SLURM_NTASKS $SLURM_CONF $*" >{tmp_path}/said; echo "a word first"; echo "17;cluster"')
    assert slurm.sbatch(Path("/script"), ["--dependency=afterok:16"]) == "17"
    assert (tmp_path / "said").read_text() == " /conf --parsable --dependency=afterok:16 /script\n"


def test_array_size(stub: Stub) -> None:
    assert slurm.array_size() == 1001
    stub("scontrol", "echo 'MaxArraySize            = 40000'")
    assert slurm.array_size() == 40000


def test_cancel(tmp_path: Path, stub: Stub) -> None:
    slurm.cancel([])
    stub("scancel", f'echo "$@" >{tmp_path}/said')
    slurm.cancel(["12", "13_1"])
    assert (tmp_path / "said").read_text() == "12 13_1\n"

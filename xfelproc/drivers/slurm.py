"""SLURM through its own commands: submit, ask the queue, cancel, and the record a run directory keeps of its jobs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xfelproc.errors import QueueError
from xfelproc.io.atomic import make_folder, write_atomic

TIMEOUT = 60.0
"""Seconds a command of SLURM may take: the controller of a busy cluster is slow, but one that hangs must not hang us."""
RECORD = "slurm.json"
UNKNOWN = "UNKNOWN"
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}
)
"""States that a job does not leave by itself (a requeued one is PENDING)."""
_DEFAULT_ARRAY = 1001
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")
_QUEUE_FIELDS = ("JobArrayID", "State", "Reason", "TimeLeft", "RestartCnt", "NodeList", "StartTime")


@dataclass(frozen=True)
class SubmittedJob:
    """What was submitted for a run: ``task`` is the index in an array, ``part`` what of the run it does."""

    id: str
    task: int | None
    part: str
    script: str
    submitted: str

    @property
    def name(self) -> str:
        """The job as SLURM's commands call it: ``12`` or ``12_3``."""
        return self.id if self.task is None else f"{self.id}_{self.task}"


@dataclass(frozen=True)
class QueueState:
    """What SLURM says of a job; ``UNKNOWN`` with a reason where it says nothing."""

    name: str
    part: str
    state: str
    reason: str = ""
    time_left: str = ""
    restarts: int = 0
    nodes: str = ""
    start: str = ""
    answered: bool = True
    """SLURM was there to be asked; if not, nothing is known of the job."""

    @property
    def is_alive(self) -> bool:
        """Whether the job waits or runs."""
        return self.state not in ENDED and self.state != UNKNOWN

    def line(self) -> str:
        """Return it as one line for a user."""
        text = f"job {self.name} ({self.part}): {self.state}"
        if self.nodes:
            text += f" on {self.nodes}"
        if self.reason:
            text += f" ({self.reason})"
        if self.time_left:
            text += f", {self.time_left} left"
        return text + (f", requeued {self.restarts} times" if self.restarts else "")


def is_installed() -> bool:
    """Return whether SLURM's commands are on this machine."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def ask(*arguments: str, timeout: float = TIMEOUT) -> str:
    """Return what a command of SLURM prints.

    Raises
    ------
    QueueError
        If it is not there, takes too long or fails; with what it said.
    """
    # what a job that this runs in was given is not meant for the jobs it submits
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name in _KEPT}
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout, check=False, env=environment)
    except FileNotFoundError as error:
        raise QueueError(
            f"{arguments[0]} is not on this machine: submit from a login node of the cluster, or look at the script with --dry-run"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise QueueError(
            f"{arguments[0]} did not answer within {timeout:g} s: is the SLURM controller up ('scontrol ping')?"
        ) from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise QueueError(f"{' '.join(arguments)}: {said}")
    return done.stdout


def sbatch(script: Path, options: Sequence[str] = ()) -> str:
    """Submit a script and return the number of its job.

    Raises
    ------
    QueueError
        If SLURM refuses.
    """
    answer = ask("sbatch", "--parsable", *options, str(script)).strip()
    number = answer.splitlines()[-1].partition(";")[0] if answer else ""
    if not number.isdecimal():
        raise QueueError(f"sbatch answered {answer!r} instead of the number of a job: look with squeue whether it was submitted")
    return number


def cancel(names: Iterable[str]) -> None:
    """Cancel jobs (``12`` or ``12_3``).

    Raises
    ------
    QueueError
        If SLURM refuses.
    """
    wanted = list(names)
    if wanted:
        ask("scancel", *wanted)


def array_size() -> int:
    """Return how many tasks an array may have here: SLURM's default where it does not say."""
    try:
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.MULTILINE)
    except QueueError:
        found = None
    return max(1, int(found[1]) if found else _DEFAULT_ARRAY)


def read_record(run: Path) -> list[SubmittedJob]:
    """Return the jobs that were submitted for a run, oldest first; none where no record is or it is damaged."""
    try:
        return [SubmittedJob(**entry) for entry in json.loads((run / "logs" / RECORD).read_text())["jobs"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def add_record(run: Path, jobs: Sequence[SubmittedJob]) -> None:
    """Add jobs to the record of a run.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    make_folder(run / "logs")
    content = {"jobs": [asdict(job) for job in (*read_record(run), *jobs)]}
    write_atomic(run / "logs" / RECORD, json.dumps(content, indent=1).encode())


def latest(jobs: Sequence[SubmittedJob]) -> list[SubmittedJob]:
    """Return the jobs of the last submission: those that were recorded with the newest time."""
    return [job for job in jobs if job.submitted == jobs[-1].submitted] if jobs else []


def queue_state(run: Path) -> list[QueueState]:
    """Return what SLURM says of the jobs last submitted for a run; an empty list where none was.

    What squeue has forgotten sacct is asked for. Nothing is raised: where SLURM does not answer, the reason says so.
    """
    return states(latest(read_record(run)))


def states(jobs: Sequence[SubmittedJob]) -> list[QueueState]:
    """Return what SLURM says of these jobs, in their order."""
    if not jobs:
        return []
    names = [job.name for job in jobs]
    try:
        known = _squeue(names)
    except QueueError as error:
        return [QueueState(job.name, job.part, UNKNOWN, str(error), answered=False) for job in jobs]
    gone = [name for name in names if name not in known]
    if gone:
        known |= _sacct(gone)
    lost = "SLURM does not remember it"
    found = []
    for job in jobs:
        fields = known.get(job.name, {"state": UNKNOWN, "reason": lost})
        found.append(QueueState(job.name, job.part, **fields))
    return found


def parse_squeue(text: str) -> dict[str, dict[str, Any]]:
    """Return the fields of `QueueState` by the job's name, from lines of the fields asked for with ``|`` between them."""
    found: dict[str, dict[str, Any]] = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) < len(_QUEUE_FIELDS):
            continue
        name, state, reason, left, restarts, nodes, start = parts[: len(_QUEUE_FIELDS)]
        found[name] = {
            "state": state,
            "reason": _said(reason),
            "time_left": _said(left) if state == "RUNNING" else "",
            "restarts": int(restarts) if restarts.isdecimal() else 0,
            "nodes": _said(nodes),
            "start": _said(start),
        }
    return found


def _said(text: str) -> str:
    """Return what a field says: SLURM has several words for nothing."""
    return "" if text in ("None", "N/A", "NOT_SET", "INVALID", "UNLIMITED", "(null)") else text


def _squeue(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    fields = ",".join(f"{name}:|" for name in _QUEUE_FIELDS)
    try:
        return parse_squeue(
            ask("squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(names)}", f"--Format={fields}")
        )
    except QueueError as error:
        if "Invalid job id" in str(error):  # asked for one job that is forgotten
            return {}
        raise


def parse_sacct(text: str) -> dict[str, dict[str, Any]]:
    """Return the state of jobs by name, from ``JobID|State`` lines; ``CANCELLED by 1000`` keeps who did it as the reason."""
    found: dict[str, dict[str, Any]] = {}
    for line in text.splitlines():
        name, _, state = line.partition("|")
        word, _, reason = state.strip().partition(" ")
        if word:
            found[name.strip()] = {"state": word, "reason": reason}
    return found


def _sacct(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Ask the accounting, which many clusters and every test cluster lack: what it does not know stays unknown."""
    try:
        return parse_sacct(ask("sacct", "-n", "-P", "-X", f"--jobs={','.join(names)}", "--format=JobID,State"))
    except QueueError:
        return {}

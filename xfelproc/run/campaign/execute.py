"""The runs of a campaign, each a command of its own: one that dies takes nothing with it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xfelproc.errors import ConfigError
from xfelproc.run.campaign.ledger import CampaignFolder, RunState, job_stamp, state_of, write_job, write_record
from xfelproc.run.campaign.plan import CampaignRun
from xfelproc.run.signals import Interrupted, StopFlag

ENDS = (0, 1, 2)
"""Exit codes of runs that ended by themselves; any other one is a death or an interrupt."""
POLL = 0.2
STOP_SECONDS = 60.0
HELD_SECONDS = 7 * 86400


@dataclass(frozen=True)
class Work:
    """A run to do: its name, its job file, and whether what is in its run directory must go first."""

    run: CampaignRun
    restart: bool
    held: bool = False
    """Another command is at work there, such as one that outlived a killed campaign: it is waited for."""


def to_do(runs: Sequence[CampaignRun], states: Sequence[RunState], retry: bool) -> list[Work]:
    """Return the runs that are not done; failed ones only if ``retry``."""
    wanted = {"new", "partial", "changed"} | ({"failed"} if retry else set())
    return [
        Work(run, state.restart) for run, state in zip(runs, states, strict=True) if state.state in wanted and not _hopeless(run)
    ]


def _hopeless(run: CampaignRun) -> bool:
    try:
        run.config()
    except ConfigError:
        return True
    return False


def command(folder: CampaignFolder, work: Work, options: Sequence[str]) -> list[str]:
    """Return the command line of a run."""
    name = work.run.name
    line = [sys.executable, "-m", "xfelproc", "run", str(folder.job(name)), "--output", str(folder.run(name)), *options]
    if work.held:
        line += ["--wait", str(HELD_SECONDS)]
    return [*line, "--restart"] if work.restart else line


def run_here(
    folder: CampaignFolder,
    works: Sequence[Work],
    parallel: int,
    retries: int,
    stop: StopFlag,
    on_end: Callable[[RunState], None],
    options: Sequence[str] = (),
) -> None:
    """Run what is to do on this machine, ``parallel`` at once.

    Raises
    ------
    Interrupted
        After SIGINT or SIGTERM; the runs at work were told, and the same command goes on.
    """
    waiting, flying = deque(works), dict[Future[RunState], Work]()
    with ThreadPoolExecutor(parallel) as threads:
        while waiting or flying:
            while waiting and len(flying) < parallel and not stop.raised:
                work = waiting.popleft()
                flying[threads.submit(_one, folder, work, retries, stop, options)] = work
            done, _ = wait(flying, timeout=POLL, return_when=FIRST_COMPLETED)
            for future in done:
                flying.pop(future)
                on_end(future.result())
            if stop.raised and not flying:
                raise Interrupted


def _one(folder: CampaignFolder, work: Work, retries: int, stop: StopFlag, options: Sequence[str]) -> RunState:
    """Run one command, again if it dies, and record how it ended."""
    config, name = work.run.config(), work.run.name
    stamp = job_stamp(config)
    write_job(folder, name, config)
    attempts = 0
    while True:
        attempts += 1
        begun = time.time()
        code, text = _attempt(command(folder, work, options), folder.log(name), stop)
        if code in ENDS or stop.raised or attempts > retries:
            break
        work = Work(work.run, restart=False)  # what the attempt discarded is gone; what it made stays
    record = end_of(folder, name, code, text)
    if code in ENDS:
        details = {"attempts": attempts, "seconds": round(time.time() - begun, 1)}
        write_record(folder, name, {"stamp": stamp, **record, **details})
    state = state_of(folder, work.run)
    if code not in ENDS and not stop.raised:
        return RunState(name, "failed", f"it died {attempts} times (exit code {code}): see {folder.log(name)}")
    return state


def end_of(folder: CampaignFolder, name: str, code: int, text: str) -> dict[str, Any]:
    """Return what is recorded of an attempt: exit code, message, and how the run's journal ended."""
    from xfelproc.run.journal import read_journal

    ended = ""
    for event in read_journal(folder.run(name)):
        if event["event"] in ("start", "end", "stopped"):
            ended = str(event["event"])
    if code == 2:
        ended = "refused"
    return {"exit_code": code, "message": last_words(text) if code else "", "ended": ended}


def last_words(text: str) -> str:
    """Return the last paragraph that a run printed as its error, or its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    at = max((i for i, line in enumerate(lines) if line.startswith("xfelproc: ")), default=len(lines) - 1)
    return " ".join(lines[at:]).removeprefix("xfelproc: ") if lines else ""


def _attempt(line: Sequence[str], log: Path, stop: StopFlag) -> tuple[int, str]:
    """Run a command with its output in a log; tell it when this process is told to stop."""
    with log.open("ab") as stream:
        begun = stream.tell()
        stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(line[1:])}\n".encode())
        stream.flush()
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        told = 0.0
        while process.poll() is None:
            time.sleep(POLL)
            if stop.raised and not told:
                process.terminate()
                told = time.monotonic()
            if told and time.monotonic() - told > STOP_SECONDS:
                process.kill()
    with log.open("rb") as stream:
        stream.seek(begun)
        return process.returncode, stream.read().decode(errors="replace")

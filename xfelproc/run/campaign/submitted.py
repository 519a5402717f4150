"""The runs of a campaign under SLURM: submitted as one array, waited for, and what became of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from xfelproc.drivers import slurm as queue
from xfelproc.errors import ConfigError
from xfelproc.run.campaign.execute import Work, last_words
from xfelproc.run.campaign.ledger import CampaignFolder, RunState, job_stamp, read_record, state_of, write_job, write_record
from xfelproc.run.campaign.plan import CampaignRun
from xfelproc.run.config import load_config
from xfelproc.run.directory import RunDirectory
from xfelproc.run.journal import read_journal
from xfelproc.run.lock import run_lock
from xfelproc.run.signals import Interrupted, StopFlag
from xfelproc.run.submitting import JOB, RunJob, submit_runs

FIRST_POLL, LONGEST_POLL = 2.0, 30.0
SILENCE = 2
"""Looks at a queue that shows none of the jobs before they are taken to have ended: a requeued job is away for a moment."""


def submit(folder: CampaignFolder, works: Sequence[Work], name: str) -> list[str]:
    """Submit runs as an array; return a line a job.

    Raises
    ------
    ConfigError
        If the runs' sections ``[slurm]`` differ, or one of them is in the queue already.
    QueueError
        If SLURM is not here, or refuses.
    """
    jobs = []
    for work in works:
        config, path = work.run.config(), folder.run(work.run.name)
        write_job(folder, work.run.name, config)
        if work.restart:
            with run_lock(path):
                RunDirectory(path).clear()
        jobs.append(RunJob(config, path))
    return [f"job {done.id} ({done.part}): {len(done.runs)} runs" for done in submit_runs(jobs, name=name)]


def in_queue(folder: CampaignFolder, runs: Sequence[CampaignRun]) -> dict[str, str]:
    """Return the runs that have a job in the queue, and what SLURM says of it; where no run was submitted SLURM is not asked."""
    return _look(folder, runs)[0]


def _look(folder: CampaignFolder, runs: Sequence[CampaignRun]) -> tuple[dict[str, str], str]:
    """Return the same, and why SLURM did not answer, if it did not."""
    recorded = [(run.name, job) for run in runs for job in queue.latest(queue.read_record(folder.run(run.name)))]
    found = queue.states([job for _, job in recorded])
    alive = {name: state.line() for (name, _), state in zip(recorded, found, strict=True) if state.is_alive}
    return alive, next((state.reason for state in found if not state.answered), "")


def wait_for(
    folder: CampaignFolder,
    runs: Sequence[CampaignRun],
    stop: StopFlag,
    on_end: Callable[[RunState], None],
    say: Callable[[str], None],
) -> None:
    """Wait until no job of these runs is in the queue, and record how each run ended.

    Raises
    ------
    Interrupted
        After SIGINT or SIGTERM: the jobs go on, and the same command finds them again.
    """
    waiting, silence, pause, told = {run.name: run for run in runs}, 0, FIRST_POLL, ""
    while waiting:
        alive, unheard = _look(folder, list(waiting.values()))
        if unheard and not told:
            say(f"nothing is known of the jobs, and they are waited for: {unheard}")
        told = unheard
        silence = 0 if alive or unheard else silence + 1
        for name in [name for name in waiting if name not in alive and (alive or silence >= SILENCE)]:
            run = waiting.pop(name)
            reconcile(folder, run)
            on_end(state_of(folder, run))
        end = time.monotonic() + (pause if waiting else 0.0)
        while time.monotonic() < end:
            if stop.raised:
                say("the jobs go on; the same command waits for them again, 'scancel' ends them")
                raise Interrupted
            time.sleep(0.1)
        pause = min(LONGEST_POLL, 1.3 * pause)


def _end(run: Path) -> tuple[bool, int | None]:
    """Return whether the run was ever started, and the exit code that its last start ended with."""
    begun, code = False, None
    for event in read_journal(run):
        if event["event"] == "start":
            begun, code = True, None
        elif event["event"] == "end":
            code = int(event.get("exit_code", 0))
    return begun, code


def reconcile(folder: CampaignFolder, run: CampaignRun) -> None:
    """Record how a run that was submitted ended, if that is not known yet."""
    path = folder.run(run.name)
    submitted = path / "logs" / JOB
    jobs = queue.latest(queue.read_record(path))
    if not submitted.is_file() or not jobs:
        return
    if read_record(folder, run.name).get("submitted") == jobs[-1].submitted:
        return
    try:
        stamp = job_stamp(load_config(submitted))
    except ConfigError:
        return  # it was submitted by another version, whose keys are unknown: its run is judged by its shards
    begun, code = _end(path)
    if not begun and not all(state.answered for state in queue.states(jobs)):
        return  # it may still be waiting
    if begun and code is None:
        return  # cancelled, or its nodes failed: what is there is kept, and the next submission goes on
    outputs = [Path(job.script).parent / f"{job.part}-{job.name}.out" for job in jobs]
    text = "\n".join(output.read_text(errors="replace") for output in outputs if output.is_file())
    record = {"exit_code": code if begun else 2, "ended": "end" if begun else "refused"}
    message = last_words(text) if code or not begun else ""
    write_record(folder, run.name, {"stamp": stamp, **record, "message": message})

"""Runs become jobs of SLURM: one run as a chain of jobs, many as a chain of arrays with one task a run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from xfelproc.drivers import slurm as queue
from xfelproc.errors import ConfigError
from xfelproc.io.atomic import make_folder, write_atomic
from xfelproc.run.config import JobConfig, dump_config
from xfelproc.run.directory import RunDirectory
from xfelproc.run.lineage import changed
from xfelproc.run.slurm import Part, Slurm, Target, parts_of, write_script

JOB = "submitted.toml"
"""The job as it was when it was submitted, in ``logs``: what the user edits meanwhile is for the next submission."""


@dataclass(frozen=True)
class RunJob:
    """A run to submit: its job, with absolute paths, and its run directory."""

    config: JobConfig
    run: Path

    @property
    def target(self) -> Target:
        """What the script is told of it."""
        return Target(self.run / "logs" / JOB, self.run)


@dataclass(frozen=True)
class Submission:
    """A job of SLURM as it was submitted, or as it would be (``id`` is None)."""

    part: str
    runs: tuple[Path, ...]
    script: str
    options: tuple[str, ...]
    id: str | None = None


def submit_runs(jobs: Sequence[RunJob], dry_run: bool = False, name: str | None = None) -> list[Submission]:
    """Submit runs: one as a job, more as arrays with a task a run; parts of a run as jobs that wait for one another.

    Job, script and the jobs' numbers are kept in ``logs`` of each run directory, where `drivers.slurm.queue_state` reads them; the
    script of an array is in that of its first run.

    Parameters
    ----------
    jobs
        Runs with section ``[slurm]`` alike.
    dry_run
        Write nothing, submit nothing, need no SLURM.
    name
        Name of the SLURM jobs; None: that of the run directory, with the number of others.

    Raises
    ------
    ConfigError
        If two runs share a directory, their sections differ, a directory holds something else, or a run has a job in the queue.
    QueueError
        If SLURM is not here, does not answer or refuses.
    """
    runs = [RunJob(job.config, job.run.absolute()) for job in jobs]
    settings = _settings(runs)
    if dry_run:
        return _submit(runs, settings, name, None)
    queue.ask("sbatch", "--version")
    _refuse_busy(runs)
    for job in runs:
        RunDirectory(job.run).create()
        make_folder(job.target.job.parent)
        write_atomic(job.target.job, dump_config(job.config).encode())
    size = queue.array_size()
    when = datetime.now().astimezone().isoformat(timespec="milliseconds")
    done: list[Submission] = []
    for start in range(0, len(runs), size):
        done += _submit(runs[start : start + size], settings, name, when)
    return done


def _settings(jobs: Sequence[RunJob]) -> Slurm:
    if not jobs:
        raise ConfigError("submit: there is no job to submit: name a job file")
    twice = [str(run) for run, count in Counter(job.run for job in jobs).items() if count > 1]
    if twice:
        raise ConfigError(f"submit: two jobs have the run directory {twice[0]}: give their files different names")
    first = jobs[0].config.slurm
    for job in jobs[1:]:
        lines = changed(first.resources(), job.config.slurm.resources(), "slurm.")
        if lines:
            raise ConfigError(
                f"submit: the runs of an array have one section [slurm], and that of {job.run} differs from that of {jobs[0].run}: "
                f"{'; '.join(lines)}: submit them apart, or give --set for all"
            )
    return first


def _refuse_busy(jobs: Sequence[RunJob]) -> None:
    recorded = [(job.run, one) for job in jobs for one in queue.latest(queue.read_record(job.run))]
    found = queue.states([one for _, one in recorded])
    for (run, _), state in zip(recorded, found, strict=True):
        if state.is_alive:
            raise ConfigError(
                f"submit: {run} has a job in the queue already: {state.line()}: wait for it, or 'scancel {state.name}'"
            )


def _submit(jobs: Sequence[RunJob], settings: Slurm, name: str | None, when: str | None) -> list[Submission]:
    """Write and submit the parts of some runs, each waiting for the one before; with no time nothing is done but writing."""
    done: list[Submission] = []
    folder = jobs[0].run / "logs"
    for part in parts_of(settings):
        script = write_script(settings, part, [job.target for job in jobs], _job_name(name, jobs, part), folder)
        options = _dependency(done[-1].id or "JOB", len(jobs)) if done else ()
        path, number = folder / f"{part.name}.sbatch", None
        if when is not None:
            write_atomic(path, script.encode())
            number = queue.sbatch(path, options)
            for task, job in enumerate(jobs):
                index = task if len(jobs) > 1 else None
                queue.add_record(job.run, [queue.SubmittedJob(number, index, part.name, str(path), when)])
        done.append(Submission(part.name, tuple(job.run for job in jobs), script, options, number))
    return done


def _dependency(number: str, n_runs: int) -> tuple[str, ...]:
    """Return sbatch's options: each task of an array waits for the same task of the array before."""
    kind = "aftercorr" if n_runs > 1 else "afterok"
    return (f"--dependency={kind}:{number}", "--kill-on-invalid-dep=yes")


def _job_name(name: str | None, jobs: Sequence[RunJob], part: Part) -> str:
    if name is None:
        name = jobs[0].run.name.removesuffix(".run") + (f"+{len(jobs) - 1}" if len(jobs) > 1 else "")
    return re.sub(r"[^\w.+-]", "_", f"{name}-{part.name}")

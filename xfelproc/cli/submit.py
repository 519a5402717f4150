"""Commands submit and warm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from xfelproc.cli.jobs import default_output
from xfelproc.run.config import load_config
from xfelproc.run.plan import make_plan
from xfelproc.run.recipes import default_opener
from xfelproc.run.submitting import RunJob, Submission, submit_runs


def submit(jobs: Sequence[Path], output: Path | None, overrides: Sequence[str], dry_run: bool, check_input: bool) -> None:
    """Submit job files, or print the scripts."""
    console = Console()
    runs = [RunJob(load_config(job, overrides), _run_folder(job, output, len(jobs) > 1)) for job in jobs]
    if check_input and not dry_run:
        for job in runs:
            manifest = make_plan(job.config, default_opener()).manifest
            console.print(
                f"{job.run}: {manifest.n_frames} frames in {manifest.n_units} work units",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )
    submissions = submit_runs(runs, dry_run=dry_run)
    lines = _scripts(submissions) if dry_run else _told(submissions)
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _run_folder(job: Path, output: Path | None, many: bool) -> Path:
    if output is None:
        return default_output(job)
    return output / default_output(job) if many else output


def _scripts(submissions: Sequence[Submission]) -> list[str]:
    lines = []
    for one in submissions:
        lines += [f"# {'=' * 100}", f"# sbatch {' '.join(one.options)} {one.part}.sbatch".replace("  ", " "), one.script]
    return lines


def _told(submissions: Sequence[Submission]) -> list[str]:
    lines = []
    for one in submissions:
        runs = f" ({len(one.runs)} runs)" if len(one.runs) > 1 else ""
        after = f", after job {one.options[0].rpartition(':')[2]}" if one.options else ""
        lines.append(f"job {one.id}: {one.part}{runs}{after}")
    numbers = " ".join(str(one.id) for one in submissions)
    return [*lines, f"follow it with: xfelproc status {submissions[0].runs[0]}", f"stop it with: scancel {numbers}"]


def warm(job: Path | None, folder: Path | None) -> None:
    """Compile the kernels."""
    from xfelproc.run.warming import warm_cache

    told = warm_cache(None if job is None else load_config(job), folder)
    Console().print(told, soft_wrap=True, highlight=False, markup=False)

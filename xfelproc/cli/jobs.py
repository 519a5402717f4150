"""Commands about jobs: init, check, run, report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from xfelproc.cli.progress import ConsoleReporter, make_console, rates
from xfelproc.errors import ConfigError
from xfelproc.io.atomic import write_atomic
from xfelproc.report.words import indexing, left_out, number, r_split
from xfelproc.report.words import resolution as resolution_words
from xfelproc.run.config import JobConfig, load_config, template
from xfelproc.run.directory import open_run
from xfelproc.run.distance import distance_warnings
from xfelproc.run.plan import Plan, make_plan
from xfelproc.run.recipes import Outcome, default_opener, run_job


def write_template(path: Path) -> None:
    """Write a template; an existing file is kept.

    Raises
    ------
    ConfigError
        If the file is there already.
    """
    if path.exists():
        raise ConfigError(f"{path} exists already: it is not overwritten")
    write_atomic(path, template().encode())
    Console().print(f"wrote {path}: put in your files, then: xfelproc check {path}", soft_wrap=True, highlight=False)


def check_job(job: Path, overrides: Sequence[str], as_json: bool = False) -> None:
    """Validate a job and print what a run would do."""
    found = describe_plan(make_plan(load_config(job, overrides), default_opener()))
    if as_json:
        print(json.dumps({"job": str(job), **found}, indent=1))
        return
    unseen = f" ({found['unseen']} of them not opened: taken for one frame each)" if found["unseen"] else ""
    size = " x ".join(map(str, found["panel_size"]))
    console = Console()
    lines = [
        f"{job}: good",
        f"recipe {found['recipe']}, {found['files']} files{unseen}, {found['frames']} frames in {found['units']} work units",
        f"wavelength {found['wavelength']:.5f} Å, {found['panels']} panels of {size} pixels (fast x slow)",
        *(f"cannot be opened: {broken['reason']}" for broken in found["broken"]),
    ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def default_output(job: Path) -> Path:
    """Return the run directory of a job that names none: in the current folder."""
    return Path(f"{job.stem}.run")


def describe_plan(plan: Plan) -> dict[str, Any]:
    """Return what a run would do, as plain values (wavelength in Å, pixels fast and slow)."""
    sources, experiment = plan.manifest.sources, plan.experiment
    return {
        "recipe": plan.recipe,
        "files": len(sources),
        "unseen": plan.unseen,
        "frames": plan.manifest.n_frames,
        "units": plan.manifest.n_units,
        "wavelength": experiment.beam.wavelength,
        "panels": len(experiment.detector),
        "panel_size": [experiment.detector.stack_shape[2], experiment.detector.stack_shape[1]],
        "broken": [{"path": sources.path(number), "reason": reason} for number, reason in sources.errors.items()],
    }


def run_command(
    job: Path,
    output: Path | None,
    driver: str | None,
    workers: int | None,
    overrides: Sequence[str],
    only: str | None,
    restart: bool,
    patience: float = 0.0,
) -> int:
    """Run a job file; return the exit code."""
    given = [*overrides]
    if driver is not None:
        given.append(f'execution.driver="{driver}"')
    if workers is not None:
        given.append(f"execution.workers={workers}")
    config = load_config(job, given)
    return run_and_print(config, output or default_output(job), only, restart, patience)


def run_and_print(config: JobConfig, output: Path, only: str | None = None, restart: bool = False, patience: float = 0.0) -> int:
    """Run a job with progress on the console; return the exit code."""
    console = make_console()
    with ConsoleReporter(console) as reporter:
        outcome = run_job(config, output, reporter, only=only, restart=restart, patience=patience)
    for line in summary_lines(outcome, output):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return outcome.exit_code


def summary_lines(outcome: Outcome, output: Path) -> list[str]:
    """Return what the user wants to know at the end."""
    directory = open_run(output)
    lines = [rates(outcome.counts)] if outcome.counts else []
    merged = directory.read_json("merge.json")
    if merged and not merged["empty"]:
        overall = merged["overall"]
        lines.append(
            f"merged {merged['n_lattices_used']} lattices in {merged['space_group']} to {overall['d_min']:.2f} Å: "
            f"{overall['n_unique']} reflections, completeness {100 * overall['completeness']:.1f} %, multiplicity "
            f"{overall['multiplicity']:.1f}, CC1/2 {overall['cc_half']:.3f}, R_split {r_split(overall['r_split'], 1, ' %')} "
            f"({overall['n_pairs']} reflections in both halves)"
        )
        if words := left_out(merged["quality"]["left_out"], merged["n_lattices"]):
            lines.append(words)
        if resolution := merged.get("quality", {}).get("resolution"):
            lines.append(resolution_words(resolution))
        if (settings := merged.get("settings")) and settings["ambiguous"]:
            lines.append(indexing(settings))
        lines += group_lines(merged)
    lines += [f"warning: {text}" for text in distance_warnings(directory)]
    lines += [f"{path}" for path in (directory.merged / "merged.mtz", directory.report) if path.is_file()]
    return lines + list(outcome.messages)


def group_lines(merged: Mapping[str, Any]) -> list[str]:
    """Return a line a group that was merged apart, and one a difference."""
    lines = []
    for group in merged.get("groups", ()):
        if overall := group.get("overall"):
            lines.append(
                f"group {group['name']}: {group['n_lattices_used']} lattices, {overall['n_unique']} reflections, "
                f"CC1/2 {overall['cc_half']:.3f}, R_split {r_split(overall['r_split'], 1, ' %')}"
            )
    for one in merged.get("differences", ()):
        overall = one["overall"]
        r_iso, chi2 = number(100 * overall["r_iso"], 1, " %"), number(overall["chi2"], 2)
        lines.append(
            f"{one['group']} less {one['reference']}: {overall['n_pairs']} reflections, R_iso {r_iso}, (ΔI/σ)² {chi2}, "
            f"CC1/2 of ΔI {number(overall['cc_half'], 3)}"
        )
    return lines


def write_report(folder: Path) -> None:
    """Write the report of a run again."""
    directory = open_run(folder)
    run_and_print(load_config(directory.job), folder, only="report")

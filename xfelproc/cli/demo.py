"""Command demo: simulate, process, merge, report."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress

from xfelproc.cli.jobs import run_and_print
from xfelproc.cli.progress import make_console
from xfelproc.run.config import load_config
from xfelproc.simulation import preset, simulate


def run_demo(output: Path, frames: int, driver: str, workers: int | None) -> int:
    """Simulate an experiment (unless it is there), run it and print the figures; return the exit code."""
    console, data = make_console(), output / "data"
    job = data / "job.toml"
    settings = preset("demo", frames=frames)
    marker = data / "settings.json"
    if not (job.is_file() and marker.is_file() and marker.read_text() == settings.model_dump_json()):
        console.print(f"simulating {frames} frames in {data}", highlight=False)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("simulating", total=frames)
            simulate(settings, data, lambda done: bar.update(task, completed=done))
        marker.write_text(settings.model_dump_json())
    overrides = [f'execution.driver="{driver}"', *([f"execution.workers={workers}"] if workers else [])]
    return run_and_print(load_config(job, overrides), output / "run")

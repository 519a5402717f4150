"""`xfelproc simulate`: frames with known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from xfelproc.simulation import PRESETS, preset
from xfelproc.simulation import simulate as simulate_run


def simulate(
    name: Annotated[str, typer.Argument(metavar="PRESET", help=f"what to simulate: {', '.join(PRESETS)}")] = "demo",
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for frames, truth, geometry, cell and job file")] = Path(
        "simulated"
    ),
    frames: Annotated[int | None, typer.Option("--frames", "-n", min=1, help="number of frames (default: the preset's)")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="another seed gives other crystals and frames")] = None,
) -> None:
    """Simulate serial diffraction frames whose truth is known, with a job file that processes them."""
    changes: dict[str, Any] = {key: value for key, value in (("frames", frames), ("seed", seed)) if value is not None}
    settings = preset(name, **changes)
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("simulating", total=settings.frames)
        run = simulate_run(settings, output, lambda done: bar.update(task, completed=done))
    console.print(f"{run.n_frames} frames, {run.n_hits} of them hits, in {run.frames}")
    console.print(f"truth in {run.truth}; process them with: xfelproc run {run.job}", soft_wrap=True)

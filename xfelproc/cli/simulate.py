"""`xfelproc simulate`: frames with known truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from xfelproc.errors import ConfigError
from xfelproc.run.config import apply_overrides
from xfelproc.run.messages import explain
from xfelproc.simulation import PRESETS, SimulationSettings, preset
from xfelproc.simulation import simulate as simulate_run


def changed_preset(name: str, changes: Sequence[str], **named: Any) -> SimulationSettings:
    """Return a preset's settings with changes such as ``raw.darks=20``, then with ``named`` ones.

    Raises
    ------
    ConfigError
        If there is no such preset or setting, or a value is impossible.
    """
    if not changes:
        return preset(name, **named)
    document = apply_overrides({**preset(name).model_dump(exclude_unset=True)}, changes)
    try:
        return SimulationSettings.model_validate({**document, **named})
    except ValidationError as error:
        raise ConfigError(explain(error, SimulationSettings)) from error


def simulate(
    name: Annotated[str, typer.Argument(metavar="PRESET", help=f"what to simulate: {', '.join(PRESETS)}")] = "demo",
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for frames, truth, geometry, cell and job file")] = Path(
        "simulated"
    ),
    frames: Annotated[int | None, typer.Option("--frames", "-n", min=1, help="number of frames (default: the preset's)")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="another seed gives other crystals and frames")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="another setting; may be repeated")
    ] = None,
) -> None:
    """Simulate serial diffraction frames whose truth is known, with a job file that processes them."""
    named = {key: value for key, value in (("frames", frames), ("seed", seed)) if value is not None}
    settings = changed_preset(name, changes or [], **named)
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("simulating", total=settings.frames)
        run = simulate_run(settings, output, lambda done: bar.update(task, completed=done))
    console.print(f"{run.n_frames} frames, {run.n_hits} of them hits, in {run.frames}")
    if run.darks:
        console.print(f"dark frames in {', '.join(map(str, run.darks))}, gain in {run.gain}", soft_wrap=True)
    console.print(f"truth in {run.truth}; process them with: xfelproc run {run.job}", soft_wrap=True)

"""Command consolidate: all tables of a run in one Zarr group."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from xfelproc.run.consolidating import consolidate_run


def run_consolidate(folder: Path, output: Path) -> None:
    """Write the group, with a bar on a terminal."""
    console = Console()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("units", total=None)
        done = consolidate_run(folder, output, lambda n, total: bar.update(task, completed=n, total=total))
    rows = ", ".join(f"{n} {name}" for name, n in done.rows.items())
    console.print(f"wrote {done.path}: {rows}", soft_wrap=True, highlight=False, markup=False)

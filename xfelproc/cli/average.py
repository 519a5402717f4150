"""Command average."""

from __future__ import annotations

from pathlib import Path

from xfelproc.cli.progress import ConsoleReporter, make_console
from xfelproc.run.averaging import FrameChoice, run_average


def average_command(choice: FrameChoice, output: Path, raw: bool) -> None:
    """Average frames with progress on the console; name the files."""
    console = make_console()
    with ConsoleReporter(console) as reporter:
        paths = run_average(choice, output, reporter, raw)
    for path in paths:
        console.print(f"wrote {path}", soft_wrap=True, highlight=False, markup=False)

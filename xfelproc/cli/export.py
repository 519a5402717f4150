"""Command export: results in other programs' formats."""

from __future__ import annotations

import shutil
from pathlib import Path

from xfelproc.errors import ConfigError
from xfelproc.run.directory import open_run

FORMATS = ("mtz",)


def export_run(folder: Path, to: str, output: Path) -> None:
    """Write results of a run.

    Raises
    ------
    ConfigError
        If the format is not known, or the run has nothing of the kind.
    """
    directory = open_run(folder)
    if to not in FORMATS:
        raise ConfigError(f"--to {to}: not known (known: {', '.join(FORMATS)})")
    merged = directory.merged / "merged.mtz"
    if not merged.is_file():
        raise ConfigError(f"{folder}: nothing is merged yet: run its job first")
    shutil.copyfile(merged, output)

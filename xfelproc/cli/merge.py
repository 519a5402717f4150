"""Command merge: a scaled unmerged MTZ, merged as it is."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from xfelproc.run.exporting_merged import without_nan
from xfelproc.run.merging_given import GivenMerged, as_json


def merge(path: Path, output: Path | None, n_shells: int, absences: bool, anomalous: bool, json_wanted: bool) -> None:
    """Merge a file, print the statistics, and write the merged data if a folder is given."""
    found = GivenMerged.of(path, n_shells, absences)
    written = [] if output is None else found.write(output)
    if json_wanted:
        print(json.dumps(without_nan(as_json(found)), indent=1, allow_nan=False))
        return
    file = found.file
    lines = [f"{path}: {file.n_rows} observations of {file.n_batches} batches, {file.group.xhm()}, {file.wavelength:.5f} Å"]
    lines += [f"warning: {text}" for text in found.warnings]
    lines += [*found.lines(anomalous), *(f"wrote {name}" for name in written)]
    console = Console()
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)

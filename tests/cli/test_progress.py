"""What a run prints on the way."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from xfelproc.cli.progress import ConsoleReporter


@pytest.mark.parametrize(
    ("before", "line"),
    [
        (0, "process: 8/8 frames, * frames/s, 6 hits, 5 indexed (75 %, 83 % of them)"),
        (4, "process: 8/8 frames, * frames/s, of 4 new: 2 hits, 2 indexed (50 %, 100 % of them)"),
    ],
)
def test_hits_are_told_of_the_frames_they_were_counted_in(before: int, line: str) -> None:
    text = io.StringIO()
    reporter = ConsoleReporter(Console(file=text))
    reporter.stage("process", before, 8)
    if not before:
        reporter.unit(4, {"INDEXED": 3, "HIT": 1})
    reporter.unit(4, {"INTEGRATED": 2, "BLANK": 2})
    start, end = line.split("*")
    last = text.getvalue().splitlines()[-1]
    assert last.startswith(start)
    assert last.endswith(end)

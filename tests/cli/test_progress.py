"""What a run prints on the way."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from xfelproc.cli import progress
from xfelproc.cli.progress import COMPILING, FEW, ConsoleReporter
from xfelproc.run import compiled


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


def cached(folder: Path, *numbers: int) -> None:
    for number in numbers:
        (folder / f"module.kernel{number}.1.nbc").touch()


def test_a_first_run_says_that_it_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(progress, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    folder, text = tmp_path / "kernels_0123", io.StringIO()
    folder.mkdir()

    def said(words: str) -> bool:
        limit = time.monotonic() + 60
        while words not in text.getvalue() and time.monotonic() < limit:
            time.sleep(0.01)
        return words in text.getvalue()

    with ConsoleReporter(Console(file=text, width=500)):
        cached(folder, *range(FEW))
        assert said(COMPILING)
        cached(folder, FEW)
        assert said(f"{FEW + 1} kernels compiled, ")
    assert text.getvalue().count(COMPILING) == 1


def test_kernels_of_before_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "numba" / "kernels_0123").mkdir(parents=True)
    before = compiled.compiled_since(time.time() + 3600)
    cached(tmp_path / "numba" / "kernels_0123", 0, 1)
    assert before == 0
    assert compiled.compiled_since(time.time() - 60) >= 2

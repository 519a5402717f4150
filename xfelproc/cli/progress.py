"""How a run tells its user how it goes: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from xfelproc.drivers.mpi import launched
from xfelproc.run.compiled import compiled_since

LINE_EVERY = 10.0
"""Seconds between plain lines."""
LOOK_EVERY = 2.0
"""Seconds between looks at the cache of compiled kernels."""
FEW = 5
"""Kernels that are compiled now and then without a word: a job with another method needs some more."""
COMPILING = (
    "compiling the kernels for this machine, once for this installation: it takes a minute or two, and the first frames wait for "
    "it ('xfelproc warm' does it beforehand)"
)


def make_console() -> Console:
    """Return the console; mpiexec gives a rank a terminal of its own, also where what it prints goes to a file."""
    return Console(force_terminal=False) if launched() is not None else Console()


def rates(counts: Counter[str]) -> str:
    """Return hits, indexed frames and failures in words."""
    frames = sum(counts[name] for name in ("FAILED", "BLANK", "HIT", "INDEXED", "INTEGRATED"))
    indexed = counts["INDEXED"] + counts["INTEGRATED"]
    hits = counts["HIT"] + indexed
    text = f"{hits} hits, {indexed} indexed"
    if frames:
        text += f" ({100 * hits / frames:.0f} %, {100 * indexed / max(1, hits):.0f} % of them)"
    return text + (f", {counts['FAILED']} failed" if counts["FAILED"] else "")


class ConsoleReporter:
    """Shows stages, units and messages on a console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._terminal = console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not self._terminal)
        self._task: TaskID | None = None
        self._counts: Counter[str] = Counter()
        self._name, self._done, self._total = "", 0, 0
        self._begun = self._said = time.monotonic()
        self._new = 0
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._watch_compiling, daemon=True, name="compiling")

    def __enter__(self) -> Self:
        self._bar.start()
        self._watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._watch.join()
        self._bar.stop()

    def _watch_compiling(self) -> None:
        """Tell of kernels that are compiled: that it begins, and now and then how many there are."""
        begun, seen, said = time.time(), FEW - 1, 0.0
        while not self._over.wait(LOOK_EVERY):
            count = compiled_since(begun)
            if count <= seen:
                continue
            if not said:
                self.say(COMPILING)
                said = time.monotonic()
            if self._terminal and self._task is not None and not self._new:
                self._bar.update(self._task, rate=f"{count} kernels compiled")
            elif not self._terminal and time.monotonic() - said > LINE_EVERY:
                said = time.monotonic()
                self.say(f"{count} kernels compiled, {time.time() - begun:.0f} s")
            seen = count

    def stage(self, name: str, done: int, total: int) -> None:
        """A stage begins."""
        self._counts.clear()
        self._name, self._done, self._total, self._new = name, done, total, 0
        self._begun = self._said = time.monotonic()
        if self._terminal:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(name, total=total, completed=done, rate="")
        already = f", {done} of them done before" if done else ""
        self.say(f"{name}: {total} frames{already}")

    def unit(self, frames: int, counts: dict[str, int]) -> None:
        """A unit is done."""
        self._counts.update(counts)
        self._done += frames
        self._new += frames
        now = time.monotonic()
        rate = self._new / max(1e-9, now - self._begun)
        new = "" if self._new == self._done else f"of {self._new} new: "  # what was done before was not counted here
        text = f"{rate:.1f} frames/s" + (f", {new}{rates(self._counts)}" if self._counts else "")  # folds over frames count nothing
        if self._terminal and self._task is not None:
            self._bar.update(self._task, completed=self._done, rate=text)
        elif now - self._said > LINE_EVERY or self._done == self._total:
            self._said = now
            self.say(f"{self._name}: {self._done}/{self._total} frames, {text}")

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

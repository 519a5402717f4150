"""Command status: what the shards and the journal say, once or until the run ends."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from xfelproc.cli.progress import rates
from xfelproc.drivers.slurm import queue_state
from xfelproc.report.words import r_split
from xfelproc.run.watching import Watch

ON_TERMINAL, IN_LINES = 1.0, 10.0
"""Seconds between looks when a run is followed."""
WORKERS_SHOWN = 8
REPEAT = 12
"""A plain line that says the same as the one before is left out, but not more often than so many times."""


def show_status(folder: Path, as_json: bool) -> None:
    """Print how far a run is."""
    if _only_queued(Console(), folder, as_json):
        return
    watch = Watch(folder)
    watch.refresh()
    _print(Console(), watch, as_json)


def follow(folder: Path, as_json: bool, every: float | None) -> None:
    """Show how a run goes on until it ends; Ctrl-C leaves, and does nothing to the run."""
    console = Console()
    if _only_queued(console, folder, as_json):
        return
    watch = Watch(folder)
    live = console.is_terminal and not as_json
    seconds = every if every is not None else ON_TERMINAL if live else IN_LINES
    try:
        watch.refresh()
        if not (watch.running or watch.waiting):
            console.print("nothing is at work on this run", highlight=False) if not as_json else None
        elif live:
            _follow_live(console, watch, seconds)
        else:
            _follow_lines(console, watch, as_json, seconds)
        _print(console, watch, as_json)
    except KeyboardInterrupt:
        return


def _follow_live(console: Console, watch: Watch, seconds: float) -> None:
    with Live(panel(watch.collect()), console=console, auto_refresh=False, transient=True) as display:
        while watch.running or watch.waiting:
            time.sleep(seconds)
            watch.refresh()
            display.update(panel(watch.collect()), refresh=True)


def _follow_lines(console: Console, watch: Watch, as_json: bool, seconds: float) -> None:
    said, silent = "", 0
    while watch.running or watch.waiting:
        status = watch.collect()
        line = json.dumps(status, default=str) if as_json else one_line(status)
        if line != said or silent >= REPEAT:
            print(line, flush=True)
            said, silent = line, 0
        else:
            silent += 1
        time.sleep(seconds)
        watch.refresh()


def _print(console: Console, watch: Watch, as_json: bool) -> None:
    status = watch.collect()
    if as_json:
        print(json.dumps(status, indent=1, default=str))
        return
    for line in lines_of(status):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _only_queued(console: Console, folder: Path, as_json: bool) -> bool:
    """Return whether a run was submitted and has not begun; if so that is all there is to say, and it is said."""
    jobs = [] if (folder / "manifest.h5").exists() else queue_state(folder)
    if jobs and as_json:
        print(json.dumps({"run": str(folder), "state": "submitted", "queue": [asdict(job) for job in jobs]}, indent=1))
    for line in (f"{folder}: submitted, not begun", *(f"SLURM {job.line()}" for job in jobs)) if jobs and not as_json else ():
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return bool(jobs)


def _share(status: Mapping[str, Any]) -> str:
    done, total = status["frames"]["done"], status["frames"]["total"]
    return f"{done} of {total} frames in {status['units']['done']} of {status['units']['total']} units"


def _speed(status: Mapping[str, Any]) -> str:
    recent, mean = status["frames_per_second"]["recent"], status["frames_per_second"]["mean"]
    parts = []
    if status["seconds_left"] is not None and recent is not None:
        parts.append(f"{recent:.1f} frames/s of late")
    if mean is not None:
        parts.append(f"{mean:.1f} frames/s in the mean")
    if status["seconds_left"] is not None:
        parts.append(f"{duration(status['seconds_left'])} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def one_line(status: Mapping[str, Any]) -> str:
    """Return where a run is, in a line."""
    parts = [f"{status['stage']['name'] or 'start'}: {_share(status)}", rates(Counter(status["counts"])), _speed(status)]
    at_work = len(status["workers"]["at_work"])
    parts.append(f"{at_work} workers at a unit" if at_work else "")
    return "; ".join(filter(None, parts))


def lines_of(status: Mapping[str, Any]) -> list[str]:
    """Return all that is known, in lines."""
    lines = [
        f"{status['run']}: {status['state']}{_why(status)}",
        _share(status),
        *status["remarks"],
        rates(Counter(status["counts"])),
    ]
    if speed := _speed(status):
        lines.append(speed)
    if status["cpu_ms_a_frame"] is not None:
        lines.append(f"{status['cpu_ms_a_frame']:.1f} ms CPU a frame, in the median unit")
    lines += [f"failed: {count} x {reason}" for reason, count in status["failures"].items()]
    lines += _trouble(status)
    if status["holder"]:
        lines.append(f"process {status['holder']['pid']} on {status['holder']['host']} is at work, stage {status['stage']['name']}")
        lines += _workers(status)
    lines += [f"SLURM {line}" for line in status["queue_lines"]]
    if merged := status["merged"]:
        lines.append(_merged(merged))
    if status["state"] == "done" and status["report"]:
        lines.append(status["report"])
    return lines


def _why(status: Mapping[str, Any]) -> str:
    return f" ({status['stopped_by']}); the same command goes on" if status["stopped_by"] else ""


def _trouble(status: Mapping[str, Any]) -> list[str]:
    lost = status["workers"]["lost"]
    lines = [f"workers were lost {lost} times; units they were at are done again"] if lost else []
    for suspect in status["suspects"]:
        where = f"frame {suspect['row']} of unit {suspect['unit']}" if suspect["row"] >= 0 else f"unit {suspect['unit']}"
        lines.append(f"suspect: {where} of {suspect['stage']}, its worker {suspect['how']} ({suspect['deaths']}): it is run alone")
    return lines + [f"left out: frame {q['row']} of unit {q['unit']} ({q['reason']})" for q in status["quarantined"]]


def _workers(status: Mapping[str, Any]) -> list[str]:
    now, workers = time.time(), status["workers"]["at_work"]
    lines = [f"{len(workers)} of {status['workers']['asked_for']} workers are at a unit; longest at it:"] if workers else []
    for worker in workers[:WORKERS_SHOWN]:
        number = worker["unit"]
        where = f"unit {number}, frame {worker['row']}" if worker["row"] >= 0 else f"unit {number}, between frames"
        if ":" in worker["stage"]:  # a fold
            where = f"part {number}"
        state = "" if worker["alive"] is not False else ", dead"
        at_frame = f", at this frame for {duration(now - worker['frame_since'])}" if worker["row"] >= 0 else ""
        lines.append(
            f"  {worker['host']} {worker['pid']}: {worker['stage']} {where}, for {duration(now - worker['since'])}{at_frame}{state}"
        )
    return lines


def _merged(overall: Mapping[str, Any]) -> str:
    completeness, split = 100 * overall["completeness"], r_split(overall["r_split"], 1, " %")
    return (
        f"merged to {overall['d_min']:.2f} Å: {overall['n_unique']} reflections, completeness {completeness:.1f} %, "
        f"multiplicity {overall['multiplicity']:.1f}, CC1/2 {overall['cc_half']:.3f}, R_split {split} "
        f"({overall['n_pairs']} reflections in both halves)"
    )


def panel(status: Mapping[str, Any]) -> RenderableType:
    """Return what is shown on a terminal."""
    frames, grid = status["frames"], Table.grid(padding=(0, 2))
    grid.add_row("frames", Text(_share(status)))
    grid.add_row("", Text(rates(Counter(status["counts"]))))
    grid.add_row("speed", Text(_speed(status) or "not known yet"))
    for reason, count in status["failures"].items():
        grid.add_row("failed", Text(f"{count} x {reason}"))
    for text in (*status["remarks"], *_trouble(status), *status["queue_lines"], *status["warnings"][-3:]):
        grid.add_row("note", Text(text, style="yellow"))
    title = Text(f"{status['run']}  {status['state']}, stage {status['stage']['name'] or 'start'}", style="bold")
    bar = Table.grid(expand=True)
    bar.add_row(ProgressBar(total=max(1, frames["total"]), completed=frames["done"]))
    return Group(title, bar, grid, *(Text(line) for line in _workers(status)), Text("Ctrl-C leaves; the run goes on", style="dim"))

"""Command campaign: many runs, one file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from rich.console import Console

from xfelproc.io.atomic import write_atomic
from xfelproc.report.campaign import HEADS, CampaignRow, build_campaign_report, figures_of, shortened
from xfelproc.run.campaign.campaign import Campaign, count_frames, estimate_cost, process
from xfelproc.run.campaign.execute import Work, to_do
from xfelproc.run.campaign.groups import GroupState, merge_groups, read_groups, write_groups
from xfelproc.run.campaign.ledger import RunState
from xfelproc.run.lock import run_lock
from xfelproc.run.signals import StopFlag

Say = Callable[[str], None]


def campaign_command(path: Path, plan: bool, show: bool, retry: bool, as_json: bool, options: Sequence[str]) -> int:
    """Do what a campaign file asks for; return the exit code."""
    campaign, console = Campaign.load(path), Console()

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    states = campaign.states()
    if show:
        show_states(campaign, states, as_json, say)
        return 0
    works = to_do(campaign.runs, states, retry)
    announce(campaign, states, works, say)
    merging = {state.name for state in states if state.merging_left}
    frames_left = [work for work in works if work.run.name not in merging]
    if frames_left:
        tell_cost(campaign, frames_left, say)
    if plan:
        return 0
    campaign.folder.create()
    stop = StopFlag(patient=True)
    with run_lock(campaign.folder.path, on_lost=stop.set), stop.installed():  # the runs at work are told, and end in their own time
        process(campaign, works, stop, lambda state: say(line_of(state)), say, options)
        states = campaign.states()
        groups = merge_groups(campaign, states, stop, say)
    write_groups(campaign, groups)
    report = write_report(campaign, states, groups)
    for line in table_lines(rows_of(campaign, states)) + table_lines(group_rows(campaign, groups)):
        say(line)
    say(str(report))
    ends = [state.state for state in states] + [group.state for group in groups]
    return 0 if set(ends) == {"done"} else 1


def announce(campaign: Campaign, states: Sequence[RunState], works: Sequence[Work], say: Say) -> None:
    """Say what there is and what will be done."""
    counts = Counter(state.state for state in states)
    found = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
    say(f"{campaign.name}: {len(states)} runs ({found}), {len(works)} to do")
    for state in states:
        if state.state in ("failed", "changed", "active"):
            say(line_of(state))
        if state.merging_left:
            say(f"{state.name}: its frames are done: merging alone is left")


def tell_cost(campaign: Campaign, works: Sequence[Work], say: Say) -> None:
    """Count the frames of what is to do and estimate its core-hours from a sample."""
    frames, problems = count_frames(works)
    for name, problem in problems.items():
        say(f"{name}: cannot be planned: {problem}")
    say(f"{sum(frames.values())} frames in {len(frames)} runs")
    if not campaign.settings.sample_runs or not frames:
        return
    cost = estimate_cost(campaign, works, frames)
    for name, problem in cost.problems.items():
        say(f"{name}: its sample could not be processed: {problem}")
    if cost.core_hours is not None and cost.spread is not None:
        low, high = cost.spread
        paces = ", ".join(f"{name} {1e3 * s:.1f}" for name, s in cost.seconds_a_frame.items())
        say(f"about {cost.core_hours:.2g} core-hours ({low:.2g} to {high:.2g}); CPU ms a frame: {paces}")


def line_of(state: RunState) -> str:
    """Return a run's state as a line."""
    counts = state.counts
    indexed = counts["INDEXED"] + counts["INTEGRATED"]
    figures = f", {state.frames} frames, {indexed} indexed" if state.frames else ""
    why = f": {state.message}" if state.message else ""
    return f"{state.name}: {state.state}{figures}{why}"


def rows_of(campaign: Campaign, states: Sequence[RunState]) -> list[CampaignRow]:
    """Return the rows of the runs' table."""
    rows = []
    for run, state in zip(campaign.runs, states, strict=True):
        link = _link(campaign, campaign.folder.run(run.name))
        rows.append(
            CampaignRow(state.name, state.state, state.message, state.frames, state.counts, state.merged, link, run.columns)
        )
    return rows


def group_rows(campaign: Campaign, groups: Sequence[GroupState]) -> list[CampaignRow]:
    """Return the rows of the groups' table."""
    rows = []
    for g in groups:
        link = _link(campaign, campaign.folder.group(g.name))
        rows.append(CampaignRow(g.name, g.state, g.message, g.frames, g.counts, g.merged, link, {"runs": str(len(g.runs))}))
    return rows


def _link(campaign: Campaign, folder: Path) -> str | None:
    """Return where the report in a folder is, as seen from the campaign's; None if there is none."""
    page = folder / "report.html"
    return str(page.relative_to(campaign.folder.path)) if page.is_file() else None


def table_lines(rows: Sequence[CampaignRow]) -> list[str]:
    """Return a table as lines of text."""
    if not rows:
        return []
    cells = [("", "state", *HEADS), *((row.name, row.state, *figures_of(row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    whys = ["", *(shortened(row.message) for row in rows)]
    lines = []
    for line, why in zip(cells, whys, strict=True):
        left = [text.ljust(width) for text, width in zip(line[:2], widths[:2], strict=True)]
        right = [text.rjust(width) for text, width in zip(line[2:], widths[2:], strict=True)]
        lines.append("  ".join([*left, *right, why]).rstrip())
    return lines


def show_states(campaign: Campaign, states: Sequence[RunState], as_json: bool, say: Say) -> None:
    """Print where the runs and groups stand."""
    groups = read_groups(campaign)
    if as_json:
        print(json.dumps({"runs": [_plain(s) for s in states], "groups": [_plain(g) for g in groups]}, indent=1))
        return
    for line in table_lines(rows_of(campaign, states)) + table_lines(group_rows(campaign, groups)):
        say(line)


def _plain(state: RunState | GroupState) -> dict[str, object]:
    return {entry.name: getattr(state, entry.name) for entry in fields(state)}


def write_report(campaign: Campaign, states: Sequence[RunState], groups: Sequence[GroupState]) -> Path:
    """Write the overall report; return where it is."""
    path = campaign.folder.path / "campaign.html"
    notes = [f"{s.name}: {s.message}" for s in states if s.state == "failed"]
    page = build_campaign_report(campaign.name, rows_of(campaign, states), group_rows(campaign, groups), notes)
    write_atomic(path, page.encode())
    return path

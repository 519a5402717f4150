"""Runs merged together by group."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from xfelproc.algorithms.merging import Merge
from xfelproc.errors import ConfigError, DataError
from xfelproc.io.atomic import make_folder, write_atomic
from xfelproc.io.inflight import clear_inflight
from xfelproc.models.experiment import Detector
from xfelproc.run.campaign.campaign import Campaign
from xfelproc.run.campaign.group_report import GroupOfRuns, detector_of, write_group_report
from xfelproc.run.campaign.ledger import CampaignFolder, RunState
from xfelproc.run.campaign.plan import CampaignRun
from xfelproc.run.config import JobConfig
from xfelproc.run.directory import RunDirectory
from xfelproc.run.folding import Gathering
from xfelproc.run.geometry import result_stage
from xfelproc.run.journal import Journal
from xfelproc.run.lock import run_lock
from xfelproc.run.merging import FoundShards, MergeInput, files_of, merge_inputs, merge_lineage, recorded_lineage
from xfelproc.run.recipes import default_opener, make_driver
from xfelproc.run.signals import StopFlag
from xfelproc.run.target import MergingGroup, recorded_target

RECORD = "group.json"


@dataclass(frozen=True)
class GroupState:
    """What became of a group: as of a run, with the names of the runs that are in its merged data and of those that miss."""

    name: str
    state: str
    message: str = ""
    runs: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    frames: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    merged: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Member:
    run: CampaignRun
    state: RunState
    config: JobConfig


def merge_groups(campaign: Campaign, states: Sequence[RunState], stop: StopFlag, say: Callable[[str], None]) -> list[GroupState]:
    """Merge each group whose runs are others than those it was merged from; return what became of all.

    The lattices of all runs that are done are scaled together, the runs in natural order of their names.
    """
    known = {state.name: state for state in states}
    found = []
    for name, runs in campaign.groups().items():
        members = [_Member(run, known[run.name], run.config()) for run in runs if known[run.name].state == "done"]
        missing = tuple(run.name for run in runs if known[run.name].state != "done")
        found.append(_merge_group(campaign.folder, name, members, missing, stop, say))
    return found


def _merge_group(
    folder: CampaignFolder,
    name: str,
    members: Sequence[_Member],
    missing: tuple[str, ...],
    stop: StopFlag,
    say: Callable[[str], None],
) -> GroupState:
    if not members:
        return GroupState(name, "failed", "none of its runs is done", missing=missing)
    try:
        merged, message = _merged(folder, name, members, stop, say)
    except (ConfigError, DataError) as error:
        return GroupState(name, "failed", str(error), missing=missing)
    counts: Counter[str] = Counter()
    for member in members:
        counts.update(member.state.counts)
    if missing:
        message = f"without {', '.join(missing)}" + (f"; {message}" if message else "")
    state = GroupState(
        name,
        "failed" if merged is None else "partial" if missing else "done",
        message,
        tuple(member.run.name for member in members),
        missing,
        sum(member.state.frames for member in members),
        counts,
        merged,
    )
    return state


def _merged(
    folder: CampaignFolder, name: str, members: Sequence[_Member], stop: StopFlag, say: Callable[[str], None]
) -> tuple[dict[str, Any] | None, str]:
    """Return the figures of a group, merged anew unless it was merged from the same shards before, and a word on it."""
    config, group = members[0].config, _symmetry(folder, members)
    settings, directory = config.section("merge"), RunDirectory(folder.group(name))
    inputs = [_input(RunDirectory(folder.run(member.run.name)), member) for member in members]
    shards = FoundShards.of(inputs)
    with ExitStack() as stack:
        directory.create()
        stack.enter_context(run_lock(directory.path, on_lost=stop.set))
        for path in (directory.gather, directory.merged):
            make_folder(path)
        clear_inflight(directory.path)  # of a merging that was killed: they would be taken for workers that are late
        journal = Journal(directory.path)
        stack.callback(journal.close)
        execution = config.execution
        if execution.driver == "mpi":  # the runs' ranks are gone
            execution = execution.model_copy(update={"driver": "pool"})
        driver = make_driver(execution, directory.path / "logs")
        stack.callback(driver.close)
        gathering = Gathering(directory, execution, driver, journal, stop, lambda word, details: journal.write(word, **details))
        lineage = merge_lineage(gathering, shards, settings, group)
        record = directory.read_json(RECORD)
        if record is None or record["lineage"] != lineage or not _is_whole(directory, record, settings):
            say(f"{name}: merging {len(members)} runs")
            directory.report.unlink(missing_ok=True)
            detector = _detector(folder, members[0]) if settings.exclude_panels or settings.panel_edge else None
            found = merge_inputs(gathering, shards, settings, group, directory.merged, detector=detector)
            record = {"lineage": recorded_lineage(lineage, found or {}), "found": found}
            directory.write_json(RECORD, record)
        _report(gathering, name, folder, members, shards, record["found"], say)
    return _figures(record["found"])


def _detector(folder: CampaignFolder, member: _Member) -> Detector:
    return detector_of(RunDirectory(folder.run(member.run.name)), member.config, default_opener())


def _is_whole(directory: RunDirectory, record: Mapping[str, Any], settings: Merge) -> bool:
    names = [*files_of(settings), *(record["found"] or {}).get("group_files", ())]
    return all((directory.merged / name).is_file() for name in names)


def _report(
    gathering: Gathering,
    name: str,
    folder: CampaignFolder,
    members: Sequence[_Member],
    shards: FoundShards,
    found: Mapping[str, Any] | None,
    say: Callable[[str], None],
) -> None:
    """Write the group's report, unless it is there or nobody wants it; one that cannot be written takes no merged data along."""
    if found is None or gathering.directory.report.is_file():
        return
    runs = [RunDirectory(folder.run(member.run.name)) for member in members]
    group = GroupOfRuns(name, runs, [member.config for member in members], shards, found)
    if group.wanted:
        try:
            write_group_report(gathering, group, default_opener())
        except DataError as error:
            say(f"{name}: no report: {error}")


def _input(directory: RunDirectory, member: _Member) -> MergeInput:
    n_units, stage = directory.read_manifest().n_units, result_stage(member.config, directory)
    return MergeInput(directory.path, n_units, stage, member.run.columns)


def _figures(found: Mapping[str, Any] | None) -> tuple[dict[str, Any] | None, str]:
    if found is None:
        return None, "nothing to merge: no lattice has a usable observation"
    return {**found["overall"], "space_group": found["space_group"]}, "; ".join(found["warnings"])


def _symmetry(folder: CampaignFolder, members: Sequence[_Member]) -> MergingGroup:
    """Return the space group of a group's runs.

    Raises
    ------
    ConfigError
        If they differ, in space group or in section ``[merge]``.
    """
    found: dict[tuple[str, bool], str] = {}
    for member in members:
        config, name = member.config, member.run.name
        given = config.section("merge").space_group or config.section("index").space_group
        target = recorded_target(config, RunDirectory(folder.run(name)))
        found.setdefault((given or target.space_group or "P 1", given is None), name)
        if config.section("merge") != members[0].config.section("merge"):
            raise ConfigError(f"section [merge] of run {name} is another than that of {members[0].run.name}: make them alike")
    if len(found) > 1:
        shown = ", ".join(f"{group} in {name}" for (group, _), name in found.items())
        raise ConfigError(f"its runs have different space groups ({shown}): give merge.space_group, or group by another column")
    return MergingGroup(*next(iter(found)))


def write_groups(campaign: Campaign, groups: Sequence[GroupState]) -> None:
    """Publish what became of the groups."""
    content = [asdict(replace(group, counts=Counter())) | {"counts": dict(group.counts)} for group in groups]
    write_atomic(campaign.folder.path / "groups" / "groups.json", json.dumps(content, indent=1).encode())


def read_groups(campaign: Campaign) -> list[GroupState]:
    """Return what was merged last; nothing where that is not told."""
    try:
        content = json.loads((campaign.folder.path / "groups" / "groups.json").read_text())
        return [
            GroupState(**{**one, "counts": Counter(one["counts"]), "runs": tuple(one["runs"]), "missing": tuple(one["missing"])})
            for one in content
        ]
    except (OSError, ValueError, TypeError, KeyError):
        return []

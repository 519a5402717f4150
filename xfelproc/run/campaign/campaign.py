"""A campaign from its file to merged groups and a report: the same command goes on from whatever is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xfelproc.errors import ConfigError
from xfelproc.run.campaign.estimate import Estimate, estimate
from xfelproc.run.campaign.execute import Work, run_here
from xfelproc.run.campaign.ledger import CampaignFolder, RunState, job_stamp, state_of, write_record
from xfelproc.run.campaign.plan import CampaignRun, expand
from xfelproc.run.campaign.settings import CampaignSettings, load_campaign
from xfelproc.run.campaign.submitted import in_queue, reconcile, submit, wait_for
from xfelproc.run.plan import make_plan
from xfelproc.run.recipes import default_opener
from xfelproc.run.signals import StopFlag


@dataclass(frozen=True)
class Campaign:
    """A campaign: its settings, folder and runs."""

    settings: CampaignSettings
    folder: CampaignFolder
    runs: tuple[CampaignRun, ...]
    name: str

    @classmethod
    def load(cls, path: Path) -> Campaign:
        """Return the campaign of a file.

        Raises
        ------
        ConfigError
            If it is wrong.
        """
        settings = load_campaign(path)
        runs = tuple(expand(settings))
        for run in runs:
            run.group(settings.group_by)
        return cls(settings, CampaignFolder(settings.output), runs, settings.name or path.stem)

    def states(self) -> list[RunState]:
        """Return where each run stands; those with a job in SLURM's queue are active."""
        queued = in_queue(self.folder, self.runs)
        states = []
        for run in self.runs:
            if run.name not in queued:
                reconcile(self.folder, run)
            state = state_of(self.folder, run)
            states.append(replace(state, state="active", message=queued[run.name]) if run.name in queued else state)
        return states

    def groups(self) -> dict[str, list[CampaignRun]]:
        """Return the runs of each group, in the order of the runs; none if nothing is to be merged together."""
        found: dict[str, list[CampaignRun]] = {}
        if self.settings.group_by:
            for run in self.runs:
                values = run.group(self.settings.group_by)
                name = "_".join(f"{key}-{value}" for key, value in zip(self.settings.group_by, values, strict=True))
                found.setdefault(name.replace("/", "_"), []).append(run)
        return found


def count_frames(works: Sequence[Work]) -> tuple[dict[str, int], dict[str, str]]:
    """Return how many frames each run has, and of those that cannot be planned why."""
    frames: dict[str, int] = {}
    problems: dict[str, str] = {}
    opener = default_opener()
    for work in works:
        try:
            frames[work.run.name] = make_plan(work.run.config(), opener).manifest.n_frames
        except ConfigError as error:
            problems[work.run.name] = str(error)
    return frames, problems


def estimate_cost(campaign: Campaign, works: Sequence[Work], frames: dict[str, int]) -> Estimate:
    """Return what the runs that are to do will cost."""
    settings = campaign.settings
    runs = [work.run for work in works]
    return estimate(campaign.folder.path / "estimate", runs, frames, settings.sample_runs, settings.sample_frames)


def process(
    campaign: Campaign,
    works: Sequence[Work],
    stop: StopFlag,
    on_end: Callable[[RunState], None],
    say: Callable[[str], None],
    options: Sequence[str] = (),
) -> None:
    """Do what is to do, here or under SLURM.

    Raises
    ------
    Interrupted
        After SIGINT or SIGTERM.
    """
    settings = campaign.settings
    if settings.where == "here":
        taken = {work.run.name for work in works}
        states = zip(campaign.runs, campaign.states(), strict=True)
        held = [Work(run, False, held=True) for run, state in states if state.state == "active" and run.name not in taken]
        for work in held:
            say(f"{work.run.name}: at work already: it is waited for, after the others")
        run_here(campaign.folder, [*works, *held], settings.parallel, settings.retries, stop, on_end, options)
        return
    queued = in_queue(campaign.folder, campaign.runs)
    waiting = [run for run in campaign.runs if run.name in queued]
    good: list[Work] = []
    for work in works:
        try:
            make_plan(work.run.config(), default_opener())
        except ConfigError as error:
            on_end(refuse(campaign.folder, work.run, str(error)))
        else:
            good.append(work)
    if good:
        for line in submit(campaign.folder, good, campaign.name):
            say(line)
    wait_for(campaign.folder, [*waiting, *(work.run for work in good)], stop, on_end, say)


def refuse(folder: CampaignFolder, run: CampaignRun, message: str) -> RunState:
    """Record that a run cannot be planned: it is not submitted."""
    content = {"stamp": job_stamp(run.config()), "exit_code": 2, "message": message, "ended": "refused"}
    write_record(folder, run.name, content)
    return state_of(folder, run)

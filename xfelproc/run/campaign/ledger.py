"""What became of each run of a campaign. The run directories say what is done; a small file beside each says how it ended."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from xfelproc.drivers import slurm as queue
from xfelproc.errors import ConfigError, DataError, RunDirectoryError
from xfelproc.io.atomic import make_folder, write_atomic
from xfelproc.io.manifest import State, file_state
from xfelproc.models.conventions import FrameStatus
from xfelproc.run.campaign.plan import CampaignRun
from xfelproc.run.config import INPUT_FILES, JobConfig, dump_config, load_document
from xfelproc.run.directory import RunDirectory, relevant
from xfelproc.run.journal import read_journal
from xfelproc.run.lineage import changed, digest, file_identity, versions
from xfelproc.run.lock import holder

OWN_SECTIONS = ("execution", "slurm", "report")
"""Sections whose change asks for no new run."""


@dataclass(frozen=True)
class CampaignFolder:
    """Paths of a campaign."""

    path: Path

    def run(self, name: str) -> Path:
        """Run directory of a run."""
        return self.path / "runs" / name

    def job(self, name: str) -> Path:
        """Job file of a run."""
        return self.path / "jobs" / f"{name}.toml"

    def record(self, name: str) -> Path:
        """How its last attempt ended."""
        return self.path / "state" / f"{name}.json"

    def log(self, name: str) -> Path:
        """What its attempts printed."""
        return self.path / "logs" / f"{name}.log"

    def group(self, name: str) -> Path:
        """Merged data of a group."""
        return self.path / "groups" / name

    def create(self) -> None:
        """Make the folders.

        Raises
        ------
        OutputError
            If they cannot be made.
        """
        for name in ("runs", "jobs", "state", "logs", "groups"):
            make_folder(self.path / name)


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    ``state`` is one of new (nothing done), done, partial (some of its units are done), failed (it ended with an error that the
    same command would meet again), changed (its job is another than that of its results) or active (at work, or queued).
    """

    name: str
    state: str
    message: str = ""
    frames: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    merged: dict[str, Any] | None = None
    seconds: float = 0.0
    """CPU time of its frames."""
    restart: bool = False
    """Its results are of other parameters and must be made again."""

    @property
    def merging_left(self) -> bool:
        """All its frames are done, but not merged as its job says."""
        done = sum(self.counts[status.name] for status in FrameStatus)
        return self.state == "partial" and 0 < self.frames <= done


def job_stamp(config: JobConfig) -> str:
    """Return the hash of what a run's results depend on: the job, and the files it names as they are now."""
    content = {k: v for k, v in config.resolved().items() if k not in OWN_SECTIONS}
    given = config.input
    others = [str(getattr(given, name) or "") for name in INPUT_FILES]
    files = [_identity(name, file_state(name.partition(":")[0])) for name in others]
    frames = [file_state(name) for name in given.files]
    job = {"job": content, "unit_size": config.execution.unit_size, "versions": versions()}
    return digest({**job, "files": files, "frames": frames})


@lru_cache(maxsize=256)
def _identity(name: str, state: State) -> str:
    """Return `file_identity`, asked once for the many runs that share a file; another ``state`` asks again."""
    return file_identity(name)


def read_record(folder: CampaignFolder, name: str) -> dict[str, Any]:
    """Return how the last attempt of a run ended; empty if there was none."""
    try:
        content = json.loads(folder.record(name).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_record(folder: CampaignFolder, name: str, content: dict[str, Any]) -> None:
    """Publish how an attempt ended, and which submission to SLURM, if any, came before it: what that says is old."""
    jobs = queue.latest(queue.read_record(folder.run(name)))
    submitted = {"submitted": jobs[-1].submitted} if jobs else {}
    write_atomic(folder.record(name), json.dumps(content | submitted, indent=1).encode())


def write_job(folder: CampaignFolder, name: str, config: JobConfig) -> None:
    """Publish the job file of a run, if it is another than the one there."""
    text, path = dump_config(config).encode(), folder.job(name)
    if not path.is_file() or path.read_bytes() != text:
        write_atomic(path, text)


def state_of(folder: CampaignFolder, run: CampaignRun) -> RunState:
    """Return where a run stands."""
    try:
        config = run.config()
    except ConfigError as error:
        return RunState(run.name, "failed", str(error))
    directory, record = RunDirectory(folder.run(run.name)), read_record(folder, run.name)
    if holder(directory.path / "lock") is not None:
        return _measured(directory, RunState(run.name, "active", "at work"))
    lines = changed_keys(directory, config)
    if lines:
        return RunState(run.name, "changed", "; ".join(lines), restart=True)
    stamp = job_stamp(config)
    if record and record["stamp"] == stamp and record["exit_code"] is not None:
        state = "done" if record["exit_code"] in (0, 1) and record.get("ended") == "end" else "failed"
        return _measured(directory, RunState(run.name, state, str(record["message"])))
    if directory.exists():
        return _measured(directory, RunState(run.name, "partial", ""))
    return RunState(run.name, "new")


def changed_keys(directory: RunDirectory, config: JobConfig) -> list[str]:
    """Return what of the job is another than in the run directory and touches the frames' results."""
    if not directory.exists() or not directory.has_shards():
        return []
    try:
        directory.check_parameters(config)
    except RunDirectoryError:
        lines = changed(relevant(load_document(directory.job)), relevant(config.resolved()))
        return lines or ["the version of xfelproc or of what it uses"]
    return []


def _measured(directory: RunDirectory, state: RunState) -> RunState:
    """Add what the run's own files say."""
    if not directory.exists():
        return state
    counts: Counter[str] = Counter()
    result: Counter[str] | None = None
    seconds, units = 0.0, set[int]()
    for event in read_journal(directory.path):
        if event["event"] == "restart":  # what was told before is of results that were discarded
            counts, seconds, units = Counter(), 0.0, set()
        if event["event"] in ("restart", "start"):
            result = None
        if event["event"] == "result":  # of frames processed again with a refined geometry
            result = Counter(event["counts"])
        if event["event"] == "unit" and event.get("stage") == "process" and event["unit"] not in units:
            units.add(event["unit"])
            counts.update(event["counts"])
            seconds += float(event["seconds"])
    merged = directory.read_json("merge.json")
    try:
        frames = directory.read_manifest().n_frames
    except (ConfigError, DataError):
        frames = 0
    overall = None if merged is None or merged["empty"] else {**merged["overall"], "space_group": merged["space_group"]}
    return RunState(
        state.name, state.state, state.message, frames, counts if result is None else result, overall, seconds, state.restart
    )

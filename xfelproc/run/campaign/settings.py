"""The campaign file: which runs, with which job, merged in which groups."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from xfelproc.errors import ConfigError
from xfelproc.models.parameters import Parameters
from xfelproc.run.config import INPUT_FILES
from xfelproc.run.messages import explain

Plain = str | int | float | bool
"""What a column of a table or a placeholder may be compared with."""


class Runs(Parameters):
    """Section ``[runs]``: what the archive holds."""

    pattern: Annotated[
        str | None,
        Field(description="files with names in braces, as in 'raw/{run}/*.h5': equal values are one run, each name is a column"),
    ] = None
    table: Annotated[
        Path | None,
        Field(
            description="CSV or TSV with a row a run: 'run' (its name), 'files' (unless the pattern finds them), further columns; "
            "one that is called as a key of the job (geometry, cell, input.distance) sets it"
        ),
    ] = None
    include: Annotated[tuple[str, ...], Field(description="names of runs to take, * and ? allowed; empty: all")] = ()
    exclude: Annotated[tuple[str, ...], Field(description="names of runs to leave out, * and ? allowed")] = ()


class Rule(Parameters):
    """A table ``[[rule]]``: what is different for some runs."""

    where: Annotated[dict[str, Plain], Field(min_length=1, description="columns and their values, * and ? allowed; all must match")]
    job: Annotated[dict[str, Any], Field(default_factory=dict, description="keys of the job for these runs")]
    columns: Annotated[dict[str, Plain], Field(default_factory=dict, description="columns for these runs, to group by")]


class CampaignSettings(Parameters):
    """A campaign file."""

    name: Annotated[str | None, Field(description="name; None: that of the file")] = None
    output: Annotated[Path, Field(description="folder of run directories, groups and report, relative to this file")] = Path(
        "processed"
    )
    base: Annotated[Path | None, Field(description="job file that all runs start from, without input.files")] = None
    job: Annotated[dict[str, Any], Field(default_factory=dict, description="keys of the job for all runs, over those of the base")]
    runs: Runs
    rule: Annotated[tuple[Rule, ...], Field(description="what is different for some runs; later ones win")] = ()
    group_by: Annotated[
        tuple[str, ...], Field(description="columns: runs of equal values are merged together; empty: each run by itself alone")
    ] = ()
    where: Annotated[Literal["here", "slurm"], Field(description="here: on this machine; slurm: submitted")] = "here"
    parallel: Annotated[int, Field(ge=1, le=1000, description="runs at work at once on this machine")] = 1
    retries: Annotated[int, Field(ge=0, le=100, description="further attempts of a run that dies")] = 2
    sample_frames: Annotated[int, Field(ge=1, description="frames a sampled run gives for the estimate of core-hours")] = 24
    sample_runs: Annotated[int, Field(ge=0, description="runs sampled for the estimate; 0: no estimate")] = 3


def load_campaign(path: Path) -> CampaignSettings:
    """Return the settings of a campaign file; paths in it become absolute.

    Raises
    ------
    ConfigError
        If it is missing or wrong; says which key.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}): name a campaign file") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: this is not TOML: {error}") from error
    try:
        settings = CampaignSettings.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, CampaignSettings)}") from error
    if settings.runs.pattern is None and settings.runs.table is None:
        raise ConfigError(f"{path}: runs: give a pattern of files, a table, or both")
    return _absolute(settings, path.parent.absolute())


def _absolute(settings: CampaignSettings, base: Path) -> CampaignSettings:
    def absolute(path: Path | None) -> Path | None:
        return None if path is None else base / path.expanduser()

    runs = settings.runs
    pattern = None if runs.pattern is None else str(base / Path(runs.pattern).expanduser())
    return settings.model_copy(
        update={
            "output": absolute(settings.output),
            "base": absolute(settings.base),
            "job": absolute_paths(settings.job, base),
            "runs": runs.model_copy(update={"pattern": pattern, "table": absolute(runs.table)}),
            "rule": tuple(r.model_copy(update={"job": absolute_paths(r.job, base)}) for r in settings.rule),
        }
    )


def absolute_paths(job: dict[str, Any], base: Path) -> dict[str, Any]:
    """Return a job's keys with the files in section ``[input]`` absolute."""
    given = job.get("input")
    if not isinstance(given, dict):
        return job
    changed: dict[str, Any] = dict(given)
    for key in INPUT_FILES:
        if isinstance(changed.get(key), str):
            changed[key] = str(base / Path(changed[key]).expanduser())
    if "files" in changed:
        files = [changed["files"]] if isinstance(changed["files"], str) else changed["files"]
        changed["files"] = [_absolute_pattern(name, base) if isinstance(name, str) else name for name in files]
    return {**job, "input": changed}


def _absolute_pattern(name: str, base: Path) -> str:
    at = "@" if name.startswith("@") else ""
    return f"{at}{base / Path(name[len(at) :]).expanduser()}"

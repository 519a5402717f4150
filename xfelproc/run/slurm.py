"""Section ``[slurm]`` of a job, and the scripts it becomes. Nothing here enters a lineage."""

from __future__ import annotations

import datetime
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from xfelproc.errors import ConfigError
from xfelproc.models.parameters import Parameters

TEMPLATE = Path(__file__).parent / "templates" / "run.sbatch"
SLACK = 15
"""Seconds before the end of the wall time at which a run that does not end after the warning is no longer waited for. The loop
gives units in flight 60 s after it (`run.loop.GRACE_WARNED`), which is why the warning comes 90 s before the end at least."""
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")
_PLACE = re.compile(r"@([a-z_]+)@")

Word = Annotated[str, Field(pattern=r"^[^\s'\"]+$")]


def _as_text(value: Any) -> Any:
    """Return a wall time as text: TOML takes a bare 04:00:00 for a time of day, and minutes for a number."""
    if isinstance(value, datetime.time):
        return value.isoformat("seconds")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


WallTime = Annotated[Word, BeforeValidator(_as_text)]


def seconds(text: str) -> int:
    """Return a time as SLURM writes it, in seconds: ``minutes``, ``M:S``, ``H:M:S``, ``D-H``, ``D-H:M``, ``D-H:M:S``.

    Raises
    ------
    ValueError
        If it is none.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no time of SLURM: write HH:MM:SS, D-HH:MM:SS or minutes")
    parts = [int(part) for part in match["rest"].split(":")]
    if match["days"] is not None:
        hours, minutes, rest = (*parts, 0, 0)[:3]
        return 86400 * int(match["days"]) + 3600 * hours + 60 * minutes + rest
    if len(parts) == 1:
        return 60 * parts[0]
    hours, minutes, rest = (0, *parts)[-3:]
    return 3600 * hours + 60 * minutes + rest


class Slurm(Parameters):
    """Section ``[slurm]``: what `submit` asks of SLURM. It does not touch the results."""

    partition: Annotated[Word | None, Field(description="partition; None: the cluster's default")] = None
    account: Annotated[Word | None, Field(description="account that pays")] = None
    qos: Annotated[Word | None, Field(description="quality of service")] = None
    constraint: Annotated[Word | None, Field(description="features the nodes must have")] = None
    time: Annotated[
        WallTime,
        Field(description="wall time of one allocation, HH:MM:SS, D-HH:MM:SS or minutes; a run that needs more is requeued"),
    ] = "04:00:00"
    nodes: Annotated[int, Field(ge=1, description="nodes")] = 1
    tasks_per_node: Annotated[int, Field(ge=1, description="processes a node; with mpi one of all dispatches")] = 32
    cpus_per_task: Annotated[int, Field(ge=1, description="CPUs a process; it computes on one")] = 1
    memory: Annotated[Word | None, Field(description="memory a node, such as 120G; 0: all of it; None: the cluster's default")] = (
        None
    )
    mpi: Annotated[
        str,
        Field(min_length=1, description="'srun --mpi=pmix', 'mpiexec' or another launcher of ranks; 'none': a pool on one node"),
    ] = "srun --mpi=pmix"
    modules: Annotated[tuple[Word, ...], Field(description="modules to load")] = ()
    venv: Annotated[str | None, Field(description="folder of the virtual environment to activate, seen by the nodes")] = None
    command: Annotated[
        str | None, Field(description="how xfelproc is called; None: xfelproc of the venv, without one the Python that submits")
    ] = None
    setup: Annotated[tuple[str, ...], Field(description="shell lines before anything else of ours, after modules and venv")] = ()
    directives: Annotated[
        tuple[str, ...], Field(description="more options of sbatch, such as '--reservation=beamtime'; they have the last word")
    ] = ()
    cache_folder: Annotated[
        str | None,
        Field(description="folder on each node's own disk for compiled kernels; None: $TMPDIR or /tmp; 'none': where numba likes"),
    ] = None
    signal_before: Annotated[
        int, Field(ge=90, description="s before the end of the wall time at which the run stops taking units and is requeued")
    ] = 300
    max_requeues: Annotated[int, Field(ge=0, description="times a job requeues itself")] = 100
    max_idle: Annotated[int, Field(ge=1, description="allocations in a row without any progress after which it gives up")] = 3
    restarts: Annotated[int, Field(ge=0, description="times a job starts again inside an allocation after a rank died")] = 5
    merge_job: Annotated[bool, Field(description="merge and report in a smaller job of their own, after the frames")] = True
    merge_tasks: Annotated[int, Field(ge=1, description="processes of that job, on one node")] = 8
    merge_time: Annotated[WallTime | None, Field(description="wall time of that job; None: as time")] = None
    merge_memory: Annotated[Word | None, Field(description="memory of that job; None: as memory")] = None
    array_limit: Annotated[int | None, Field(ge=1, description="runs of an array at a time; None: as many as fit")] = None
    template: Annotated[str | None, Field(description="script to fill in instead of xfelproc's own, relative to the job file")] = (
        None
    )

    @field_validator("time", "merge_time")
    @classmethod
    def _is_time(cls, value: str | None) -> str | None:
        if value is not None and seconds(value) < 60:
            raise ValueError(f"{value!r} is less than a minute, SLURM's shortest wall time")
        return value

    @field_validator("setup", "directives")
    @classmethod
    def _are_lines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for line in value:
            if "\n" in line:
                raise ValueError(f"{line!r} holds a line break: give one line an item")
        return value

    @field_validator("directives")
    @classmethod
    def _are_options(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for line in value:
            if not line.startswith("-"):
                raise ValueError(f"{line!r} is no option of sbatch: write it as '--reservation=beamtime'")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Slurm:
        for name in ("time", "merge_time"):
            text = getattr(self, name)
            if text is not None and 2 * self.signal_before > seconds(text):
                raise ValueError(
                    f"signal_before = {self.signal_before} s is more than half of {name} = {text}: little could be done before the "
                    "signal; ask for more time, or a later signal"
                )
        if self.mpi == "none" and self.nodes > 1:
            raise ValueError(
                f"mpi = 'none' is a pool on one node, and nodes = {self.nodes}: name a launcher of ranks, or nodes = 1"
            )
        return self

    def resources(self) -> dict[str, object]:
        """Return everything, as the runs of one array must have it alike."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class Part:
    """A part of a run that is a job of its own: options of ``xfelproc run``, one entry a call, in order."""

    name: str
    calls: tuple[str, ...]
    small: bool = False
    """On one node, with the processes of the merge job."""


ALL = Part("run", ("",))
PROCESS = Part("process", ("--only cell,process,metrology",))
MERGE = Part("merge", ("--only merge", ""), small=True)
"""The first call refuses units that are missing, instead of processing them on a few CPUs; the second, for which all is done,
judges how many frames failed and writes the report."""


def parts_of(settings: Slurm) -> tuple[Part, ...]:
    """Return the jobs a run is cut into."""
    return (PROCESS, MERGE) if settings.merge_job else (ALL,)


@dataclass(frozen=True)
class Target:
    """A run to be done: its job file, with absolute paths and overrides put in, and its run directory."""

    job: Path
    run: Path


def write_script(settings: Slurm, part: Part, targets: Sequence[Target], name: str, log: Path) -> str:
    """Return the script of a part, for one run or an array of runs.

    Parameters
    ----------
    settings
        Section ``[slurm]``.
    part
        Which calls of ``xfelproc run``.
    targets
        The runs; more than one make an array.
    name
        Name of the SLURM job.
    log
        Folder of the output.

    Raises
    ------
    ConfigError
        If the template cannot be read or has a placeholder that nobody knows.
    """
    ranks = settings.merge_tasks if part.small else settings.nodes * settings.tasks_per_node
    values = {
        "part": part.name,
        "directives": "\n".join(f"#SBATCH {line}" for line in _directives(settings, part, len(targets), name, log)),
        "modules": "\n".join(f"load {shlex.quote(module)}" for module in settings.modules) or ":",
        "setup": "\n".join(_setup(settings)) or ":",
        "program": _program(settings),
        "launcher": "" if settings.mpi == "none" else _launcher(settings.mpi),
        "driver": f"--driver pool --workers {ranks}" if settings.mpi == "none" else "--driver mpi",
        "jobs": _lines(target.job for target in targets),
        "runs": _lines(target.run for target in targets),
        "calls": "\n  ".join(shlex.quote(call) for call in part.calls),
        "cache_folder": shlex.quote(settings.cache_folder) if settings.cache_folder else '"${TMPDIR:-/tmp}"',
        "patience": str(settings.signal_before - SLACK),
        "max_requeues": str(settings.max_requeues),
        "max_idle": str(settings.max_idle),
        "restarts": str(settings.restarts),
        "partial": "true" if part is PROCESS else "false",
    }
    path = Path(settings.template) if settings.template else TEMPLATE
    return fill(_read(path), values, path)


def fill(text: str, values: Mapping[str, str], path: Path) -> str:
    """Return a template with every ``@name@`` replaced.

    Raises
    ------
    ConfigError
        If there is no such value.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ConfigError(f"{path}: there is nothing to put in for {match[0]} (known: {', '.join(sorted(values))})")
        return values[match[1]]

    return _PLACE.sub(value, text)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"slurm.template: {path} cannot be read: {error}") from error


def _lines(paths: Iterable[Path]) -> str:
    return "\n  ".join(shlex.quote(str(path)) for path in paths)


def _launcher(text: str) -> str:
    """Return the launcher's words; those of an MPI are told the number of ranks, which srun knows."""
    words = shlex.split(text)
    counted = {"-n", "-np", "--np"} & set(words) or Path(words[0]).name == "srun"
    return shlex.join(words) + ("" if counted else ' -n "$SLURM_NTASKS"')


def _program(settings: Slurm) -> str:
    if settings.command is not None:
        return shlex.join(shlex.split(settings.command))
    return "xfelproc" if settings.venv else f"{shlex.quote(sys.executable)} -m xfelproc"


def _directives(settings: Slurm, part: Part, n_runs: int, name: str, log: Path) -> list[str]:
    pool = settings.mpi == "none"
    tasks = settings.merge_tasks if part.small else settings.tasks_per_node
    ranks = tasks if part.small else tasks * settings.nodes
    time = (settings.merge_time if part.small else None) or settings.time
    memory = (settings.merge_memory if part.small else None) or settings.memory
    output = f"{log}/{part.name}-{'%A_%a' if n_runs > 1 else '%j'}.out"
    lines = [f"--job-name={name}"]
    lines += [f"--{key}={value}" for key in ("partition", "account", "qos", "constraint") if (value := getattr(settings, key))]
    lines += [
        f"--time={time}",
        f"--nodes={1 if part.small else settings.nodes}",
        f"--ntasks={1 if pool else ranks}",
        f"--ntasks-per-node={1 if pool else tasks}",
        f"--cpus-per-task={tasks * settings.cpus_per_task if pool else settings.cpus_per_task}",
        *([f"--mem={memory}"] if memory else []),
        *([_array(n_runs, settings.array_limit)] if n_runs > 1 else []),
        f"--output={_quoted(output, log)}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{settings.signal_before}",
    ]
    return lines + list(settings.directives)


def _array(n_runs: int, limit: int | None) -> str:
    return f"--array=0-{n_runs - 1}" + (f"%{limit}" if limit else "")


def _quoted(text: str, log: Path) -> str:
    """Return the output's name; sbatch takes quotes as a shell does, and a % of the folder must not become a job's number."""
    if "%" in str(log):
        text = text.replace(str(log), str(log).replace("%", "%%"))
    return f'"{text}"' if re.search(r"\s", text) else text


def _setup(settings: Slurm) -> list[str]:
    if not settings.venv:
        return list(settings.setup)
    activate = f"{shlex.quote(str(Path(settings.venv).expanduser()))}/bin/activate"
    # without it the job would go on with whatever xfelproc, or none, the node has
    return [f'. {activate} || {{ echo "submit: slurm.venv is not there on $(hostname)"; exit 2; }}', *settings.setup]

"""The job: one section per stage, each the parameter model of its algorithm family."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, create_model, field_validator

from xfelproc.drivers.settings import Dask
from xfelproc.errors import ConfigError
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.parameters import Parameters
from xfelproc.run import toml
from xfelproc.run.messages import explain
from xfelproc.run.sections import section_classes
from xfelproc.run.selection import parse_frames
from xfelproc.run.slurm import Slurm
from xfelproc.stages.combine_settings import Combine


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


INPUT_FILES = ("geometry", "mask", "dark", "gain", "calibration")
"""Keys of ``[input]`` that name a file beside the frames."""


class Input(SourceSettings):
    """Section ``[input]``: the frames, and what the user says about them."""

    files: Annotated[
        tuple[str, ...],
        BeforeValidator(_one_or_many),
        Field(min_length=1, description="files, patterns, folders, or @lists of files and frames, relative to the job file"),
    ]
    frames: Annotated[
        str | tuple[int, ...] | None,
        Field(description="frames of the run to process, from 0: a list, or text such as '0:1000, 5000:6000:10'; None: all"),
    ] = None
    dark: Annotated[str | None, Field(description="pedestal to subtract, raw units: a .npy file or file.h5:/path")] = None
    gain: Annotated[str | None, Field(description="raw units a photon, by pixel: a .npy file or file.h5:/path")] = None
    calibration: Annotated[
        str | None,
        Field(description="constants file (xfelproc calibrate): pedestals, gains and bad pixels by gain stage; dark and gain win"),
    ] = None

    @field_validator("frames")
    @classmethod
    def _readable(cls, value: str | tuple[int, ...] | None) -> str | tuple[int, ...] | None:
        parse_frames(value, 1 << 62)
        return value

    def settings(self) -> SourceSettings:
        """Return what readers of frames need of it."""
        return SourceSettings(**{name: getattr(self, name) for name in SourceSettings.model_fields})


class Execution(Parameters):
    """Section ``[execution]``: where the work is done. Of it only the sizes touch the results' grouping."""

    driver: Annotated[
        Literal["inline", "pool", "mpi", "dask"],
        Field(
            description="inline: in this process; pool: worker processes; mpi: the ranks that mpiexec or srun started, the first "
            "dispatches; dask: workers as the table dask says"
        ),
    ] = "pool"
    workers: Annotated[
        int | None,
        Field(ge=1, le=4096, description="worker processes of pool and of dask's local cluster; None: as many as CPUs"),
    ] = None
    window: Annotated[
        int, Field(ge=1, le=64, description="work units in flight a worker: one at work, the others waiting for it")
    ] = 2
    unit_size: Annotated[
        int | None, Field(ge=1, le=100_000, description="frames a work unit; None: clamp(frames / 128, 8, 500)")
    ] = None
    fold_size: Annotated[
        int | None, Field(ge=1, description="frames a leaf of the folds over the shards; None: 1000, or what gives 256 leaves")
    ] = None
    bucket_size: Annotated[
        int | None, Field(ge=100, description="observations that are merged in memory at once; None: 524288, some 250 MB")
    ] = None
    unit_timeout: Annotated[
        float | None, Field(gt=0, description="s after which a unit counts as hung; None: 30 times the median, at least 600 s")
    ] = None
    max_failed: Annotated[float, Field(ge=0, le=1, description="fraction of frames that may fail before the exit code is 1")] = 0.01
    dask: Annotated[Dask, Field(description="where the driver dask finds its workers")] = Dask()


class Report(Parameters):
    """Section ``[report]``."""

    enabled: Annotated[bool, Field(description="write report.html")] = True
    title: Annotated[str | None, Field(description="title; None: the name of the run directory")] = None


class Sample(Parameters):
    """Section ``[sample]``: what a sample of the frames tells: the cell where none is given, else whether the distance is wrong."""

    min_lattices: Annotated[int, Field(ge=1, description="lattices to index without a cell before the consensus is taken")] = 100
    max_frames: Annotated[int, Field(ge=1, description="most frames to try for that")] = 20_000
    max_distance_error: Annotated[
        float,
        Field(
            ge=0,
            le=0.3,
            description="cell given, input.distance not: relative error of the recorded distance that is searched for on a sample "
            "of hits where they do not index as they should; what several agree on is used for all frames; 0: none",
        ),
    ] = 0.12


class JobConfig(Parameters):
    """A job without its algorithms' sections; `config_class` adds them."""

    recipe: Annotated[Literal["auto", "stills", "rotation"], Field(description="auto: rotation where the oscillation is not 0")] = (
        "auto"
    )
    input: Input
    execution: Execution = Execution()
    sample: Sample = Sample()
    combine: Combine = Combine()
    report: Report = Report()
    slurm: Slurm = Slurm()

    def section(self, name: str) -> Any:
        """Return the section of an algorithm family."""
        return getattr(self, name)

    def resolved(self) -> dict[str, Any]:
        """Return everything as plain values, as ``job.toml`` in the run directory has it."""
        return self.model_dump(mode="json", exclude_none=True)


def config_class(sections: Mapping[str, type[Parameters]] | None = None) -> type[JobConfig]:
    """Return the model of a job file with these sections (default: xfelproc's own, with what plug-ins add)."""
    found = section_classes() if sections is None else sections
    fields: dict[str, Any] = {name: (cls, cls()) for name, cls in found.items()}
    return create_model("Config", __base__=JobConfig, **fields)


def parse_override(text: str) -> tuple[list[str], Any]:
    """Return the path and value of ``a.b=value``; the value is typed as in TOML, a bare word is text.

    Raises
    ------
    ConfigError
        If there is no ``=`` or no key.
    """
    key, equals, raw = text.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise ConfigError(f"--set {text!r}: write --set section.key=value, for example --set spots.min_snr=6")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    return path, value


def apply_overrides(document: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the document with ``a.b=value`` put in, in order.

    Raises
    ------
    ConfigError
        If an override goes through something that is no table.
    """
    for text in overrides:
        path, value = parse_override(text)
        table = document
        for part in path[:-1]:
            inner = table.get(part)
            if isinstance(inner, str) and part == "method":
                inner = {"method": inner}  # a bare method's name and its table mean the same
            if inner is not None and not isinstance(inner, dict):
                raise ConfigError(f"--set {text!r}: {part!r} is {inner!r}, not a table of keys")
            table[part] = inner = dict(inner or {})
            table = inner
        table[path[-1]] = value
    return document


def load_document(path: Path) -> dict[str, Any]:
    """Return the content of a job file.

    Raises
    ------
    ConfigError
        If it is missing or no TOML; the message has the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such job file; 'xfelproc init {path}' writes a template") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: this is no job file (TOML text); 'xfelproc init job.toml' writes a template") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder: name the job file in it") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: this is not TOML: {error}") from error


def make_config(document: Mapping[str, Any], base: Path, cls: type[JobConfig] | None = None) -> JobConfig:
    """Validate a document; paths in it are relative to ``base``.

    Raises
    ------
    ConfigError
        Says of every wrong key what is wrong, the value, and what may be meant.
    """
    model = cls or config_class()
    try:
        config = model.model_validate(dict(document))
    except ValidationError as error:
        raise ConfigError(explain(error, model)) from error
    config.section("index").target()  # an impossible cell, or one that its space group does not allow
    return _absolute(config, base)


def _absolute(config: JobConfig, base: Path) -> JobConfig:
    def absolute(name: str) -> str:
        if name.startswith("@"):  # a list of files
            return f"@{absolute(name[1:])}"
        return str((base / Path(name).expanduser()).absolute())

    given = config.input
    moved: dict[str, Any] = {"files": tuple(absolute(f) for f in given.files)}
    for name in INPUT_FILES:
        value = getattr(given, name)
        if value is not None:
            moved[name] = type(value)(absolute(str(value)))
    asked = config.slurm
    if asked.template is not None:
        asked = asked.model_copy(update={"template": absolute(asked.template)})
    merge = config.section("merge")
    ambiguity = getattr(merge, "ambiguity", None)  # another merger may have none
    if ambiguity is not None and ambiguity.reference is not None:
        merge = merge.model_copy(update={"ambiguity": ambiguity.model_copy(update={"reference": absolute(ambiguity.reference)})})
    groups = getattr(merge, "groups", None)
    if groups is not None and groups.table is not None:
        merge = merge.model_copy(update={"groups": groups.model_copy(update={"table": absolute(groups.table)})})
    for name in ("free_from", "compare_to", "reference"):
        if getattr(merge, name, None) is not None:
            merge = merge.model_copy(update={name: absolute(getattr(merge, name))})
    return config.model_copy(update={"input": given.model_copy(update=moved), "slurm": asked, "merge": merge})


def load_config(path: Path, overrides: Sequence[str] = (), cls: type[JobConfig] | None = None) -> JobConfig:
    """Return the job of a file, with ``--set`` overrides.

    Raises
    ------
    ConfigError
        If it is wrong.
    """
    try:
        return make_config(apply_overrides(load_document(path), overrides), path.parent, cls)
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith((str(path), "--set")) else f"{path}: {error}") from error


def dump_config(config: JobConfig) -> str:
    """Return the job as TOML."""
    return toml.dumps(config.resolved())


def template(cls: type[JobConfig] | None = None) -> str:
    """Return a commented job file with every key, its meaning and default."""
    model = cls or config_class()
    lines = ["# A job of xfelproc. Keys that are commented out have the value shown.", ""]
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            lines += _template_section(name, inner)
        else:
            lines += [*_comment(field), f'{name} = "{field.default}"', ""]
    return "\n".join(lines)


def _template_section(name: str, model: type[BaseModel]) -> list[str]:
    lines = [f"[{name}]"]
    for key, field in model.model_fields.items():
        lines += _comment(field)
        if field.is_required():
            lines.append(f'{key} = ["frames.h5"]' if key == "files" else f"{key} = ")
            continue
        default = field.get_default(call_default_factory=True)
        plain = default.model_dump(mode="json", exclude_none=True) if isinstance(default, BaseModel) else default
        lines.append(f"#{key} = ..." if plain is None else f"#{key} = {toml.value(plain)}")
    return [*lines, ""]


def _comment(field: Any) -> list[str]:
    return [f"# {field.description}"] if field.description else []

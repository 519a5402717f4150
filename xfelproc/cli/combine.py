"""Command combine: the lattices of runs as combined experiments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from xfelproc.errors import ConfigError
from xfelproc.models.parameters import Parameters
from xfelproc.run.combining import combine_runs, workplace
from xfelproc.run.config import Execution, apply_overrides
from xfelproc.run.exporting import FinishedRun
from xfelproc.run.messages import explain
from xfelproc.run.recipes import default_opener
from xfelproc.stages.combine_settings import Combine

SUFFIXES = (".expt", ".zarr")


class _Options(Parameters):
    """The one section that the command takes."""

    combine: Combine


def settings_of(overrides: Sequence[str], **options: object) -> Combine:
    """Return the settings of command-line options; those that are None are not given. ``overrides`` are ``combine.key=value``.

    Raises
    ------
    ConfigError
        If one is wrong.
    """
    document = apply_overrides({"combine": {name: value for name, value in options.items() if value is not None}}, overrides)
    if set(document) != {"combine"}:
        raise ConfigError(f"--set {', '.join(sorted(set(document) - {'combine'}))}: combine takes combine.KEY=VALUE alone")
    try:
        return _Options.model_validate(document).combine
    except ValidationError as error:
        raise ConfigError(explain(error, _Options)) from error


def combine(folders: Sequence[Path], output: Path, settings: Combine, driver: str, workers: int | None) -> None:
    """Combine and say what was written."""
    console = Console()
    if output.suffix == ".refl":
        output = output.with_suffix(".expt")
    if output.suffix not in SUFFIXES:
        raise ConfigError(f"-o {output}: the name must end in .expt (DIALS, with a .refl beside it) or .zarr")
    runs = [FinishedRun.open(folder).combine_input() for folder in folders]
    try:
        execution = Execution.model_validate({"driver": driver, "workers": workers})
    except ValidationError as error:
        raise ConfigError(explain(error, Execution)) from error
    with workplace(output, execution) as gathering:
        done = combine_runs(gathering, runs, settings, output, default_opener())
    for line in done.lines():
        console.print(line, soft_wrap=True, highlight=False, markup=False)

"""Commands of ``xfelproc calibrate``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError

from xfelproc.cli.progress import ConsoleReporter, make_console
from xfelproc.errors import ConfigError
from xfelproc.models.parameters import Parameters
from xfelproc.run.session import Reporter

P = TypeVar("P", bound=Parameters)


def with_progress(work: Callable[[Reporter], list[str]]) -> None:
    """Do some work with progress on the console; print the lines that it returns."""
    console = make_console()
    with ConsoleReporter(console) as reporter:
        lines = work(reporter)
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def options(kind: type[P], **given: Any) -> P:
    """Return parameters of command-line options; what is None has its default.

    Raises
    ------
    ConfigError
        If one is out of range; names the option.
    """
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = "-".join(map(str, first["loc"])).replace("_", "-")
        raise ConfigError(f"--{name} {first['input']}: {first['msg']}") from error

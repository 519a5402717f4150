"""The sections of the algorithm families, extended by what plug-ins register.

A package joins a family through an entry point that names an `Algorithm` subclass with a ``method`` literal of its own, in the
group ``xfelproc.spotfinders``, ``xfelproc.indexers``, ... Extended sections are attributes of this module, made on demand,
so that they pickle by name and a worker finds the same class.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any, Union, get_args

from pydantic import Field, create_model

from xfelproc.errors import ConfigError
from xfelproc.models.parameters import Algorithm, Parameters
from xfelproc.run.messages import method_of, union_members

SECTIONS = {
    "calibrate": ("xfelproc.algorithms.calibration", "Calibrate", "xfelproc.calibrators"),
    "spots": ("xfelproc.algorithms.spotfinding", "FindSpots", "xfelproc.spotfinders"),
    "index": ("xfelproc.algorithms.indexing", "Index", "xfelproc.indexers"),
    "refine": ("xfelproc.algorithms.refinement", "Refine", "xfelproc.refiners"),
    "integrate": ("xfelproc.algorithms.integration", "Integrate", "xfelproc.integrators"),
    "metrology": ("xfelproc.algorithms.metrology", "Metrology", "xfelproc.metrologies"),
    "merge": ("xfelproc.algorithms.merging", "Merge", "xfelproc.mergers"),
}
"""Section: module, class, group of entry points."""


@cache
def section_classes() -> dict[str, type[Parameters]]:
    """Return the model of each section, in the order of the stages."""
    return {name: _section(name) for name in SECTIONS}


@cache
def _section(name: str) -> type[Parameters]:
    module, class_name, group = SECTIONS[name]
    cls: type[Parameters] = getattr(import_module(module), class_name)
    plugins = tuple(_load(entry, group) for entry in sorted(entry_points(group=group), key=lambda e: e.name))
    return _extend(cls, group, plugins) if plugins else cls


def _load(entry: Any, group: str) -> type[Algorithm]:
    try:
        algorithm = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"plug-in {entry.name!r} ({group}, {entry.value}) cannot be loaded: {error}") from error
    if not (isinstance(algorithm, type) and issubclass(algorithm, Algorithm) and method_of(algorithm)):
        raise ConfigError(
            f"plug-in {entry.name!r} ({group}): {entry.value} must be a subclass of xfelproc.models.parameters.Algorithm "
            'with a field method: Literal["..."]'
        )
    return algorithm


def _extend(cls: type[Parameters], group: str, plugins: tuple[type[Algorithm], ...]) -> type[Parameters]:
    """Return a subclass whose ``method`` also takes the plug-ins."""
    if "method" not in cls.model_fields:
        raise ConfigError(f"{group}: this family has one method and takes no plug-ins")
    field = cls.model_fields["method"]
    known = union_members(field.annotation)
    taken = {method_of(member) for member in known}
    for plugin in plugins:
        if method_of(plugin) in taken:
            raise ConfigError(
                f"{group}: {plugin.__module__}.{plugin.__qualname__} takes the name of a known method, {method_of(plugin)!r}"
            )
    union: Any = Union[(*known, *plugins)]
    annotation: Any = Annotated[union, Field(discriminator="method")]
    for metadata in (*field.metadata, *_nested_metadata(field.annotation)):
        annotation = Annotated[annotation, metadata]
    extended = create_model(
        cls.__name__, __base__=cls, __module__=__name__, method=(annotation, Field(field.default, description=field.description))
    )
    extended.__qualname__ = cls.__name__
    return extended


def _nested_metadata(annotation: Any) -> tuple[Any, ...]:
    return tuple(m for m in get_args(annotation)[1:] if not isinstance(m, type)) if hasattr(annotation, "__metadata__") else ()


def __getattr__(name: str) -> Any:
    for section, (_, class_name, _) in SECTIONS.items():
        if class_name == name:
            return _section(section)
    raise AttributeError(name)

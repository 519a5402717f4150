"""Validation errors as sentences a user can act on."""

from __future__ import annotations

import difflib
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError


def union_members(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Return the models that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    if hasattr(annotation, "__metadata__"):
        return union_members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(member for part in get_args(annotation) for member in union_members(part))
    return ()


def method_of(model: type[BaseModel]) -> str | None:
    """Return the value of a model's ``method`` literal, or None if it has none."""
    field = model.model_fields.get("method")
    if field is None or get_origin(field.annotation) is not Literal:
        return None
    return str(get_args(field.annotation)[0])


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return what is wrong, one line a key."""
    lines = [_line(detail, model) for detail in error.errors()]
    return "\n".join(dict.fromkeys(lines))


def _line(detail: Any, model: type[BaseModel]) -> str:
    path, owner = _resolve(detail["loc"], model)
    where = ".".join(path)
    kind, given = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        known = sorted(owner.model_fields) if owner is not None else []
        what = "section" if len(path) == 1 else "key"
        return f"{where}: there is no such {what}{_suggestion(path[-1], known)}"
    if kind in ("union_tag_invalid", "literal_error"):
        expected = str(detail["ctx"].get("expected_tags") or detail["ctx"].get("expected"))
        known = [word.strip(" '") for word in expected.replace(" or ", ",").split(",") if word.strip(" '")]
        tag = detail["ctx"].get("tag", given)
        return f"{where}: {tag!r} is not known{_suggestion(str(tag), known)}"
    if kind == "missing" and path[-1].isdigit():
        return f"{'.'.join(path[:-1])}: too few values (it is {given!r})"
    if kind == "missing":
        return f"{where}: must be given"
    if kind == "tuple_type":
        return f"{where}: must be a list in brackets (it is {given!r})"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    prefix = "must be " if detail["msg"].startswith("Input should be ") else ""
    shown = "" if isinstance(given, dict) else f" (it is {given!r})"
    return f"{where}: {prefix}{message}{shown}"


def _resolve(loc: tuple[Any, ...], model: type[BaseModel]) -> tuple[list[str], type[BaseModel] | None]:
    """Return a location as the user writes it (without the tags of unions), and the model that owns its last key."""
    path: list[str] = []
    owner: type[BaseModel] | None = model
    members: tuple[type[BaseModel], ...] = (model,)
    for part in loc:
        chosen = [member for member in members if method_of(member) == part]
        if path and chosen and part not in {name for member in members for name in member.model_fields}:
            members = (chosen[0],)
            continue
        field = next((member.model_fields[part] for member in members if part in member.model_fields), None)
        owner = members[0] if members else None
        if isinstance(part, int):
            path.append(str(part))
            continue
        if field is None and not members:
            continue  # the name of a type inside a union of plain types
        path.append(str(part))
        members = union_members(field.annotation) if field is not None else ()
    return path or ["job"], owner


def _suggestion(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(known)})" if known else hint

"""Write the pages that follow from the code, and the index of all pages: ``python docs/reference/make.py``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from xfelproc.io.manifest import SourceTable
from xfelproc.models import difference_tables, tables
from xfelproc.models.conventions import FrameStatus, MaskBit, PixelMask, ReflectionFlag, SpotFlag
from xfelproc.run import toml
from xfelproc.run.campaign.settings import CampaignSettings, Rule, Runs
from xfelproc.run.config import config_class
from xfelproc.run.messages import method_of, union_members

COMMAND = "python docs/reference/make.py"
DOCS = Path(__file__).resolve().parents[1]
KINDS = {
    "tutorial": "learn it by doing it once",
    "howto": "reach an aim",
    "reference": "look it up",
    "explanation": "why it is as it is, and how good it is",
}
KNOWN = {**vars(tables), **vars(difference_tables)}
SHOWN = (SourceTable, *(kind for kind in KNOWN.values() if isinstance(kind, type) and getattr(kind, "SCHEMA", ())))
_BOUNDS = {"exclusiveMinimum": "> {}", "minimum": "≥ {}", "exclusiveMaximum": "< {}", "maximum": "≤ {}"}
_TYPES = {"number": "number", "integer": "whole number", "string": "text", "boolean": "`true`, `false`"}


def job_file() -> str:
    """Return the page of the job file's sections and keys."""
    lines = [
        "# Job file",
        "",
        f"Made by `{COMMAND}` from the parameters' models. A job is TOML; `xfelproc init` writes a template with every key.",
        "Unknown keys and values out of range are errors. A key without a default is left out where it is not needed: the",
        'meaning says what then holds (None). A method is given by its name (`method = "dispersion"`) or as a table with its keys.',
        "",
    ]
    model = config_class()
    lines += _keys(model, model.model_fields.keys() - {name for name, _ in _sections(model)})
    for name, section in _sections(model):
        lines += [f"## `[{name}]`", "", *_section(section, name)]
    return "\n".join(lines).rstrip() + "\n"


def campaign_file() -> str:
    """Return the page of the campaign file's keys."""
    lines = [
        "# Campaign file",
        "",
        f"Made by `{COMMAND}` from the parameters' models. A campaign is TOML; paths are relative to it.",
        "",
    ]
    lines += _keys(CampaignSettings, CampaignSettings.model_fields.keys() - {"runs", "rule"})
    for title, model in (("[runs]", Runs), ("[[rule]]", Rule)):
        lines += [f"## `{title}`", "", _doc(model), "", *_keys(model, model.model_fields.keys())]
    return "\n".join(lines).rstrip() + "\n"


def _sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield name, field.annotation


def _section(model: type[BaseModel], path: str) -> list[str]:
    lines = [
        _doc(model),
        "",
        *_keys(model, model.model_fields.keys() - {"method"} if method_of(model) else model.model_fields.keys()),
    ]
    for name, field in model.model_fields.items():
        for member in union_members(field.annotation):
            method = method_of(member)
            title = f"`{path}.{name}`" + (f": `{method}`" if method and len(union_members(field.annotation)) > 1 else "")
            lines += [f"### {title}", "", *_section(member, f"{path}.{name}")]
    return lines


def _doc(kind: type) -> str:
    """Return the first paragraph of a docstring as one line, without the name of the section."""
    text = " ".join((kind.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")
    text = re.sub(r"^Section `\[\w+\]`[:.] ?", "", text)
    return text[:1].upper() + text[1:]


def _keys(model: type[BaseModel], names: Any) -> list[str]:
    schema = model.model_json_schema()
    rows = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name not in names:
            continue
        default = field.get_default(call_default_factory=True)
        members = union_members(field.annotation)
        if members:
            known = [f'`"{method_of(m)}"`' for m in members if method_of(m)]
            allowed = ", ".join(known) if len(known) > 1 else "table, below"
            shown = f'`"{method_of(type(default))}"`' if len(known) > 1 else ""
        else:
            allowed = _allowed(schema["properties"][name], schema.get("$defs", {}))
            shown = "required" if field.is_required() else "" if default is None else f"`{toml.value(_plain(default))}`"
        rows.append(f"| `{name}` | {allowed} | {shown} | {_cell(field.description or '')} |")
    return [*rows, ""] if len(rows) > 2 else []


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _allowed(prop: dict[str, Any], defs: dict[str, Any]) -> str:
    """Return in words which values a JSON schema allows."""
    if "$ref" in prop:
        return _allowed(defs[prop["$ref"].rsplit("/", 1)[1]], defs)
    if "anyOf" in prop:
        return " or ".join(dict.fromkeys(_allowed(part, defs) for part in prop["anyOf"] if part.get("type") != "null"))
    if "enum" in prop or "const" in prop:
        return ", ".join(f"`{json.dumps(value)}`" for value in prop.get("enum", [prop.get("const")]))
    if prop.get("type") == "object":
        return "table"
    if prop.get("type") == "array":
        if "prefixItems" in prop:
            return f"{len(prop['prefixItems'])} × {_allowed(prop['prefixItems'][0], defs)}"
        return f"list of: {_allowed(prop['items'], defs)}"
    bounds = " and ".join(text.format(f"{prop[key]:.10g}") for key, text in _BOUNDS.items() if key in prop)
    kind = "path" if prop.get("format") == "path" else _TYPES[prop["type"]]
    return f"{kind} {bounds}".strip()


def table_columns() -> str:
    """Return the page of the tables' columns and the flags in them."""
    lines = [
        "# Tables",
        "",
        f"Made by `{COMMAND}` from the tables' schemas. In files each column is a dataset with its unit as attribute. Types are",
        "those of numpy; `str` is text in UTF-8. Frames, panels, rows and indices of frames count from 0.",
        "",
    ]
    for kind in SHOWN:
        lines += [f"## {kind.__name__}", "", _doc(kind), "", "| column | type | unit | meaning |", "|---|---|---|---|"]
        for column in kind.SCHEMA:
            shape = f" ({', '.join(map(str, column.shape))})" if column.shape else ""
            lines.append(f"| `{column.name}` | {column.dtype}{shape} | {column.unit} | {_cell(column.doc)} |")
        lines.append("")
    for flags in (FrameStatus, MaskBit, PixelMask, SpotFlag, ReflectionFlag):
        lines += [f"## {flags.__name__}", "", _doc(flags), "", "| name | value |", "|---|---|"]
        lines += [f"| `{member.name}` | {member.value} |" for member in flags]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def index() -> str:
    """Return the index of all pages."""
    lines = ["# Documentation", "", f"Made by `{COMMAND}`.", ""]
    for kind, what in KINDS.items():
        lines += [f"**{kind.replace('howto', 'how-to').capitalize()}**: {what}.", ""]
        for path in sorted((DOCS / kind).glob("*.md")):
            title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            lines.append(f"* [{title}]({kind}/{path.name})")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


PAGES = {
    "reference/job-file.md": job_file,
    "reference/campaign-file.md": campaign_file,
    "reference/tables.md": table_columns,
    "README.md": index,
}


def main() -> None:
    """Write the pages."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

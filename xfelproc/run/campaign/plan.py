"""From the campaign file to its runs: names, files, columns, jobs."""

from __future__ import annotations

import csv
import fnmatch
import glob
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xfelproc.errors import ConfigError
from xfelproc.io.sources.folders import natural_key
from xfelproc.run.campaign.settings import CampaignSettings, absolute_paths
from xfelproc.run.config import INPUT_FILES, JobConfig, load_document, make_config, parse_override

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_NOT_IN_NAMES = re.compile(r"[^\w.+=-]+")
INPUT_COLUMNS = (*INPUT_FILES, "distance", "wavelength", "beam_center")
INDEX_COLUMNS = ("cell", "space_group")


@dataclass(frozen=True)
class CampaignRun:
    """A run of the archive: its columns and the job's document; ``problem`` says why it has none."""

    name: str
    columns: Mapping[str, str]
    document: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    def config(self) -> JobConfig:
        """Return the validated job.

        Raises
        ------
        ConfigError
            If it is wrong, or the archive holds no files of the run.
        """
        if self.problem:
            raise ConfigError(self.problem)
        return make_config(self.document, Path("/"))

    def group(self, by: Sequence[str]) -> tuple[str, ...]:
        """Return the values of the columns that runs are grouped by.

        Raises
        ------
        ConfigError
            If the run has no such column.
        """
        missing = [name for name in by if name not in self.columns]
        if missing:
            raise ConfigError(f"group_by: run {self.name} has no column {missing[0]!r} (it has {', '.join(sorted(self.columns))})")
        return tuple(self.columns[name] for name in by)


def expand(settings: CampaignSettings) -> list[CampaignRun]:
    """Return the runs, naturally sorted by name.

    Raises
    ------
    ConfigError
        If the campaign's files are wrong; what is wrong with one run alone is in the run.
    """
    found: dict[str, tuple[dict[str, str], list[str]]] = {}
    if settings.runs.pattern is not None:
        found = _by_pattern(settings.runs.pattern)
    if settings.runs.table is not None:
        found = _by_table(settings.runs.table, found if settings.runs.pattern is not None else None)
    names = [name for name in sorted(found, key=natural_key) if _wanted(name, settings)]
    if not names:
        raise ConfigError("runs: the pattern, the table and the choice leave no run: correct them")
    base = {} if settings.base is None else absolute_paths(load_document(settings.base), settings.base.parent.absolute())
    base = {**base, "input": {k: v for k, v in base.get("input", {}).items() if k != "files"}}
    return [_run(name, *found[name], base, settings) for name in names]


def _wanted(name: str, settings: CampaignSettings) -> bool:
    included = not settings.runs.include or any(fnmatch.fnmatch(name, p) for p in settings.runs.include)
    return included and not any(fnmatch.fnmatch(name, p) for p in settings.runs.exclude)


def _run(name: str, columns: dict[str, str], files: list[str], base: Mapping[str, Any], settings: CampaignSettings) -> CampaignRun:
    matching = []
    for rule in settings.rule:
        if all(fnmatch.fnmatch(columns.get(key, ""), str(value)) for key, value in rule.where.items()):
            matching.append(rule)
            columns = {**columns, **{key: str(value) for key, value in rule.columns.items()}}
    document = deepcopy(dict(base))
    _update(document, settings.job)
    _update(document, _from_columns(columns, settings))
    for rule in matching:
        _update(document, rule.job)
    if files:
        _update(document, {"input": {"files": files}})
    problem = "" if document.get("input", {}).get("files") else "the archive holds no file of this run"
    return CampaignRun(name, columns, document, problem)


def _update(document: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Put the keys of ``more`` into a nested document; a method that is given by its bare name becomes a table."""
    for key, value in more.items():
        inner = document.get(key)
        if key == "method" and isinstance(inner, str) and isinstance(value, Mapping):
            inner = {"method": inner}
        if isinstance(value, Mapping) and isinstance(inner, dict):
            inner = dict(inner)
            _update(inner, value)
            document[key] = inner
        else:
            document[key] = deepcopy(value)


def _from_columns(columns: Mapping[str, str], settings: CampaignSettings) -> dict[str, Any]:
    """Return the keys of the job that columns of the table set; empty fields set nothing."""
    document: dict[str, Any] = {}
    for name, text in columns.items():
        section = "input" if name in INPUT_COLUMNS else "index" if name in INDEX_COLUMNS else None
        path = name if "." in name else f"{section}.{name}" if section else None
        if path is None or not text.strip():
            continue
        keys, value = parse_override(f"{path}={_listed(text) if name in ('cell', 'beam_centre') else text}")
        inner = document
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = value
    folder = settings.runs.table.parent if settings.runs.table is not None else Path("/")
    return absolute_paths(document, folder)


def _listed(text: str) -> str:
    """Return numbers separated by blanks or commas as a TOML list."""
    return text if text.strip().startswith("[") else f"[{', '.join(text.replace(',', ' ').split())}]"


def _by_pattern(pattern: str) -> dict[str, tuple[dict[str, str], list[str]]]:
    """Return columns and files of the runs that a pattern with placeholders finds.

    A folder that fits the part of the pattern with all placeholders but holds no file of it is a run without files: it is
    shown as empty rather than left out.
    """
    names = _PLACEHOLDER.findall(pattern)
    if not names:
        raise ConfigError(f"runs.pattern: {pattern}: put a name in braces where the runs differ, as in 'raw/{{run}}/*.h5'")
    found: dict[str, tuple[dict[str, str], list[str]]] = {}
    parts = Path(pattern).parts
    last = max(i for i, part in enumerate(parts) if _PLACEHOLDER.search(part))
    if last < len(parts) - 1:
        for columns, _ in _matches(str(Path(*parts[: last + 1]))):
            found.setdefault(run_name(columns), (columns, []))
    for columns, path in _matches(pattern):
        if Path(path).is_file():
            found.setdefault(run_name(columns), (columns, []))[1].append(path)
    for _, files in found.values():
        files.sort(key=natural_key)
    return found


def _matches(pattern: str) -> list[tuple[dict[str, str], str]]:
    plain = _PLACEHOLDER.sub("*", pattern)
    expression = re.compile(_expression(pattern))
    found = []
    for path in glob.glob(plain, recursive=True):  # noqa: PTH207  (absolute patterns)
        match = expression.fullmatch(path)
        if match is not None:
            found.append((match.groupdict(), path))
    return found


def _expression(pattern: str) -> str:
    """Return the regular expression of a pattern: a name in braces stands for anything within one folder's name."""
    pieces, seen = [], set[str]()
    for text in re.split(r"(\{\w+\}|\*\*/|\*|\?)", pattern):
        name = _PLACEHOLDER.fullmatch(text)
        if name is not None:
            pieces.append(f"(?P={name[1]})" if name[1] in seen else f"(?P<{name[1]}>[^/]+?)")
            seen.add(name[1])
        else:
            pieces.append({"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(text, re.escape(text)))
    return "".join(pieces)


def run_name(columns: Mapping[str, str]) -> str:
    """Return the name of a run, fit for a folder: its column ``run``, or else all columns."""
    text = columns["run"] if "run" in columns else "_".join(columns.values())
    return _NOT_IN_NAMES.sub("_", text).strip("._") or "run"


def _by_table(path: Path, known: dict[str, tuple[dict[str, str], list[str]]] | None) -> dict[str, tuple[dict[str, str], list[str]]]:
    """Return the runs of a table; with ``known`` ones from a pattern it adds columns to them."""
    found = {} if known is None else dict(known)
    for number, row in _rows(path):
        if not row.get("run"):
            raise ConfigError(f"{path} row {number}: column 'run' is empty: name the run")
        name = run_name(row)
        columns, files = found.get(name, ({}, []))
        if known is None and name in found:
            raise ConfigError(f"{path} row {number}: run {name} is there twice: put several patterns into one field, with ';'")
        patterns = [text.strip() for text in row.pop("files", "").split(";") if text.strip()]
        files = [*files, *(str(path.parent / Path(text).expanduser()) for text in patterns)]
        found[name] = ({**columns, **row}, files)
    return found


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"runs.table: {path} cannot be read ({error}): correct the path") from error
    lines = text.splitlines()
    delimiter = "\t" if lines and "\t" in lines[0] else ","
    reader = csv.reader([line for line in lines if not line.lstrip().startswith("#")], delimiter=delimiter)
    head = [name.strip() for name in next(reader, [])]
    if "run" not in head:
        raise ConfigError(f"{path}: there is no column 'run' in its first line ({', '.join(head) or 'it is empty'})")
    rows: list[tuple[int, dict[str, str]]] = []
    for fields in reader:
        if not any(f.strip() for f in fields):
            continue
        if len(fields) > len(head):
            raise ConfigError(
                f"{path}: row {fields[0]!r} has {len(fields)} fields, the first line {len(head)}: put quotes about commas"
            )
        rows.append((len(rows) + 1, dict(zip(head, (f.strip() for f in fields), strict=False))))
    return rows

"""Which group each frame of the runs to merge belongs to, as section ``[merge.groups]`` says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.group_settings import MOST_GROUPS, Groups
from xfelproc.errors import ConfigError, DataError
from xfelproc.io.manifest import Manifest
from xfelproc.io.sources.folders import natural_key
from xfelproc.io.sources.frame_values import read_frame_values
from xfelproc.run.group_rows import labels_of_table
from xfelproc.stages.merge_groups import NONE, binned

Labels = NDArray[np.int16]
_NOT_IN_NAMES = re.compile(r"[^\w.+=-]+")


@dataclass(frozen=True)
class RunFrames:
    """A run to merge: its name, the columns that a campaign's table has of it, and its manifest."""

    name: str
    columns: Mapping[str, str]
    manifest: Manifest


@dataclass(frozen=True)
class GroupedFrames:
    """Names of the groups, the group of each frame of all runs in order (`NONE`: in none), where the shards' frames begin."""

    names: tuple[str, ...]
    group: Labels
    offsets: NDArray[np.int64]
    warnings: tuple[str, ...] = ()

    @property
    def counts(self) -> list[int]:
        """Frames of each group."""
        found: list[int] = np.bincount(self.group[self.group != NONE], minlength=len(self.names)).tolist()
        return found


def grouped_frames(settings: Groups, runs: Sequence[RunFrames], wavelengths: Callable[[], NDArray[np.float64]]) -> GroupedFrames:
    """Return the groups of all frames.

    Parameters
    ----------
    settings
        Section ``[merge.groups]``, ``by`` not "none".
    runs
        In the order in which they are merged.
    wavelengths
        Gives the wavelength of each frame (Å; NaN: no lattice).

    Raises
    ------
    ConfigError
        If the section cannot be met: no such column, dataset or group, a table that contradicts itself, too many groups.
    """
    manifests = [run.manifest for run in runs]
    if settings.by == "column" and not any(run.columns for run in runs):
        words = ["merge.groups.by = column: only a campaign's groups of runs have columns: all lattices are merged together"]
        return GroupedFrames((), np.full(sum(m.n_frames for m in manifests), NONE, np.int16), np.zeros(1, np.int64), tuple(words))
    if settings.by == "run":
        names, labels, words = _by_name([run.name for run in runs], runs)
    elif settings.by == "column":
        names, labels, words = _by_name([_column(run, settings) for run in runs], runs)
    elif settings.by == "table":
        names, labels, words = labels_of_table(Path(settings.table or ""), manifests)
    elif settings.by == "dataset":
        names, labels, words = _by_dataset(settings, manifests)
    elif settings.by == "wavelength":
        names, labels, words = _by_bins(settings, wavelengths(), " Å")
    else:
        names, labels, words = _by_frame(settings, np.concatenate([m.frame_index for m in manifests]))
    check_names(names, settings)
    units = np.concatenate([np.diff(m.offsets) for m in manifests])
    return GroupedFrames(names, labels, np.concatenate([[0], np.cumsum(units)]).astype(np.int64), tuple(words))


Found = tuple[tuple[str, ...], Labels, list[str]]


def _by_name(name_of: Sequence[str], runs: Sequence[RunFrames]) -> Found:
    names = tuple(dict.fromkeys(name_of))
    parts = [np.full(run.manifest.n_frames, names.index(name), np.int16) for name, run in zip(name_of, runs, strict=True)]
    return names, np.concatenate(parts), []


def _column(run: RunFrames, settings: Groups) -> str:
    value = run.columns.get(settings.column or "")
    if not value:
        known = ", ".join(sorted(run.columns))
        raise ConfigError(f"merge.groups.column: run {run.name} has no column {settings.column!r} (it has {known})")
    return value


def _by_frame(settings: Groups, index: NDArray[np.int64]) -> Found:
    number = index if settings.period is None else index % settings.period
    if settings.edges or settings.bins:
        return _by_bins(settings, number.astype(np.float64), "")
    period = settings.period or 1
    return tuple(str(n) for n in range(period)), number.astype(np.int16), []


def _by_bins(settings: Groups, values: NDArray[np.float64], unit: str) -> Found:
    """Return bins between the edges, or of equally many frames."""
    edges = list(settings.edges)
    known = values[np.isfinite(values)]
    if not edges:
        if not len(known):
            return (), np.full(len(values), NONE, np.int16), []
        edges = np.unique(np.quantile(known, np.linspace(0, 1, (settings.bins or 1) + 1))).tolist()
        edges[-1] = float(np.nextafter(edges[-1], np.inf))
        if len(edges) < (settings.bins or 1) + 1:
            raise ConfigError(
                f"merge.groups.bins = {settings.bins}: values from {known.min():g} to {known.max():g}{unit} are too "
                "often equal for bins of equally many frames: give merge.groups.edges"
            )
    labels = binned(values, edges)
    outside = int(np.count_nonzero((labels == NONE) & np.isfinite(values)))
    words = [f"{outside} frames are outside of merge.groups.edges: in no group"] if outside else []
    return tuple(f"{a:.7g}-{b:.7g}" for a, b in pairwise(edges)), labels, words


def _by_dataset(settings: Groups, manifests: Sequence[Manifest]) -> Found:
    values, missing = [], []
    for manifest in manifests:
        found, without = _values(manifest, settings.dataset or "")
        values.append(found)
        missing += without
    joined = np.concatenate(values)
    told = np.array([value is not None for value in joined], dtype=bool)
    first = f" ({missing[0]})" if missing else ""
    if not told.any():
        raise ConfigError(f"merge.groups.dataset: {settings.dataset} is in no file{first}: correct the path")
    words = []
    if not told.all():
        words.append(
            f"merge.groups.dataset: {settings.dataset} has no value of {np.count_nonzero(~told)} of {len(told)} frames{first}: "
            "in no group"
        )
    if settings.edges or settings.bins:
        if any(isinstance(value, str) for value in joined[told].tolist()):
            raise ConfigError(f"merge.groups.dataset {settings.dataset} holds text, of which there are no bins")
        names, labels, more = _by_bins(settings, np.where(told, joined, np.nan).astype(np.float64), "")
        return names, labels, [*words, *more]
    texts = [None if value is None else value if isinstance(value, str) else f"{value:.10g}" for value in joined.tolist()]
    names = tuple(sorted({text for text in texts if text is not None}, key=natural_key))
    if len(names) > MOST_GROUPS:
        raise ConfigError(
            f"merge.groups.dataset: {settings.dataset} has {len(names)} different values, more than {MOST_GROUPS}: "
            "give merge.groups.edges"
        )
    place = {name: number for number, name in enumerate(names)}
    return names, np.array([NONE if text is None else place[text] for text in texts], dtype=np.int16), words


def _values(manifest: Manifest, dataset: str) -> tuple[NDArray[np.object_], list[str]]:
    """Return the value of each frame (None: there is none), and why files give none."""
    values, missing = np.full(manifest.n_frames, None, dtype=object), []
    for number in np.unique(manifest.frame_source).tolist():
        path = manifest.sources.path(number)
        try:
            found = read_frame_values(Path(path), dataset)
        except DataError as error:
            missing.append(str(error))
            continue
        if found is None:
            missing.append(f"{path} has none")
            continue
        rows = np.flatnonzero(manifest.frame_source == number)
        index = manifest.frame_index[rows] if len(found) > 1 else np.zeros(len(rows), dtype=np.int64)
        rows, index = rows[index < len(found)], index[index < len(found)]
        values[rows] = found[index]
    return values, missing


def check_names(names: Sequence[str], settings: Groups) -> None:
    """Raise ConfigError if groups of these names cannot be merged apart, or compared as the section says."""
    if len(names) > MOST_GROUPS:
        shown = ", ".join(names[:5])
        raise ConfigError(f"merge.groups: {len(names)} groups ({shown}, ...): at most {MOST_GROUPS} can be merged apart")
    files: dict[str, str] = {}
    for name in names:
        other = files.setdefault(file_name(name), name)
        if other != name:
            raise ConfigError(f"merge.groups: groups {other!r} and {name!r} have one file name, {file_name(name)!r}: rename one")
    if settings.reference is not None and settings.reference not in names:
        raise ConfigError(f"merge.groups.reference: there is no group {settings.reference!r} (there are: {', '.join(names)})")


def file_name(name: str) -> str:
    """Return a group's name as it goes into names of files."""
    return _NOT_IN_NAMES.sub("_", name)

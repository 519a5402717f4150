"""Indexing ambiguity of a run, or of several merged together: found, resolved, and said."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.ambiguity import Doubt, Resolution
from xfelproc.algorithms.merging.ambiguity_operators import Settings, find_settings, strain
from xfelproc.algorithms.merging.ambiguity_reference import reference_mean
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.errors import ConfigError, DataError
from xfelproc.io.atomic import write_atomic
from xfelproc.io.exchange.reference import ReferenceData
from xfelproc.io.nodes import Partial, read_node, write_node
from xfelproc.io.store import opened, to_bytes
from xfelproc.models.tables import SettingTable
from xfelproc.run.folding import Gathering
from xfelproc.run.lineage import digest, file_identity, versions
from xfelproc.run.reference import usable_reference
from xfelproc.stages.ambiguity import (
    PLACED,
    AmbiguityJob,
    Gathered,
    Place,
    ReindexedShards,
    Resolve,
    mean_arrays,
    resolution_from,
)
from xfelproc.stages.fold import Nodes, Shards, cut_leaves
from xfelproc.stages.resolved import ResolvedShards

STAGE = "ambiguity"
FILE = "settings.h5"
"""In the folder of the merged files: the setting of each lattice."""
CELLS = 500
"""Lattices, from shards all over the run, whose median cell tells which rotations the lattice has."""
EXACT = 1e-4


@dataclass(frozen=True)
class Indexing:
    """What merging has to know: shards whose lattices are all in one setting, as far as that is known.

    ``unresolved`` are the operators of an ambiguity that is left; ``record`` is what ``merge.json`` says of it, empty where there
    is no lattice; ``warnings`` what the user must know.
    """

    blocks: Shards
    unresolved: tuple[str, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def resolved_indexing(
    gathering: Gathering,
    shards: Shards,
    frames: Sequence[int],
    settings: Merge,
    space_group: str,
    lineage: str,
    output: Path,
    given: ReferenceData | None = None,
) -> Indexing:
    """Return the shards with all lattices in one setting.

    Parameters
    ----------
    gathering
        Driver, journal, and the folder in whose ``gather/ambiguity`` the work is done; see `forget`.
    shards, frames
        The shards, and the number of frames of each.
    settings
        Section ``[merge]``.
    space_group
        The group to merge in.
    lineage
        Hash of the shards' lineages.
    output
        Folder for the table of the lattices' settings.
    given
        Intensities that lattices are scaled to: the setting is theirs where ``merge.ambiguity.reference`` names no others.

    Raises
    ------
    ConfigError
        If the reference has another cell or another symmetry.
    DataError
        If a shard is damaged, or the reference cannot be read.
    """
    (output / FILE).unlink(missing_ok=True)
    cell = typical_cell(shards)
    if cell is None:
        return Indexing(shards)
    among = find_settings(cell, space_group, settings.ambiguity.max_obliquity)
    if len(among) == 1:
        return Indexing(shards, record={"ambiguous": False}, warnings=_needless(settings))
    if settings.ambiguity.resolve == "off":
        return Indexing(shards, among.names[1:], {"ambiguous": True, "resolved": False, "operators": _operators(among, cell)})
    asked = settings.ambiguity.reference or (None if given is None else settings.reference)
    content: dict[str, Any] = {"shards": lineage, "merge": settings.model_dump(mode="json"), "group": space_group, "cell": cell}
    content |= {"reference": None if asked is None else file_identity(asked), "versions": versions()}
    job = AmbiguityJob(settings, space_group, digest(content))
    return _resolved(gathering, job, shards, frames, among, cell, output, lineage, given)


def _needless(settings: Merge) -> tuple[str, ...]:
    reference = settings.ambiguity.reference
    if reference is None:
        return ()
    name = Path(reference).name
    return (f"merge.ambiguity.reference {name} is not used: the lattice has no rotations but those of the space group",)


def _resolved(
    gathering: Gathering,
    job: AmbiguityJob,
    shards: Shards,
    frames: Sequence[int],
    among: Settings,
    cell: Sequence[float],
    output: Path,
    lineage: str,
    given: ReferenceData | None,
) -> Indexing:
    knobs = job.settings.ambiguity
    asked = knobs.reference
    if asked is not None:
        given = usable_reference(Path(asked), cell, job.space_group)
    elif given is not None:
        asked = job.settings.reference
    reference = None if given is None or asked is None else _reference(gathering, given, Path(asked), among, job)
    leaves = cut_leaves(frames, gathering.execution.fold_size)
    sample = gathering.fold(Gathered(job), f"{STAGE}/sample", 0, shards, leaves)
    if not read_node(sample, ["sample_counts"])[1]["sample_counts"].any():
        return Indexing(shards)
    (path,) = gathering.update(Resolve(job, among, reference), f"{STAGE}/resolve", 0, Nodes((sample,)), (0, 1))
    made, arrays = read_node(path)
    place, found = Place(job, path, made), resolution_from(arrays)
    table = _joined(gathering.update(place, f"{STAGE}/place", 0, shards, leaves))
    record = _record(table, found, cell, asked)
    write_atomic(output / FILE, _file(table, found, lineage))
    if not found.resolved:
        return Indexing(shards, among.names[1:], record, (_nothing(found.significance, record["n_lattices"]),))
    matrices = tuple(tuple(tuple(row) for row in matrix) for matrix in found.settings.matrices.tolist())
    exclude = knobs.undecided == "exclude"
    folder = gathering.directory.gather.absolute() / STAGE / "place" / "0"
    blocks = ReindexedShards(shards.stage, shards.runs, folder, leaves, place.lineage, matrices, exclude, damaged=shards.damaged)
    return Indexing(blocks, found.same, record, tuple(_left_out(record, exclude)))


def forget(gathering: Gathering) -> None:
    """Remove what was made on the way: nothing reads the shards in their settings any more."""
    shutil.rmtree(gathering.directory.gather / STAGE, ignore_errors=True)


def typical_cell(shards: Shards) -> tuple[float, ...] | None:
    """Return the median cell of some hundred lattices from shards all over the run; None if there are none."""
    n, found = len(shards), 0
    cells: list[NDArray[np.float64]] = []
    # halves, quarters, eighths ... of the run
    order = sorted(range(n), key=lambda block: f"{block:032b}"[::-1])
    for block in order:
        if found >= CELLS:
            break
        cells.append(shards.open(block).lattices()["cell"])
        found += len(cells[-1])
    return tuple(float(v) for v in np.median(np.concatenate(cells), axis=0)) if found else None


def _reference(gathering: Gathering, data: ReferenceData, path: Path, among: Settings, job: AmbiguityJob) -> Path:
    """Write the mean to compare to, of the data of a file; return its path."""
    try:
        mean = reference_mean(data.hkl, data.intensity, data.sigma, data.inverse_d2, among)
    except ValueError as error:
        raise DataError(f"column {data.columns}: {error}", path) from error
    node = gathering.directory.gather.absolute() / STAGE / "reference.h5"
    write_node(node, job.hash("reference"), mean_arrays(mean))
    return node


def _joined(paths: Sequence[Path]) -> Partial:
    parts = [read_node(path)[1] for path in paths]
    return {name: np.concatenate([part[name] for part in parts]) for name in (*PLACED, "block", "row")}


def _file(table: Partial, found: Resolution, lineage: str) -> bytes:
    settings = found.settings
    names = np.array(settings.names, dtype=object)
    columns = {name: table[name] for name in ("setting", "probability", "margin", "correlation")}
    rows = SettingTable(
        None,
        unit=table["block"],
        lattice=table["row"],
        operator=names[table["setting"]],
        n_observations=table["count"],
        doubt=table["doubt"],
        **columns,
    )
    said = {"operators": list(settings.names), "matrices": settings.matrices, "resolved": found.resolved, "shards": lineage}
    return to_bytes(said, {"lattices": rows}, {})


def shards_as_merged(shards: Shards, lineage: str, output: Path) -> ResolvedShards | None:
    """Return the shards of one run with their lattices in the settings that its merging found; None if it resolved nothing.

    Parameters
    ----------
    shards, lineage
        The shards, and the hash of their lineages.
    output
        Folder of the merged files.

    Raises
    ------
    ConfigError
        If the settings are those of other shards.
    DataError
        If their file is damaged.
    """
    path = output / FILE
    if not path.is_file():
        return None
    with opened(path) as file:
        said = dict(file.attrs)
    if not said.get("resolved", True):
        return None
    if said.get("shards") != lineage:
        raise ConfigError(
            f"{path}: frames were processed, or merged by another version, since the ambiguity was resolved: merge again "
            "(run the same job with --only merge), or give --setting indexed"
        )
    return ResolvedShards(shards.stage, shards.runs, path.absolute(), lineage)


def _operators(settings: Settings, cell: Sequence[float]) -> list[dict[str, Any]]:
    """Return name and strain of each setting: 0 where the lattice has the operator exactly."""
    pairs = zip(settings.names, settings.matrices, strict=True)
    return [{"operator": name, "strain": value if (value := strain(cell, m)) > EXACT else 0.0} for name, m in pairs]


def _record(table: Partial, found: Resolution, cell: Sequence[float], reference: str | None) -> dict[str, Any]:
    operators = _operators(found.settings, cell)
    for number, operator in enumerate(operators):
        operator["lattices"] = int(np.count_nonzero((table["setting"] == number) & (table["doubt"] == Doubt.NONE)))
    known = table["probability"][np.isfinite(table["probability"])]
    return {
        "ambiguous": True,
        "resolved": found.resolved,
        "significance": found.significance,
        "operators": operators,
        "same": list(found.same),
        "reference": None if reference is None else Path(reference).name,
        "n_lattices": len(table["doubt"]),
        "doubt": {doubt.name.lower(): int(np.count_nonzero(table["doubt"] == doubt)) for doubt in Doubt if doubt},
        "mean_probability": float(known.mean()) if len(known) else None,
    }


def _nothing(significance: float, n_lattices: int) -> str:
    if n_lattices == 1:
        return "the indexing ambiguity could not be resolved: there is one lattice alone, merged as it was indexed"
    return (
        "the indexing ambiguity could not be resolved: lattices agree with each other in no choice of settings better than by "
        f"chance ({max(significance, 0.0):.1f} σ, 5 are needed): there are too few observations, or the crystals are twinned, "
        "or have the operator themselves (see merge.space_group)"
    )


def _left_out(record: dict[str, Any], exclude: bool) -> list[str]:
    doubt, n = record["doubt"], record["n_lattices"]
    total = sum(doubt.values())
    if not total:
        return []
    told = {
        "undecided": "settings are nearly as likely",
        "unrelated": "they agree with the others in none",
        "empty": "no reflection tells",
    }
    why = "; ".join(f"{doubt[name]}: {words}" for name, words in told.items() if doubt[name])
    done = "left out (merge.ambiguity.undecided)" if exclude else "merged in the likeliest"
    return [f"{total} of {n} lattices have an unknown setting ({why}): {done}"]

"""Lineage of a unit's shard: parameters, the frames as planned, and the files as they were read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfelproc.io.manifest import UNSEEN, Manifest, UnitInput, file_state
from xfelproc.io.shards import ShardHeader, published_units, read_header, shard_path

LOOKERS = 16
"""Threads that look which units are done."""


def planned_lineage(lineage: str, given: UnitInput) -> str:
    """Return the hash of a stage's lineage and a unit's input, as far as it was seen when the run was planned."""
    return hashlib.sha256(f"{lineage} {given.fingerprint}".encode()).hexdigest()


def read_lineage(planned: str, states: NDArray[np.int64]) -> str:
    """Return the hash that a shard carries: ``planned``, and what was only seen on reading.

    ``states`` (n, 2) holds size and time of the sources of the unit that nobody looked at before; where there are none it is
    ``planned`` itself.
    """
    return hashlib.sha256(planned.encode() + np.ascontiguousarray(states).data).hexdigest() if len(states) else planned


def states_now(given: UnitInput) -> NDArray[np.int64]:
    """Return size and time of the files of a unit that were not looked at when the run was planned, as they are now; (n, 2)."""
    found = [file_state(given.sources.path(int(row))) for row in given.unseen]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def unit_lineage(lineage: str, given: UnitInput) -> str:
    """Return the hash that a unit's shard must carry to be taken as done. Looks at the files of one frame."""
    return read_lineage(planned_lineage(lineage, given), states_now(given))


def files_digest(manifest: Manifest) -> str:
    """Return the hash of size and time of those files of its frames that were not looked at when the run was planned."""
    used = np.unique(manifest.frame_source)
    unseen = used[manifest.sources.table["size"][used] == UNSEEN]
    return hashlib.sha256(repr([file_state(manifest.sources.path(int(n))) for n in unseen]).encode()).hexdigest()


def find_shard(path: Path, lineage: str, given: UnitInput) -> tuple[ShardHeader | None, bool]:
    """Return the header of a unit's shard if it is done, and whether it was done with files that have changed since.

    Files are looked at only where there is a shard made with the same parameters of the same frames.
    """
    header = read_header(path)
    if header is None:
        return None, False
    planned = planned_lineage(lineage, given)
    if header.planned != planned:
        return None, False
    if header.lineage != read_lineage(planned, states_now(given)):
        return None, True
    return header, False


def find_shards(
    run: Path, stage: str, lineage: str, manifest: Manifest, units: Sequence[int]
) -> tuple[dict[int, ShardHeader], list[int]]:
    """Return the headers of the units that are done, and the units that were, but with files that have changed since."""
    there = set(published_units(run, stage).tolist())
    found: dict[int, ShardHeader] = {}
    changed: list[int] = []

    def look(unit: int) -> tuple[ShardHeader | None, bool]:
        return find_shard(shard_path(run, stage, unit), lineage, manifest.unit_input(unit))

    some = [unit for unit in units if unit in there]
    with ThreadPoolExecutor(LOOKERS) as threads:  # a file system that is far away answers many at once
        for unit, (header, other_files) in zip(some, threads.map(look, some), strict=True):
            if header is not None:
                found[unit] = header
            elif other_files:
                changed.append(unit)
    return found, changed

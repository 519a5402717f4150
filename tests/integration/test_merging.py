"""Merging by the real command line: groups, and what may be wrong with what is merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gemmi
import h5py
import pytest

from tests.integration.conftest import xfelproc
from xfelproc.io.shards import read_header, shard_path

pytestmark = pytest.mark.slow


def test_groups_and_a_damaged_shard(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    damaged = next(unit for unit in range(12) if read_header(shard_path(run, "process", unit)).counts["LATTICES"])
    path = shard_path(run, "process", damaged)
    with h5py.File(path, "r+") as file:
        file["reflections/intensity"][0] += 1.0
    rows = [f"frames.h5 //{i} {'light' if i % 2 else 'dark'}" for i in range(24)]
    (tmp_path / "groups.lst").write_text("\n".join([*rows, "frames.h5 //99 dark", "other.h5 never"]))
    groups = ["--set", "merge.groups.by=table", "--set", f"merge.groups.table={tmp_path / 'groups.lst'}"]
    result = xfelproc("run", experiment / "job.toml", "-o", run, "--driver", "inline", "--only", "merge", *groups)
    assert result.code == 1, result.output
    assert "Traceback" not in result.output
    lost = read_header(path).counts["LATTICES"]
    assert f"{path} is damaged: its {lost} lattices are not merged; remove it and run the same command again" in result.output
    assert "1 shards are damaged" in result.output
    assert "2 of 26 rows are of no frame of these runs, the first in line 25: frames.h5 frame 99" in result.output
    assert "group never: no frame of these runs is in it: not merged" in result.output
    assert "light less dark: " in result.output
    before, record = (json.loads((folder / "gather" / "merge.json").read_text()) for folder in (undisturbed, run))
    assert record["n_lattices"] == before["n_lattices"] - lost
    assert sum(group["n_lattices"] for group in record["groups"]) == record["n_lattices"]
    mtz = gemmi.read_mtz_file(str(run / "merged" / "groups" / "difference_light-dark.mtz"))
    assert mtz.nreflections == record["differences"][0]["overall"]["n_pairs"] > 100
    assert record["lineage"] != before["lineage"]

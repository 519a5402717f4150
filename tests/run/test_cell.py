"""The consensus cell does not depend on where, or in which order, the frames of the sample were indexed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.run.test_run import job
from tests.stages.fakes import Quiet, open_fake
from xfelproc.io.shards import published_units, shard_path
from xfelproc.run.recipes import run_job

WORDS = ["hit", "blank", *["hit"] * 30, "truncated", *["hit"] * 7]


def consensus(folder: Path, output: Path, driver: str, **sections: Any) -> bytes:
    words = None if (folder / "frames.txt").exists() else WORDS  # written twice, the file would have changed
    config = job(folder, words, driver, index={"cell": None}, **sections)
    run_job(config, output, Quiet(), only="cell", opener=open_fake)
    return (output / "gather" / "consensus.json").read_bytes()


@pytest.mark.parametrize("driver", ["inline", "pool"])
def test_consensus_is_the_same_in_any_order(tmp_path: Path, driver: str) -> None:
    once = consensus(tmp_path, tmp_path / "once", "inline")
    assert b'"cell": [\n  10.0' in once
    run = tmp_path / driver
    consensus(tmp_path, run, driver)
    (run / "gather" / "consensus.json").unlink()
    units = published_units(run, "sample")
    assert len(units) == 5
    for unit in units[::2]:  # the first are now done last
        shard_path(run, "sample", int(unit)).unlink()
    assert consensus(tmp_path, run, driver) == once


def test_sample_ends_with_enough_lattices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds are of fixed sizes: how many frames are tried depends on the lattices found, not on who was fast."""
    monkeypatch.setattr("xfelproc.run.stage_cell.FIRST_ROUND", 8)
    records = [consensus(tmp_path, tmp_path / d, d, sample={"min_lattices": 10}) for d in ("inline", "pool")]
    assert records[0] == records[1]
    assert len(published_units(tmp_path / "pool", "sample")) == 2

"""Frames of a crystal whose lattice has more rotations than itself, by the real command line."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.integration.conftest import DETECTOR, xfelproc
from xfelproc.io.shards import read_frames, read_lattices, shard_path
from xfelproc.simulation import preset, simulate

pytestmark = pytest.mark.slow


def upright(run: Path, truth: Path) -> np.ndarray:
    """Return of each lattice whether its c* is the crystal's, not its opposite: the only choice there is in P 4."""
    with h5py.File(truth) as file:
        true = dict(zip(file["lattice/frame"][()].tolist(), file["lattice/A"][()], strict=True))
    found = []
    for unit in range(len(list((run / "shards" / "process").rglob("*.h5")))):
        path = shard_path(run, "process", unit)
        lattices, frames = read_lattices(path), read_frames(path)
        for matrix, row in zip(lattices["A"], lattices["frame"], strict=True):
            found.append(np.linalg.inv(true[int(frames["index"][row])]) @ matrix)
    operators = np.array(found)
    assert np.rint(operators) == pytest.approx(operators, abs=0.1)
    return operators[:, 2, 2] > 0


def test_lattices_are_put_into_one_setting(tmp_path: Path) -> None:
    simulate(preset("single", frames=24, detector=DETECTOR, crystal={"space_group": "P 4"}), tmp_path)
    options = ("--driver", "inline", "--set", "report.enabled=false")
    result = xfelproc("run", tmp_path / "job.toml", "-o", tmp_path / "run", *options)
    assert result.code == 0, result.output
    assert "Indexing ambiguity resolved: " in result.output
    with h5py.File(tmp_path / "run" / "merged" / "settings.h5") as file:
        setting, probability = (file[f"lattices/{name}"][()] for name in ("setting", "probability"))
        assert file.attrs["operators"].tolist() == ["h,k,l", "-h,k,-l"]
    before = upright(tmp_path / "run", tmp_path / "truth.h5")
    assert 0.2 < before.mean() < 0.8, "frames alone do not tell"
    after = before ^ (setting == 1)
    assert max(after.mean(), 1.0 - after.mean()) == 1.0
    assert probability.min() > 0.9
    record = json.loads((tmp_path / "run" / "gather" / "merge.json").read_text())
    assert record["settings"]["resolved"]
    assert record["ambiguity"] == []
    for to, name in (("stream", "x.stream"), ("dials", "x.expt")):
        for setting in ("resolved", "indexed"):
            path = tmp_path / f"{setting}_{name}"
            done = xfelproc("export", tmp_path / "run", "--to", to, "-o", path, "--setting", setting)
            assert done.code == 0, done.output
            turned = exported_upright(path, tmp_path / "truth.h5")
            assert np.array_equal(turned, after if setting == "resolved" else before)


def exported_upright(path: Path, truth: Path) -> np.ndarray:
    """Return of each exported crystal what `upright` does; one crystal a frame, in their order."""
    if path.suffix == ".stream":
        rows = [line.split() for line in path.read_text().splitlines() if line.startswith("cstar = ")]
        c_star = np.array([row[2:5] for row in rows], dtype=np.float64) * [-1, 1, -1]
    else:
        crystals = json.loads(path.read_text())["crystal"]
        c_star = np.array([np.cross(x["real_space_a"], x["real_space_b"]) for x in crystals])
    with h5py.File(truth) as file:
        true = file["lattice/A"][()][np.argsort(file["lattice/frame"][()])]
    return np.einsum("ni,ni->n", c_star, true[:, :, 2]) > 0

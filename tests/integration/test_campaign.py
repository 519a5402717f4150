"""Twenty runs, one corrupt, one empty, two of another geometry, through the real command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import DETECTOR, xfelproc
from xfelproc.run.lock import run_lock
from xfelproc.simulation import preset, simulate

pytestmark = pytest.mark.slow

CORRUPT, EMPTY, OTHER = "r004", "r011", ("r007", "r015")
N_RUNS = 20
ARCHIVE = """
base = "base.toml"
output = "processed"
group_by = ["sample"]
parallel = 2
sample_runs = 1
sample_frames = 4

[runs]
pattern = "raw/{run}/frames.h5"
table = "runs.csv"

[[rule]]
where = { detector = "far" }
job = { input = { geometry = "far.geom" } }
"""
BASE = """
recipe = "stills"
[input]
geometry = "near.geom"
[index]
cell = [79.1, 79.1, 38.0, 90, 90, 90]
space_group = "P 43 21 2"
[execution]
driver = "pool"
workers = 1
unit_size = 4
[slurm]
mpi = "none"
tasks_per_node = 1
merge_job = false
cache_folder = "none"
time = "20"
[report]
enabled = false
"""


def sample_of(name: str) -> str:
    return "dark" if int(name[1:]) % 2 else "pumped"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of raw runs, table and campaign file."""
    folder = tmp_path_factory.mktemp("archive")
    kinds = {"near0": 120.0, "near1": 120.0, "far": 150.0}
    for seed, (kind, distance) in enumerate(kinds.items()):
        detector = {**DETECTOR, "distance": distance}
        simulate(preset("demo", frames=8, seed=seed, detector=detector), folder / "made" / kind)
    shutil.copy(folder / "made" / "near0" / "frames.geom", folder / "near.geom")
    shutil.copy(folder / "made" / "far" / "frames.geom", folder / "far.geom")
    rows = ["run,sample,detector"]
    for number in range(N_RUNS):
        name = f"r{number:03d}"
        kind = "far" if name in OTHER else f"near{number % 2}"
        (folder / "raw" / name).mkdir(parents=True)
        if name != EMPTY:
            shutil.copy(folder / "made" / kind / "frames.h5", folder / "raw" / name / "frames.h5")
        rows.append(f"{name},{sample_of(name)},{kind}")
    with (folder / "raw" / CORRUPT / "frames.h5").open("r+b") as stream:
        stream.truncate(5000)
    (folder / "runs.csv").write_text("\n".join(rows) + "\n")
    (folder / "base.toml").write_text(BASE)
    (folder / "archive.toml").write_text(ARCHIVE)
    return folder


def status(archive: Path) -> dict[str, Any]:
    result = xfelproc("campaign", archive / "archive.toml", "--status", "--json")
    assert result.code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def test_plan_says_what_and_at_what_cost(archive: Path) -> None:
    result = xfelproc("campaign", archive / "archive.toml", "--plan")
    assert result.code == 0, result.output
    assert f"{EMPTY}: failed: the archive holds no file of this run" in result.output
    assert f"{CORRUPT}: cannot be planned" in result.output
    assert f"{8 * (N_RUNS - 2)} frames in {N_RUNS - 2} runs" in result.output
    assert "core-hours" in result.output
    assert not (archive / "processed" / "runs" / "r000" / "manifest.h5").exists()


def test_right_ones_are_merged_and_the_others_explained(archive: Path) -> None:
    result = xfelproc("campaign", archive / "archive.toml", timeout=900)
    assert result.code == 1, result.output
    check(archive, "processed")


def check(archive: Path, output: str) -> None:
    """See that all good runs are merged, by themselves and in their groups, and the bad ones explained."""
    told = status(archive)
    found = {run["name"]: run for run in told["runs"]}
    assert {name for name, run in found.items() if run["state"] != "done"} == {CORRUPT, EMPTY}
    assert "cut short" in found[CORRUPT]["message"]
    assert "no file" in found[EMPTY]["message"]
    for name in OTHER:  # with the near geometry their cells would be a quarter too large, and nothing would index
        assert found[name]["counts"]["INTEGRATED"] >= 4
    groups = {group["name"]: group for group in told["groups"]}
    assert set(groups) == {"sample-dark", "sample-pumped"}
    good = [f"r{n:03d}" for n in range(N_RUNS) if f"r{n:03d}" not in (CORRUPT, EMPTY)]
    for sample in ("dark", "pumped"):
        group = groups[f"sample-{sample}"]
        assert group["runs"] == [name for name in good if sample_of(name) == sample]
        assert (archive / output / "groups" / f"sample-{sample}" / "merged" / "merged.mtz").is_file()
        lattices = sum(found[name]["counts"]["LATTICES"] for name in group["runs"])
        assert group["counts"]["LATTICES"] == lattices
    page = (archive / output / "campaign.html").read_text()
    assert CORRUPT in page
    assert "sample-dark" in page


def test_same_command_again_does_nothing(archive: Path) -> None:
    files = [*(archive / "processed").rglob("*.mtz"), *(archive / "processed").rglob("shards/**/*.h5")]
    before = {path: path.stat().st_mtime_ns for path in files}
    result = xfelproc("campaign", archive / "archive.toml")
    assert "0 to do" in result.output
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_two_at_once(archive: Path) -> None:
    with run_lock(archive / "processed"):
        result = xfelproc("campaign", archive / "archive.toml")
    assert result.code == 2
    assert "another run is at work here" in result.output


def test_changed_parameter_touches_its_runs_alone(archive: Path) -> None:
    folder = archive / "processed" / "runs"
    stamps = {name: (folder / name / "merged" / "merged.mtz").stat().st_mtime_ns for name in ("r000", *OTHER)}
    text = ARCHIVE.replace('"far.geom" } }', '"far.geom" }, spots = { min_spots = 9 } }')
    (archive / "archive.toml").write_text(text)
    result = xfelproc("campaign", archive / "archive.toml", timeout=600)
    assert "2 changed" in result.output
    assert "spots.min_spots" in result.output
    now = {name: (folder / name / "merged" / "merged.mtz").stat().st_mtime_ns for name in stamps}
    assert now["r000"] == stamps["r000"]
    assert all(now[name] != stamps[name] for name in OTHER)


def test_repaired_run_is_retried(archive: Path) -> None:
    shutil.copy(archive / "raw" / "r000" / "frames.h5", archive / "raw" / CORRUPT / "frames.h5")
    shutil.copy(archive / "raw" / "r001" / "frames.h5", archive / "raw" / EMPTY / "frames.h5")
    result = xfelproc("campaign", archive / "archive.toml", "--retry", timeout=600)
    assert result.code == 0, result.output
    states = status(archive)
    assert {run["state"] for run in states["runs"]} == {"done"}
    assert sum(len(group["runs"]) for group in states["groups"]) == N_RUNS


def test_under_slurm(archive: Path, cluster: None) -> None:
    (archive / "raw" / EMPTY / "frames.h5").unlink()
    with (archive / "raw" / CORRUPT / "frames.h5").open("r+b") as stream:
        stream.truncate(5000)
    text = ARCHIVE.replace('output = "processed"', 'output = "submitted"\nwhere = "slurm"').replace(
        "sample_runs = 1", "sample_runs = 0"
    )
    (archive / "archive.toml").write_text(text)
    result = xfelproc("campaign", archive / "archive.toml", timeout=1200)
    assert result.code == 1, result.output
    assert f"{N_RUNS - 2} runs" in result.output
    check(archive, "submitted")
    here, there = (archive / output / "runs" / "r000" / "merged" / "merged.mtz" for output in ("processed", "submitted"))
    assert here.read_bytes() == there.read_bytes()
    again = xfelproc("campaign", archive / "archive.toml")
    assert "0 to do" in again.output

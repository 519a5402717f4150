"""The report of runs that were merged together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.run.synthetic_shards import gathering
from tests.run.test_run import job, run
from tests.stages import fakes
from tests.stages.fakes import open_fake
from xfelproc.errors import DataError
from xfelproc.io.sources.base import FrameSource
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.experiment import Beam, Detector, Experiment, Panel
from xfelproc.run.campaign.group_report import GroupOfRuns, write_group_report
from xfelproc.run.directory import RunDirectory
from xfelproc.run.merging import FoundShards, MergeInput

FIGURES: dict[str, Any] = dict.fromkeys(
    ("d_max", "d_min", "completeness", "multiplicity", "i_over_sigma", "cc_half", "cc_star", "r_split"), 0.5
) | {"n_observations": 7, "n_unique": 3}
MERGED = {"cell": [10.0, 20.0, 30.0, 90.0, 90.0, 90.0], "space_group": "P 2 2 2", "warnings": ["a <word>"]}


@pytest.fixture
def group(tmp_path: Path) -> GroupOfRuns:
    """Two runs, of 10 and 6 frames."""
    words = {"r1": ["hit"] * 8 + ["blank"] * 2, "r2": ["hit"] * 5 + ["truncated"]}
    folders, configs, inputs = [], [], []
    for name, frames in words.items():
        (tmp_path / name).mkdir()
        configs.append(job(tmp_path / name, frames, report={"enabled": True}))
        folders.append(RunDirectory(tmp_path / name / f"run-{name}"))
        run(configs[-1], folders[-1].path)
        inputs.append(MergeInput(folders[-1].path, folders[-1].read_manifest().n_units))
    return GroupOfRuns("sample-a", folders, configs, FoundShards.of(inputs), MERGED | {"overall": FIGURES, "shells": [FIGURES]})


def test_frames_of_all_runs_count(group: GroupOfRuns, tmp_path: Path) -> None:
    place = gathering(tmp_path / "group", fold_size=4)
    text = write_group_report(place, group, open_fake).read_text().partition("<body>")[2]
    assert "<h1>sample-a</h1>" in text
    assert "<b>16</b><span>frames</span>" in text
    assert "<b>13</b><span>hits" in text
    assert "<b>1</b><span>frames that failed</span>" in text
    assert "Runs run-r1, run-r2; geometry of run-r1" in text
    assert "a &lt;word&gt;" in text
    assert "Merged data" in text


def test_other_panels_make_no_report(group: GroupOfRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(path: str, settings: SourceSettings) -> FrameSource:
        source = open_fake(path, settings)
        if "r2" in path:
            panel = Panel("p", (1, 0, 0), (0, -1, 0), (-1.6, 1.6, -100), (0.1, 0.1), (fakes.SIZE, 7))
            other = Experiment(Beam(1.0), Detector((panel,)))
            monkeypatch.setattr(source, "_experiment", other)
        return source

    with pytest.raises(DataError, match="run-r2: its panels are others than those of run-r1"):
        write_group_report(gathering(tmp_path / "group"), group, opened)

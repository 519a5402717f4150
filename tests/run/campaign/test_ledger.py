from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from xfelproc.run.campaign.ledger import CampaignFolder, job_stamp, state_of, write_record
from xfelproc.run.campaign.plan import CampaignRun


@pytest.fixture
def run(tmp_path: Path) -> CampaignRun:
    (tmp_path / "a.h5").write_bytes(b"frames")
    (tmp_path / "a.geom").write_text("clen = 0.1")
    given = {"files": [str(tmp_path / "a.h5")], "geometry": str(tmp_path / "a.geom")}
    return CampaignRun("r1", {}, {"input": given})


@pytest.mark.parametrize("name", ["a.h5", "a.geom"])
def test_a_run_is_to_do_again_if_a_file_was_changed_in_its_place(run: CampaignRun, tmp_path: Path, name: str) -> None:
    folder = CampaignFolder(tmp_path / "all")
    folder.create()
    folder.run("r1").joinpath("gather").mkdir(parents=True)
    folder.run("r1").joinpath("job.toml").touch()
    write_record(folder, "r1", {"stamp": job_stamp(run.config()), "exit_code": 0, "message": "", "ended": "end"})
    assert state_of(folder, run).state == "done"
    (tmp_path / name).write_text("clen = 0.2")
    assert state_of(folder, run).state == "partial"


def test_what_touches_no_result_touches_no_stamp(run: CampaignRun, tmp_path: Path) -> None:
    def stamp(**sections: Any) -> str:
        return job_stamp(CampaignRun("r1", {}, {**run.document, **sections}).config())

    before = stamp()
    os.utime(tmp_path / "a.geom")
    assert stamp(execution={"driver": "inline"}, report={"title": "x"}) == before
    assert stamp(merge={"d_min": 2.0}) != before
    assert stamp(execution={"unit_size": 9}) != before

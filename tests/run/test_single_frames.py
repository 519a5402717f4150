"""Image files of one frame: most are neither opened nor looked at when the run is planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.run.test_run import CELL, results, run
from tests.stages.fakes import SECTIONS, FakeSource, Quiet, open_fake
from xfelproc.errors import ConfigError
from xfelproc.io.manifest import UNSEEN, file_state, read_manifest
from xfelproc.io.shards import read_frames, read_header, shard_path
from xfelproc.io.sources.base import FrameSource
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.frames import Frame
from xfelproc.run.config import JobConfig, config_class, make_config
from xfelproc.run.journal import read_journal
from xfelproc.run.plan import OPENED_OF_A_SUFFIX, Plan, make_plan
from xfelproc.run.recipes import run_job

N = 100


def frames(folder: Path, n: int = N, word: str = "hit", suffix: str = ".cbf") -> list[Path]:
    """Make files of one frame."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"f_{i}{suffix}" for i in range(n)]
    for path in paths:
        path.write_text(word)
    return paths


def job(folder: Path, files: str = "data/*.cbf", **sections: Any) -> JobConfig:
    document: dict[str, Any] = {
        "input": {"files": files},
        "index": {"cell": CELL},
        "execution": {"driver": "inline", "unit_size": 10, "max_failed": 1.0},
    }
    for name, keys in sections.items():
        document.setdefault(name, {}).update(keys)
    return make_config(document, folder, config_class(SECTIONS))


def counted(config: JobConfig) -> tuple[Plan, list[str]]:
    """Return a plan, and what was opened for it."""
    opened: list[str] = []

    def opener(path: str, settings: SourceSettings) -> FrameSource:
        opened.append(Path(path).name)
        return open_fake(path, settings)

    return make_plan(config, opener), opened


def test_some_are_opened_and_the_others_taken_for_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames(tmp_path / "data")
    looked: list[str] = []
    monkeypatch.setattr("xfelproc.run.plan.file_state", lambda path: looked.append(str(path)) or file_state(path))
    plan, opened = counted(job(tmp_path))
    assert len(opened) == len(set(opened)) == OPENED_OF_A_SUFFIX
    assert {"f_0.cbf", f"f_{N - 1}.cbf"} <= set(opened)
    assert len(looked) == OPENED_OF_A_SUFFIX
    assert plan.unseen == N
    assert np.all(plan.manifest.sources.table["size"] == UNSEEN)
    assert [plan.manifest.sources.name(i) for i in plan.manifest.frame_source] == [f"f_{i}.cbf" for i in range(N)]


def test_few_are_opened_all(tmp_path: Path) -> None:
    frames(tmp_path / "data", OPENED_OF_A_SUFFIX)
    plan, opened = counted(job(tmp_path))
    assert len(opened) == OPENED_OF_A_SUFFIX
    assert plan.unseen == 0


def test_where_the_sample_holds_more_frames_all_are_opened(tmp_path: Path) -> None:
    frames(tmp_path / "data", word="hit hit")
    plan, opened = counted(job(tmp_path))
    assert len(opened) == N
    assert (plan.unseen, plan.manifest.n_frames) == (0, 2 * N)


def test_other_suffixes_do_not_matter(tmp_path: Path) -> None:
    frames(tmp_path / "data")
    frames(tmp_path / "data", word="hit hit", suffix=".h5")
    plan, opened = counted(job(tmp_path, "data/*"))
    assert len(opened) == OPENED_OF_A_SUFFIX + N
    assert (plan.unseen, plan.manifest.n_frames) == (N, 3 * N)


def test_frames_chosen_by_a_list(tmp_path: Path) -> None:
    frames(tmp_path / "data")
    (tmp_path / "data" / "some.lst").write_text("\n".join([f"f_{i}.cbf" for i in range(99)] + ["f_99.cbf //0"]))
    plan, opened = counted(job(tmp_path, "@data/some.lst"))
    assert len(opened) == OPENED_OF_A_SUFFIX + 1
    assert plan.unseen == 99


def test_which_were_opened_does_not_matter(tmp_path: Path) -> None:
    paths = frames(tmp_path / "data")
    before = counted(job(tmp_path))[0].manifest
    paths[-1].unlink()
    after = counted(job(tmp_path))[0].manifest
    same = [before.unit_fingerprint(u) == after.unit_fingerprint(u) for u in range(10)]
    assert same == [True] * 9 + [False]


def test_broken_files_of_the_sample_are_told_and_the_rest_is_read(tmp_path: Path) -> None:
    paths = frames(tmp_path / "data")
    paths[0].write_text("")
    paths[2].write_text("")  # not of the sample
    outcome = run(job(tmp_path), tmp_path / "out")
    assert dict(read_manifest(tmp_path / "out" / "manifest.h5").sources.errors) == {0: f"{paths[0]}: is empty"}
    assert outcome.counts["FAILED"] == 2
    reasons = read_frames(shard_path(tmp_path / "out", "process", 0))["reason"]
    assert [f"{paths[i]}: is empty" for i in (0, 2)] == [reasons[0], reasons[2]]
    paths[0].write_text("hit")
    paths[2].write_text("hit")
    assert run(job(tmp_path), tmp_path / "out").counts["FAILED"] == 0


def test_a_file_of_more_frames_among_single_ones_fails_with_a_reason(tmp_path: Path) -> None:
    paths = frames(tmp_path / "data")
    paths[2].write_text("hit hit")  # not of the sample
    assert run(job(tmp_path), tmp_path / "out").counts["FAILED"] == 1
    reason = read_frames(shard_path(tmp_path / "out", "process", 0))["reason"][2]
    assert "f_2.cbf: holds 2 frames, and was taken for one" in reason


def test_nothing_is_done_twice(tmp_path: Path) -> None:
    frames(tmp_path / "data")
    run(job(tmp_path), tmp_path / "out")
    reporter = Quiet()
    run(job(tmp_path), tmp_path / "out", reporter=reporter)
    assert reporter.frames == 0
    assert reporter.lines == [f"process {N}/{N}"]


def test_files_changed_since_they_were_read_are_read_again(tmp_path: Path) -> None:
    paths = frames(tmp_path / "data")
    run(job(tmp_path), tmp_path / "out")
    shard = shard_path(tmp_path / "out", "process", 3)
    before, others = read_header(shard), read_header(shard_path(tmp_path / "out", "process", 4))
    paths[33].write_text("blank")
    reporter = Quiet()
    outcome = run(job(tmp_path), tmp_path / "out", reporter=reporter)
    after = read_header(shard)
    assert before is not None
    assert after is not None
    assert (reporter.frames, outcome.counts["BLANK"]) == (10, 1)
    assert before.lineage != after.lineage  # so that what was merged of it is merged again
    assert before.planned == after.planned
    assert others == read_header(shard_path(tmp_path / "out", "process", 4))
    assert "files of 1 units have changed" in reporter.lines[0]
    assert [e["units"] for e in read_journal(tmp_path / "out") if e["event"] == "files_changed"] == [[3]]
    assert run(job(tmp_path), tmp_path / "out", reporter=(quiet := Quiet())).counts["BLANK"] == 1
    assert quiet.frames == 0


class Meddling(FakeSource):
    """Its first frame, when it is read, changes a later file and removes another one."""

    def read(self, index: int, source: int = 0) -> Frame:
        path = Path(self.path)
        if path.name == "f_0.cbf":
            path.with_name("f_5.cbf").write_text("blank")
            path.with_name("f_7.cbf").unlink(missing_ok=True)
        return super().read(index, source)


def open_meddling(path: str, settings: SourceSettings) -> FrameSource:
    return Meddling(path, settings)


@pytest.mark.parametrize(("n", "blank", "changed"), [(N, 1, ""), (20, 0, "has changed since the run was planned")])
def test_files_that_change_or_vanish_between_planning_and_reading(tmp_path: Path, n: int, blank: int, changed: str) -> None:
    frames(tmp_path / "data", n)
    outcome = run_job(job(tmp_path), tmp_path / "out", Quiet(), only="process", opener=open_meddling)
    assert outcome.counts["BLANK"] == blank
    reasons = read_frames(shard_path(tmp_path / "out", "process", 0))["reason"]
    assert changed in reasons[5]
    assert "f_7.cbf: cannot be opened: it is no longer there" in reasons[7]
    reporter = Quiet()
    again = run(job(tmp_path), tmp_path / "out", reporter=reporter)
    assert (again.counts["BLANK"], again.counts["FAILED"]) == (1, 0)
    assert results(tmp_path / "out") == results_of_a_fresh_run(tmp_path)


def results_of_a_fresh_run(folder: Path) -> list[dict[str, Any]]:
    run(job(folder), folder / "fresh")
    return results(folder / "fresh")


def test_nothing_is_opened_further_where_the_whole_sample_is_broken(tmp_path: Path) -> None:
    frames(tmp_path / "data", word="")
    with pytest.raises(
        ConfigError, match=f"none of the {OPENED_OF_A_SUFFIX} files that were opened, of {N}, can be read; the first: .*is empty"
    ):
        counted(job(tmp_path))

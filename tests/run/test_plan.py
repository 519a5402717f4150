from __future__ import annotations

from pathlib import Path

import pytest

from tests.algorithms.downstream.wilson_data import simulated
from tests.stages.fakes import SECTIONS, open_fake
from xfelproc.errors import ConfigError
from xfelproc.io.exchange.mtz import MtzHeader, merged_mtz
from xfelproc.run.config import config_class, make_config
from xfelproc.run.plan import Plan, make_plan


def plan(folder: Path, files: str, frames: str | None = None) -> Plan:
    for name, words in (("a.cbf", ["hit"] * 5), ("b.cbf", ["hit"] * 3), ("empty.cbf", [])):
        (folder / name).write_text(" ".join(words))
    job = {"input": {"files": files} | ({} if frames is None else {"frames": frames})}
    return make_plan(make_config(job, folder, config_class(SECTIONS)), open_fake)


def chosen(found: Plan) -> list[tuple[str, int]]:
    pairs = zip(found.manifest.frame_source, found.manifest.frame_index, strict=True)
    return [(found.manifest.sources.name(int(source)), int(index)) for source, index in pairs]


@pytest.mark.parametrize("files", ["[ab].cbf", "@files.lst"])
def test_frames_are_chosen_of_all_files_together(tmp_path: Path, files: str) -> None:
    (tmp_path / "files.lst").write_text("a.cbf\nb.cbf\n")
    assert chosen(plan(tmp_path, files, "3:7,0")) == [("a.cbf", 0), ("a.cbf", 3), ("a.cbf", 4), ("b.cbf", 0), ("b.cbf", 1)]


def test_a_list_may_name_single_frames(tmp_path: Path) -> None:
    (tmp_path / "events.lst").write_text("b.cbf //2\na.cbf 4\nb.cbf //0\nempty.cbf //7\n")
    assert chosen(plan(tmp_path, "@events.lst")) == [("b.cbf", 0), ("b.cbf", 2), ("a.cbf", 4), ("empty.cbf", 0)]
    assert chosen(plan(tmp_path, "@events.lst", "1:3")) == [("b.cbf", 2), ("a.cbf", 4)]


@pytest.mark.parametrize(
    ("files", "frames", "words"),
    [
        ("[ab].cbf", "8", "input.frames: there is no frame 8, the last one is 7"),
        ("[ab].cbf", "8:20", "chooses none of the 8 frames"),
        ("@events.lst", None, "b.cbf: a list names frame 3, the last one is 2"),
    ],
)
def test_frames_that_are_not_there(tmp_path: Path, files: str, frames: str | None, words: str) -> None:
    (tmp_path / "events.lst").write_text("b.cbf //3\n")
    with pytest.raises(ConfigError, match=words):
        plan(tmp_path, files, frames)


def test_reference_intensities_are_looked_at_before_anything_starts(tmp_path: Path) -> None:
    cell = (60.0, 60.0, 80.0, 90.0, 90.0, 90.0)
    (tmp_path / "a.cbf").write_text("hit")
    merged = simulated(cell, "P 4", d_min=8.0).merged
    (tmp_path / "known.mtz").write_bytes(merged_mtz(merged, MtzHeader(cell, "P 4", 1.0)))

    def planned(name: str, given: tuple[float, ...], group: str) -> Plan:
        index = {"cell": given, "space_group": group}
        job = {"input": {"files": "a.cbf"}, "merge": {"ambiguity": {"reference": name}}, "index": index}
        return make_plan(make_config(job, tmp_path), open_fake)

    assert planned("known.mtz", cell, "P 43").manifest.n_frames == 1
    with pytest.raises(ConfigError, match=r"merge\.ambiguity\.reference: .*none\.mtz"):
        planned("none.mtz", cell, "P 43")
    with pytest.raises(
        ConfigError, match=r"merge\.ambiguity\.reference .*known\.mtz: its cell is 60\.00 .* that of the lattices 70\.00"
    ):
        planned("known.mtz", (70.0, 70.0, 80.0, 90.0, 90.0, 90.0), "P 43")
    with pytest.raises(ConfigError, match=r"known\.mtz: P 4 has other rotations than P 43 21 2"):
        planned("known.mtz", cell, "P 43 21 2")


def test_a_file_of_free_flags_is_looked_at_before_anything_starts(tmp_path: Path) -> None:
    cell = (60.0, 70.0, 80.0, 90.0, 90.0, 90.0)
    (tmp_path / "a.cbf").write_text("hit")
    merged = simulated(cell, "P 21 21 21", d_min=8.0).merged
    (tmp_path / "old.mtz").write_bytes(merged_mtz(merged, MtzHeader(cell, "P 21 21 21", 1.0)))

    def planned(name: str, given: tuple[float, ...]) -> Plan:
        job = {"input": {"files": "a.cbf"}, "merge": {"free_from": name}, "index": {"cell": given, "space_group": "P 21 21 21"}}
        return make_plan(make_config(job, tmp_path), open_fake)

    assert planned("old.mtz", cell).manifest.n_frames == 1
    with pytest.raises(ConfigError, match=r"merge\.free_from: .*none\.mtz: there is no such file"):
        planned("none.mtz", cell)
    with pytest.raises(ConfigError, match=r"merge\.free_from: .*old\.mtz.*another crystal form"):
        planned("old.mtz", (60.0, 70.0, 90.0, 90.0, 90.0, 90.0))

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfelproc.errors import ConfigError
from xfelproc.run.campaign.plan import CampaignRun, expand, run_name
from xfelproc.run.campaign.settings import load_campaign


def archive(folder: Path, text: str, files: tuple[str, ...] = (), table: str | None = None) -> list[CampaignRun]:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if table is not None:
        (folder / "runs.csv").write_text(table)
    (folder / "archive.toml").write_text(text)
    return expand(load_campaign(folder / "archive.toml"))


FILES = ("raw/r2/a_1.h5", "raw/r2/a_10.h5", "raw/r2/a_2.h5", "raw/r10/a_1.h5")


def test_runs_by_pattern_with_files_in_natural_order(tmp_path: Path) -> None:
    (tmp_path / "raw" / "r3").mkdir(parents=True)
    (tmp_path / "base.toml").write_text('[input]\nfiles = ["not_this.h5"]\n')
    runs = archive(tmp_path, "base = 'base.toml'\n[runs]\npattern = 'raw/{run}/a_*.h5'\n", FILES)
    assert [run.name for run in runs] == ["r2", "r3", "r10"]
    files = [Path(name).name for name in runs[0].config().input.files]
    assert files == ["a_1.h5", "a_2.h5", "a_10.h5"]
    with pytest.raises(ConfigError, match="no file"):
        runs[1].config()


def test_placeholders_are_columns(tmp_path: Path) -> None:
    files = ("lyso/d1/r1.h5", "lyso/d2/r1.h5", "thau/d1/r7.h5")
    runs = archive(tmp_path, "[runs]\npattern = '{sample}/{dose}/{shot}.h5'\n", files)
    assert [(run.name, run.group(("sample", "dose"))) for run in runs] == [
        ("lyso_d1_r1", ("lyso", "d1")),
        ("lyso_d2_r1", ("lyso", "d2")),
        ("thau_d1_r7", ("thau", "d1")),
    ]
    with pytest.raises(ConfigError, match="no column 'pump'"):
        runs[0].group(("pump",))


def test_table_sets_keys_of_the_job_and_rules_win(tmp_path: Path) -> None:
    text = """
base = "base.toml"
[job.index]
cell = [10, 10, 10, 90, 90, 90]
[runs]
table = "runs.csv"
[[rule]]
where = { run = "r*", sample = "b" }
job = { input = { geometry = "b.geom" }, spots = { min_spots = 7 } }
columns = { pump = "on" }
"""
    (tmp_path / "base.toml").write_text('[input]\ngeometry = "base.geom"\n[spots]\nmin_spots = 5\n')
    table = "run,files,sample,geometry,cell,input.distance\nr1,r1.h5,a,,79 79 38 90 90 90,100\nr2,r2.h5;more*.h5,b,x.geom,,\n"
    first, second = archive(tmp_path, text, table=table)
    assert first.document["input"]["geometry"] == str(tmp_path / "base.geom")
    config = first.config()
    assert (config.input.distance, config.section("index").cell) == (100, (79, 79, 38, 90, 90, 90))
    config = second.config()
    assert config.input.geometry == tmp_path / "b.geom"
    assert (config.section("spots").min_spots, config.section("index").cell) == (7, (10, 10, 10, 90, 90, 90))
    assert [Path(name).name for name in config.input.files] == ["r2.h5", "more*.h5"]
    assert (first.columns.get("pump"), second.columns.get("pump")) == (None, "on")


def test_table_adds_columns_to_a_pattern(tmp_path: Path) -> None:
    text = "[runs]\npattern = 'raw/{run}/a_*.h5'\ntable = 'runs.csv'\n"
    runs = archive(tmp_path, text, FILES, "# comment\nrun,sample\nr2,lyso\n")
    assert [run.columns.get("sample") for run in runs] == ["lyso", None]


def test_choice(tmp_path: Path) -> None:
    text = "[runs]\npattern = 'raw/{run}/a_*.h5'\ninclude = ['r*']\nexclude = ['r1?']\n"
    assert [run.name for run in archive(tmp_path, text, FILES)] == ["r2"]
    with pytest.raises(ConfigError, match="leave no run"):
        archive(tmp_path, text.replace("r1?", "*"), FILES)


@pytest.mark.parametrize(
    ("text", "table", "message"),
    [
        ("[runs]\n", None, "pattern of files, a table, or both"),
        ("[runs]\npattern = 'raw/*.h5'\n", None, "name in braces"),
        ("[runs]\npatern = 'raw/{run}.h5'\n", None, "did you mean 'pattern'"),
        ("[runs]\ntable = 'runs.csv'\n", "name,files\nr1,a.h5\n", "no column 'run'"),
        ("[runs]\ntable = 'runs.csv'\n", "run,files\nr1,a.h5\nr1,b.h5\n", "there twice"),
        ("[runs]\ntable = 'runs.csv'\n", "run,files\nr1,a.h5,3\n", "has 3 fields"),
        ("[runs]\ntable = 'none.csv'\n", None, "cannot be read"),
        ("runs = 3", None, "runs"),
    ],
)
def test_wrong_campaigns(tmp_path: Path, text: str, table: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        archive(tmp_path, text, FILES, table)


@given(st.text(min_size=1))
def test_names_of_runs_fit_folders(text: str) -> None:
    name = run_name({"run": text})
    assert name
    assert "/" not in name
    assert name not in (".", "..")

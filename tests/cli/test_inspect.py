from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from tests.io.sources.cbf_files import MINI, mini_cbf, two_panels, write
from xfelproc.cli.inspect import inspect

PIXELS = np.arange(15, dtype=np.int32).reshape(3, 5)


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(inspect)
    return app


def _run(app: typer.Typer, *arguments: object) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output


def test_table_of_a_minicbf(app: typer.Typer, tmp_path: Path) -> None:
    code, text = _run(app, write(tmp_path / "a_0007.cbf", mini_cbf(PIXELS)))
    assert code == 0
    for words in (
        "miniCBF (PILATUS 300K",
        "1 of int32",
        "351.000 mm",
        "3.50, 2.25 px",
        "0.45 mm Si, μ 3.8",
        "0 to 115897",
        "0.96859 Å",
        "fraction 0.99 in the plane normal to (0, 1, 0)",
        "images 7 to 7, 0.1° each from 90°",
        "negative pixel values are gaps and bad pixels",
    ):
        assert words in text


def test_json_of_several_panels(app: typer.Typer, tmp_path: Path) -> None:
    code, text = _run(app, "--json", write(tmp_path / "two_0001.cbf", two_panels([(PIXELS, PIXELS)], [12.5])))
    assert code == 0
    (shown,) = json.loads(text)
    assert shown["detector"]["panels"] == 2
    assert shown["detector"]["levels"] == [2]
    assert shown["goniometer"]["names"] == ["KAPPA", "OMEGA"]
    assert shown["beam"]["polarization_fraction"] == pytest.approx(0.99)
    assert shown["scan"]["oscillation"] == [12.5, 0.5]


def test_what_is_not_stated_is_shown_so(app: typer.Typer, tmp_path: Path) -> None:
    bare = "\n".join(line for line in MINI.splitlines() if "Wavelength" not in line and "distance" not in line) + "\n"
    path = write(tmp_path / "a.cbf", mini_cbf(PIXELS, bare))
    code, text = _run(app, path)
    assert code == 0
    assert "set it in [input]" in text
    shown = json.loads(_run(app, "--json", path)[1])[0]
    assert shown["beam"]["wavelength"] is None
    assert shown["detector"]["distance"] is None


def test_a_bad_file_does_not_hide_the_others(app: typer.Typer, tmp_path: Path) -> None:
    write(tmp_path / "a_1.cbf", mini_cbf(PIXELS))
    write(tmp_path / "a_2.cbf", b"")
    write(tmp_path / "a_3.cbf", mini_cbf(PIXELS))
    code, text = _run(app, tmp_path)
    assert code == 1
    assert text.count("miniCBF") == 2
    assert "the file is empty" in text
    code, text = _run(app, "--json", tmp_path)
    assert code == 1
    assert [("error" in entry) for entry in json.loads(text)] == [False, True, False]

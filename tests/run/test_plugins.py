"""A third-party spot finder that joins by entry point, in fresh processes: installed is what lies on the path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PLUGIN = """
from typing import Literal
from xfelproc.models.parameters import Algorithm

class Neighbour(Algorithm):
    method: Literal["neighbour"] = "neighbour"
    reach: int = 2

class Taken(Algorithm):
    method: Literal["blocks"] = "blocks"

nothing = 3
"""

PROGRAM = """
import pickle, sys
from pathlib import Path
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from xfelproc.errors import ConfigError
from xfelproc.run.sections import _section
from pydantic import ValidationError
if __name__ == "__main__":
    try:
        cls = _section("spots")
    except ConfigError as error:
        print(error)
        sys.exit(2)
    section = cls.model_validate({"method": {"method": "neighbour", "reach": 5}})
    assert section.method.reach == 5
    assert cls.model_validate({"method": "neighbour"}).method.reach == 2
    assert cls().method == cls.__mro__[1]().method
    assert pickle.loads(pickle.dumps(section)) == section
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(getattr, section, "method").result() == section.method
"""


def run(tmp_path: Path, value: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "neighbour.py").write_text(PLUGIN)
    info = tmp_path / "neighbour-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: neighbour\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[xfelproc.spotfinders]\nneighbour = {value}\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    return subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_plugin_joins_the_family(tmp_path: Path) -> None:
    result = run(tmp_path, "neighbour:Neighbour")
    assert result.returncode == 0, result.stdout + result.stderr


def test_what_is_no_plugin_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path, "neighbour:nothing")
    assert result.returncode == 2
    assert "must be a subclass" in result.stdout


def test_plugin_that_cannot_be_imported(tmp_path: Path) -> None:
    result = run(tmp_path, "missing_module:Nothing")
    assert result.returncode == 2
    assert "cannot be loaded" in result.stdout

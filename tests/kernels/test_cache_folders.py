from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xfelproc.kernels.cache_folders import MARK, cache_folders, forget_other_sources, sources_digest

INNER = """import numba
@numba.njit(cache=True)
def inner(x):
    return x + {step}
"""
OUTER = """import numba
from kern.inner import inner
@numba.njit(cache=True)
def outer(x):
    return inner(x)
"""


def test_what_is_of_other_sources_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    sources, folder = tmp_path / "kern", tmp_path / "cache" / "kern_0123"
    sources.mkdir()
    folder.mkdir(parents=True)
    (sources / "a.py").write_text("one")
    (folder / "a.f.nbi").touch()
    os.utime(folder / "a.f.nbi", (0, 0))
    (folder / "a.g.nbi").touch()
    os.utime(folder / "a.g.nbi", (1e10, 1e10))
    assert list(cache_folders(sources)) == [folder]
    forget_other_sources(sources)
    assert [path.name for path in folder.glob("*.nbi")] == ["a.g.nbi"]
    assert (folder / MARK).read_text() == sources_digest(sources)
    (folder / "a.f.nbi").touch()
    forget_other_sources(sources)
    assert list(folder.glob("*.nbi"))
    (sources / "a.py").write_text("two")
    sources_digest.cache_clear()
    forget_other_sources(sources)
    assert not list(folder.glob("*.nbi"))


def test_a_changed_callee_is_compiled_again(tmp_path: Path) -> None:
    package = tmp_path / "kern"
    package.mkdir()
    forget = "from xfelproc.kernels.cache_folders import forget_other_sources"
    (package / "__init__.py").write_text(f"from pathlib import Path\n{forget}\nforget_other_sources(Path(__file__).parent)\n")
    (package / "outer.py").write_text(OUTER)
    found = []
    for step in (1, 2):
        (package / "inner.py").write_text(INNER.format(step=step))
        paths = os.pathsep.join([str(tmp_path), str(Path.cwd())])
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": paths}
        command = [sys.executable, "-c", "from kern.outer import outer; print(outer(1))"]
        found.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip())
    assert found == ["2", "3"]

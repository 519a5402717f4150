from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from xfelproc.errors import ConfigError
from xfelproc.run import warming
from xfelproc.run.config import load_config, make_config
from xfelproc.run.early import make_cache_folder
from xfelproc.simulation import preset, simulate


def test_the_folder_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    assert make_cache_folder() is None
    folder = tmp_path / "node" / "cache"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder))
    assert make_cache_folder() == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="others may write into it"):
        make_cache_folder()
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/none/cache")
    with pytest.raises(ConfigError, match="/proc/none/cache cannot be made"):
        make_cache_folder()


def test_a_second_call_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(warming, "_simulated_run", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(warming, "_own_frame", lambda config: "; and a frame")
    assert "compiled the kernels" in warming.warm_cache(None, tmp_path)
    assert "compiled already" in warming.warm_cache(None, tmp_path)
    other = make_config({"input": {"files": "a.h5"}, "spots": {"method": "dispersion"}}, tmp_path)
    assert warming.warm_cache(other, tmp_path).endswith("; and a frame")
    assert "compiled already" in warming.warm_cache(other, tmp_path)
    assert len(calls) == 2
    warming.warm_cache(None, None)
    warming.warm_cache(None, None)
    assert len(calls) == 4


def test_of_two_at_once_one_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def compile_slowly(*arguments: object) -> None:
        time.sleep(0.3)
        calls.append(arguments)

    monkeypatch.setattr(warming, "_simulated_run", compile_slowly)
    with ThreadPoolExecutor(2) as threads:
        said = sorted(threads.map(lambda _: warming.warm_cache(None, tmp_path), range(2)))
    assert len(calls) == 1
    assert "compiled the kernels" in said[0]
    assert "compiled already" in said[1]


@pytest.mark.slow
def test_what_a_job_calls_is_compiled(tmp_path: Path) -> None:
    simulate(preset("demo", frames=20, detector=warming.DETECTOR), tmp_path)
    config = load_config(tmp_path / "job.toml", ["spots.method=radial_profile"])
    assert warming.warm_cache(config, None).startswith("compiled the kernels in")
    (tmp_path / "frames.h5").write_bytes(b"nothing")
    assert "cannot be read" in warming.warm_cache(config, None)

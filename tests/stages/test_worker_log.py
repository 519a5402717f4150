from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.run.test_run import job, run
from xfelproc.models.frames import FrameRef, WorkUnit
from xfelproc.stages import worker_log
from xfelproc.stages.worker_log import LINES_A_UNIT, WorkerLog, log_path


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted((folder / "logs" / "workers").rglob("*.jsonl")) for line in path.open()]


def unit(n: int = 3) -> WorkUnit:
    return WorkUnit(7, tuple(FrameRef(0, 100 + k) for k in range(n)))


def test_normal_frames_have_no_line(tmp_path: Path) -> None:
    run(job(tmp_path, ["hit"] * 8), tmp_path / "out")
    found = lines(tmp_path / "out")
    assert [line["message"] for line in found] == ["worker started", "unit begun", "unit done", "unit begun", "unit done"]
    assert found[1]["first_and_last"] == [[0, 0], [0, 3]]
    assert found[4]["unit"] == 1
    assert found[4]["counts"]["INTEGRATED"] + found[4]["counts"]["HIT"] == 4
    assert set(found[4]["cpu_ms"]) == {"read", "calibrate", "find", "index", "refine", "integrate"}
    assert {line["run"] for line in found} == {"out"}


def test_failed_frames_have_place_and_reason(tmp_path: Path) -> None:
    run(job(tmp_path, ["hit", "truncated", "bug", "hit"]), tmp_path / "out")
    failed = [line for line in lines(tmp_path / "out") if line["level"] == "WARNING"]
    assert [line["frame"]["index"] for line in failed] == [1, 2]
    assert "the frame is truncated" in failed[0]["message"]
    assert "ZeroDivisionError: a bug" in failed[1]["traceback"]


def test_every_worker_of_the_pool_has_its_own_file(tmp_path: Path) -> None:
    run(job(tmp_path, ["slow"] * 32, driver="pool"), tmp_path / "out")
    files = list((tmp_path / "out" / "logs" / "workers").glob("*/*.jsonl"))
    assert files
    done = [line["unit"] for line in lines(tmp_path / "out") if line["message"] == "unit done"]
    assert sorted(done) == list(range(8))


def test_warnings_of_libraries_carry_the_frame(tmp_path: Path) -> None:
    log = WorkerLog(tmp_path, "process")
    with pytest.warns(UserWarning, match="outside"):
        warnings.warn("outside", stacklevel=1)
    with log.unit(unit()):
        log.frame(2, FrameRef(0, 102))
        warnings.warn("odd header", stacklevel=1)
        logging.getLogger("fabio").warning("checksum")
        logging.getLogger("fabio").info("not of interest")
        log.frames_done()
    log.close()
    found = lines(tmp_path)
    assert [line["message"].split("\n")[0][-10:] for line in found[2:]] == ["odd header", "checksum"]
    assert found[2]["logger"] == "py.warnings"
    assert [line["frame"] for line in found[2:]] == [{"row": 2, "source": 0, "index": 102}] * 2
    assert not logging.getLogger().handlers or log._handler not in logging.getLogger().handlers


def test_remarks_of_a_unit_are_few(tmp_path: Path) -> None:
    log = WorkerLog(tmp_path, "process")
    with log.unit(unit(500)):
        for row in range(500):
            log.frame(row, FrameRef(0, row))
            log.failed("unreadable")
        log.unit_done({}, {}, 0.0)
    found = lines(tmp_path)
    assert len([line for line in found if line["level"] == "WARNING"]) == LINES_A_UNIT
    assert found[-1]["lines_dropped"] == 500 - LINES_A_UNIT


def test_slow_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(worker_log.time, "monotonic", lambda: now)
    log = WorkerLog(tmp_path, "process")
    with log.unit(unit(40)):
        for row in range(40):
            log.frame(row, FrameRef(0, row))
            now += 25.0 if row in (0, 30) else 0.1  # the first may compile
        log.frames_done()
    slow = [line for line in lines(tmp_path) if line["message"].startswith("slow frame")]
    assert [line["frame"]["row"] for line in slow] == [30]


def test_rank_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "17")
    WorkerLog(tmp_path, "process").close()
    assert lines(tmp_path)[0]["rank"] == 17


def test_a_full_disk_ends_the_log_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = WorkerLog(tmp_path, "process")
    log.close()
    path = log_path(tmp_path)
    path.unlink()
    path.symlink_to("/dev/full")
    with log.unit(unit()):
        log.unit_done({}, {}, 0.0)
    assert capsys.readouterr().err.count("this log ends here") == 1


def test_a_unit_given_up_says_why(tmp_path: Path) -> None:
    log = WorkerLog(tmp_path, "process")
    with pytest.raises(MemoryError), log.unit(unit()):
        raise MemoryError("no")
    assert lines(tmp_path)[-1]["message"] == "unit given up: MemoryError: no"

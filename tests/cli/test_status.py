"""Following a run through the real commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.conftest import command, environment, experiment, undisturbed, xfelproc

__all__ = ["experiment", "undisturbed"]

pytestmark = pytest.mark.slow

SLOW_RUN = """
import sys
from tests.run.test_run import job, run
from pathlib import Path
folder = Path(sys.argv[1])
run(job(folder, ["slow"] * 160), folder / "out")
"""


def start_slow(folder: Path) -> subprocess.Popen[bytes]:
    """Start a run of about 8 s and wait until it is at work."""
    process = subprocess.Popen([sys.executable, "-c", SLOW_RUN, str(folder)], env=environment())
    while not (folder / "out" / "logs" / "metrics.prom").exists():
        assert process.poll() is None
        time.sleep(0.05)
    return process


def follow(folder: Path, *options: str) -> subprocess.Popen[str]:
    arguments = ["status", folder / "out", "--follow", "--every", "0.5", *options]
    return subprocess.Popen(command(arguments), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_followed_until_the_end(tmp_path: Path) -> None:
    work = start_slow(tmp_path)
    words, values = follow(tmp_path), follow(tmp_path, "--json")
    text, _ = words.communicate(timeout=120)
    answer, _ = values.communicate(timeout=120)
    assert work.wait(60) == 0
    assert (words.returncode, values.returncode) == (0, 0)
    assert "frames/s in the mean" in text
    assert " left" in text
    assert "out: done" in text.replace(str(tmp_path), "")
    assert "160 of 160 frames in 40 of 40 units" in text
    first = json.loads(answer.splitlines()[0])
    assert first["state"] == "running"
    assert 0 <= first["frames"]["done"] <= 160


def test_leaving_does_nothing_to_the_run(tmp_path: Path) -> None:
    work = start_slow(tmp_path)
    watching = follow(tmp_path)
    assert watching.stdout is not None
    assert "process" in watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    assert watching.wait(30) == 0
    assert "interrupted" not in watching.stdout.read()
    assert work.wait(60) == 0


def test_nothing_at_work(undisturbed: Path) -> None:
    result = xfelproc("status", undisturbed, "--follow")
    assert result.code == 0
    assert "nothing is at work on this run" in result.output
    assert "24 of 24 frames" in result.output
    assert "CC1/2" in result.output

"""Runs over many image files of one frame, and over very many frames, through the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.integration.conftest import environment, xfelproc
from xfelproc.io.manifest import read_manifest
from xfelproc.io.shards import read_frames, shard_path
from xfelproc.models.conventions import FrameStatus
from xfelproc.run.journal import read_journal

FILES = 90


def image(seed: int, wavelength: float = 1.0, side: int = 128) -> bytes:
    """Return an SMV image of noise."""
    fields = {
        "HEADER_BYTES": "  512",
        "DIM": "2",
        "BYTE_ORDER": "little_endian",
        "TYPE": "unsigned_short",
        "SIZE1": side,
        "SIZE2": side,
    }
    fields |= {"PIXEL_SIZE": 0.2, "DISTANCE": 100, "WAVELENGTH": wavelength, "BEAM_CENTER_X": 12.8, "BEAM_CENTER_Y": 12.8}
    head = "{\n" + "".join(f"{key}={value};\n" for key, value in fields.items()) + "}\n"
    return head.encode().ljust(512) + (np.random.default_rng(seed).poisson(3.0, (side, side)) + 1).astype("<u2").tobytes()


@pytest.fixture
def job(tmp_path: Path) -> Path:
    for folder in ("run2", "run10"):
        (tmp_path / folder).mkdir()
        for number in range(FILES // 2):
            (tmp_path / folder / f"x_{number}.img").write_bytes(image(number))
    path = tmp_path / "job.toml"
    path.write_text(
        '[input]\nfiles = ["run*/*.img"]\n\n[index]\ncell = [79, 79, 38, 90, 90, 90]\n\n'
        '[execution]\ndriver = "inline"\nunit_size = 9\nmax_failed = 1\n\n[report]\nenabled = false\n'
    )
    return path


@pytest.mark.slow
def test_a_run_over_many_image_files(job: Path) -> None:
    run, arguments = job.parent / "out", ["run", job, "-o", job.parent / "out", "--only", "process"]
    found = json.loads(xfelproc("check", job, "--json").output)
    assert (found["files"], found["unseen"], found["frames"], found["units"]) == (FILES, FILES, FILES, 10)
    assert found["broken"] == []
    first = xfelproc(*arguments)
    assert first.code == 0, first.output
    manifest = read_manifest(run / "manifest.h5")
    names = [manifest.sources.path(int(n)) for n in manifest.frame_source]
    assert names == [str(job.parent / folder / f"x_{i}.img") for folder in ("run2", "run10") for i in range(FILES // 2)]
    before = {unit: shard_path(run, "process", unit).read_bytes() for unit in range(10)}

    # one file is written anew, one goes away and leaves a link to nothing: each costs its unit, and is told
    (job.parent / "run2" / "x_11.img").write_bytes(image(11, wavelength=1.1))
    gone = job.parent / "run10" / "x_43.img"
    gone.unlink()
    gone.symlink_to("nothing.img")
    again = xfelproc(*arguments)
    assert again.code == 0, again.output
    assert "files of 2 units have changed" in again.output
    assert [e["units"] for e in read_journal(run) if e["event"] == "files_changed"] == [[1, 9]]
    same = [shard_path(run, "process", unit).read_bytes() == before[unit] for unit in range(10)]
    assert [unit for unit in range(10) if not same[unit]] == [1, 9]
    assert read_frames(shard_path(run, "process", 1))["wavelength"][2] == pytest.approx(1.1)
    last = read_frames(shard_path(run, "process", 9))
    assert last["status"][7] == FrameStatus.FAILED
    assert "x_43.img: cannot be opened: it is no longer there" in last["reason"][7]
    assert np.count_nonzero(last["status"] == FrameStatus.FAILED) == 1


PLAN = """
import re, sys
from pathlib import Path
from xfelproc.run.config import load_config
from xfelproc.run.plan import make_plan
from xfelproc.run.recipes import default_opener
from xfelproc.io.manifest import write_manifest
plan = make_plan(load_config(Path(sys.argv[1]), []), default_opener())
write_manifest(Path(sys.argv[2]), plan.manifest)
# not getrusage: that counts what the process that made this one had
peak = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(plan.manifest.n_frames, plan.manifest.n_units, plan.unseen, peak)
"""


def plan(job: Path) -> tuple[int, int, int, float, float]:
    """Plan a job in a process of its own; return frames, units, files not opened, bytes of the manifest and MB of memory."""
    manifest = job.parent / "manifest.h5"
    done = subprocess.run(
        [sys.executable, "-c", PLAN, str(job), str(manifest)], env=environment(), stdout=subprocess.PIPE, text=True, check=True
    )
    frames, units, unseen, peak = map(int, done.stdout.split())
    return frames, units, unseen, manifest.stat().st_size, peak / 1000


@pytest.mark.slow
def test_a_million_frames_in_hdf5_files_are_planned_in_little_memory(tmp_path: Path) -> None:
    for number in range(1000):
        with h5py.File(tmp_path / f"r{number}.h5", "w", libver="latest") as file:
            file.create_dataset("data", shape=(1000, 32, 64), dtype="u2", chunks=(1, 32, 64))
    (tmp_path / "x.geom").write_text(
        "photon_energy = 9000\nclen = 0.1\nres = 10000\ndata = /data\ndim0 = %\ndim1 = ss\ndim2 = fs\np/min_fs = 0\np/max_fs = 63\n"
        "p/min_ss = 0\np/max_ss = 31\np/corner_x = -32\np/corner_y = -16\np/fs = x\np/ss = y\n"
    )
    (tmp_path / "job.toml").write_text(f'[input]\nfiles = ["{tmp_path}/r*.h5"]\ngeometry = "{tmp_path}/x.geom"\n')
    frames, units, unseen, size, peak = plan(tmp_path / "job.toml")
    assert (frames, units, unseen) == (1_000_000, 2000, 0)
    assert size <= 64 * frames
    assert peak <= 500


@pytest.mark.slow
def test_very_many_image_files_are_planned_in_little_memory(tmp_path: Path) -> None:
    n = 100_000
    for number in range(n):
        path = tmp_path / f"r{number % 4}" / f"lysozyme_{number // 4:07d}.img"
        if number < 4:
            path.parent.mkdir()
        if number % 50_000 == 0:
            original = tmp_path / f"original{number}"
            original.write_bytes(image(0))
        os.link(original, path)
    (tmp_path / "job.toml").write_text(f'[input]\nfiles = ["{tmp_path}/r*/*.img"]\n')
    frames, units, unseen, size, peak = plan(tmp_path / "job.toml")
    assert (frames, units, unseen) == (n, 200, n)
    assert size <= (64 + 7) * frames
    # 160 MB are libraries; what comes on top grows with the number of files, and a million of them must fit into 500
    assert peak <= 160 + (500 - 160) / 10

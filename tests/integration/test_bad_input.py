"""What a user may do wrong, through the command line: a clear message, the right exit code, all other results kept."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.integration.conftest import Result, command, environment, xfelproc
from xfelproc.io.shards import read_frames, shard_path
from xfelproc.models.conventions import FrameStatus

pytestmark = pytest.mark.slow


def job(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text)
    return path


def refused(result: Result, *words: str) -> None:
    """Exit code 2, a message with these words, and no traceback."""
    assert result.code == 2, result.output
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.output


def run_inline(path: Path, output: Path, *options: object) -> Result:
    return xfelproc("run", path, "-o", output, "--driver", "inline", *options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "spots.min_snrr=5"], ["spots.min_snrr", "did you mean 'min_snr'"]),
        (["--set", "spots.method=dispersoin"], ["spots.method", "'dispersoin' is not known", "did you mean 'dispersion'"]),
        (["--set", "input.distance=nan"], ["input.distance", "finite number"]),
        (["--set", "input.distance=-90"], ["input.distance", "greater than 0", "-90"]),
        (["--set", "input.wavelength=nan"], ["input.wavelength", "finite number"]),
        (["--set", "index.cell=[79,79,38,90,90,190]"], ["190"]),
        (["--set", "index.cell=[79,79,38,60,60,150]"], ["cell"]),
        (["--set", "index.cell=[79,79,-38,90,90,90]"], ["-38"]),
        (["--set", "index.cell=[79,85,38,90,90,90]"], ["P 43 21 2"]),
        (["--set", "index.space_group=P 43 21 9"], ["P 43 21 9"]),
        (["--set", 'input.files=["none.h5"]'], ["none.h5", "no such file"]),
        (["--set", 'input.files=["none*.h5"]'], ["none*.h5", "no file matches"]),
        (["--set", "recipe=rotation"], ["recipe", "cannot be processed yet"]),
        (["--set", "nonsense"], ["write --set"]),
        (["--only", "integrate"], ["--only integrate", "known: cell, process, metrology, combine, merge, report"]),
        (["--set", "input.geometry=none.geom"], ["input.geometry", "none.geom: no such file"]),
        (["--set", "input.dark=none.npy"], ["none.npy"]),
        (["--set", "input.calibration=none.h5"], ["none.h5", "no such constants file"]),
        (["--set", "calibrate.gain_stages=bits"], ["input: gain stages need a dark of each stage", "input.calibration"]),
        (["--set", "input.mask=none.npy"], ["none.npy", "no such file"]),
        (["--set", "index.cell=[79, 79, 38]"], ["index.cell: too few values"]),
        (["--set", "index.cell=79 79 38 90 90 90"], ["index.cell: must be a list"]),
    ],
)
def test_wrong_jobs(experiment: Path, tmp_path: Path, options: list[str], words: list[str]) -> None:
    refused(run_inline(experiment / "job.toml", tmp_path / "run", *options), *words)
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.parametrize(
    ("constants", "words"),
    [
        ({"pedestal": np.zeros((1, 1, 640, 639))}, ["pedestal in the constants file has shape (1, 1, 640, 639)", "(1, 640, 640)"]),
        ({"gain": np.zeros((1, 1, 640, 640))}, ["gain of stage 0 is 0", "give another gain map"]),
    ],
)
def test_wrong_constants(experiment: Path, tmp_path: Path, constants: dict[str, Any], words: list[str]) -> None:
    with h5py.File(tmp_path / "constants.h5", "w") as file:
        for name, values in constants.items():
            file[name] = values
            file[name].attrs["unit"] = "ADU/photon"
    option = f"input.calibration={tmp_path / 'constants.h5'}"
    refused(run_inline(experiment / "job.toml", tmp_path / "run", "--set", option), *words)


def test_missing_job(tmp_path: Path) -> None:
    refused(xfelproc("run", tmp_path / "none.toml"), "none.toml", "no such job file", "xfelproc init")


def test_no_job_file(experiment: Path) -> None:
    refused(xfelproc("run", experiment), "is a folder")
    refused(xfelproc("run", experiment / "frames.h5"), "no job file")


def test_a_job_file_is_not_overwritten(experiment: Path, tmp_path: Path) -> None:
    path = job(tmp_path, (experiment / "job.toml").read_text().replace("frames.h5", str(experiment / "frames.h5")))
    before = path.read_bytes()
    refused(run_inline(path, tmp_path), "not of a run", "--output")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def with_values(experiment: Path, folder: Path, name: str, values: object) -> Path:
    """Return a job over the experiment's frames, with a value in their file changed."""
    shutil.copy(experiment / "frames.h5", folder)
    with h5py.File(folder / "frames.h5", "r+") as file:
        file[name][...] = values
    shutil.copy(experiment / "job.toml", folder)
    return folder / "job.toml"


@pytest.mark.parametrize(
    ("distance", "words"), [(-120.0, "source's side of the sample"), (0.0, "at the sample"), (np.nan, "finite")]
)
def test_impossible_distance_in_the_file(experiment: Path, tmp_path: Path, distance: float, words: str) -> None:
    path = with_values(experiment, tmp_path, "entry/instrument/detector/transformations/distance", distance)
    refused(run_inline(path, tmp_path / "run"), "frames.h5", words)
    assert not (tmp_path / "run").exists()


def test_impossible_wavelengths_cost_their_frames(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    wrong = {0: np.nan, 3: -1.0, 23: 0.0}
    with h5py.File(experiment / "frames.h5") as file:
        values = file["entry/instrument/beam/incident_wavelength"][()]
    values[list(wrong)] = list(wrong.values())
    path = with_values(experiment, tmp_path, "entry/instrument/beam/incident_wavelength", values)
    result = run_inline(path, tmp_path / "run")
    assert result.code == 1, result.output
    assert "3 of 24 frames failed" in result.output
    found, reasons = statuses(tmp_path / "run", 12)
    expected, _ = statuses(undisturbed, 12)
    assert found == [FrameStatus.FAILED if frame in wrong else status for frame, status in enumerate(expected)]
    assert all("wavelength" in reasons[frame] for frame in wrong)


def statuses(run: Path, units: int) -> tuple[list[int], list[str]]:
    tables = [read_frames(shard_path(run, "process", unit)) for unit in range(units)]
    return [int(s) for t in tables for s in t["status"]], [str(r) for t in tables for r in t["reason"]]


@pytest.mark.parametrize("damaged", [0, 12, 23])
def test_corrupt_frame(experiment: Path, undisturbed: Path, tmp_path: Path, damaged: int) -> None:
    data = tmp_path / "frames.h5"
    shutil.copy(experiment / "frames.h5", data)
    with h5py.File(data) as file:
        chunk = file["entry/data/data"].id.get_chunk_info_by_coord((damaged, 0, 0))
    with data.open("r+b") as stream:
        stream.seek(chunk.byte_offset + 12)
        stream.write(os.urandom(chunk.size - 12))
    shutil.copy(experiment / "job.toml", tmp_path)
    result = run_inline(tmp_path / "job.toml", tmp_path / "run")
    assert result.code == 1, result.output
    assert "1 of 24 frames failed" in result.output
    found, reasons = statuses(tmp_path / "run", 12)
    expected, _ = statuses(undisturbed, 12)
    expected[damaged] = FrameStatus.FAILED
    assert found == expected
    assert "frames.h5" in reasons[damaged]
    assert run_inline(tmp_path / "job.toml", tmp_path / "run", "--set", "execution.max_failed=0.05").code == 0


@pytest.mark.parametrize("content", [b"", b"x" * 4096, "truncated"])
def test_unusable_file(experiment: Path, tmp_path: Path, content: bytes | str) -> None:
    whole = (experiment / "frames.h5").read_bytes()
    (tmp_path / "frames.h5").write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    shutil.copy(experiment / "job.toml", tmp_path)
    refused(run_inline(tmp_path / "job.toml", tmp_path / "run"), "none of 1 files can be read", "frames.h5")
    assert not (tmp_path / "run").exists()


def test_unusable_file_beside_a_good_one(experiment: Path, tmp_path: Path) -> None:
    shutil.copy(experiment / "frames.h5", tmp_path / "a_good.h5")
    (tmp_path / "b_empty.h5").write_bytes(b"")
    path = job(tmp_path, (experiment / "job.toml").read_text().replace("frames.h5", "*.h5"))
    result = run_inline(path, tmp_path / "run")
    assert result.code == 1
    assert "b_empty.h5" in result.output
    assert (tmp_path / "run" / "merged" / "merged.mtz").exists()


def test_shape_against_the_geometry(experiment: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        file["data"] = np.zeros((3, 100, 100), np.uint16)
    geometry = (experiment / "frames.geom").read_text()
    (tmp_path / "frames.geom").write_text(geometry)
    path = job(tmp_path, '[input]\nfiles = "frames.h5"\ngeometry = "frames.geom"\ndata_path = "/data"\n')
    result = run_inline(path, tmp_path / "run")
    assert result.code == 2
    assert "Traceback" not in result.output
    assert "frames.h5" in result.output


def test_dtype_that_is_no_pixel(experiment: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        file["entry/data/data"] = np.zeros((3, 640, 640), np.complex64)
    shutil.copy(experiment / "frames.geom", tmp_path)
    path = job(tmp_path, '[input]\nfiles = "frames.h5"\ngeometry = "frames.geom"\n')
    result = run_inline(path, tmp_path / "run")
    assert result.code == 2
    assert "complex" in result.output


def test_no_hits(experiment: Path, tmp_path: Path) -> None:
    result = run_inline(experiment / "job.toml", tmp_path / "run", "--set", "spots.min_spots=5000")
    assert result.code == 1
    assert "nothing to merge" in result.output
    status = xfelproc("status", tmp_path / "run")
    assert "0 hits" in status.output


def test_other_parameters_in_the_same_directory(experiment: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_inline(experiment / "job.toml", run).code == 0
    before = (run / "merged" / "merged.mtz").read_bytes()
    refused(run_inline(experiment / "job.toml", run, "--set", "spots.min_snr=7"), "spots.min_snr", "-> 7", "--restart", "--output")
    assert (run / "merged" / "merged.mtz").read_bytes() == before
    result = run_inline(experiment / "job.toml", run, "--set", "merge.d_min=3.0")
    assert result.code == 0
    assert "24 of them done before" in result.output
    assert (run / "merged" / "merged.mtz").read_bytes() != before


def test_output_that_cannot_be_written(experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(run_inline(experiment / "job.toml", tmp_path / "file"), "is a file", "--output")
    refused(run_inline(experiment / "job.toml", tmp_path / "file" / "run"), "cannot be written", "--output")
    refused(run_inline(experiment / "job.toml", "/proc/run"), "cannot be written", "--output")


@pytest.fixture
def read_only(experiment: Path, undisturbed: Path, tmp_path: Path) -> Iterator[Path]:
    """A file system that takes no writing, with an empty folder and a run that is done."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("a file system cannot be mounted here: not root, or not allowed")
    try:
        shutil.copytree(undisturbed, folder / "done")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_read_only_disk(experiment: Path, read_only: Path) -> None:
    for name in ("new", "done"):
        refused(run_inline(experiment / "job.toml", read_only / name), "read-only", "choose another --output")
    result = xfelproc("status", read_only / "done")
    assert result.code == 0, result.output
    assert "done" in result.output


def test_full_disk(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: small files fit, the next larger shard does not."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))

    run = tmp_path / "run"
    arguments: list[object] = ["run", experiment / "job.toml", "-o", run, "--driver", "inline"]
    done = subprocess.run(
        command(arguments), env=environment(), preexec_fn=limit, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert xfelproc(*arguments).code == 0
    assert (run / "merged" / "merged.mtz").read_bytes() == (undisturbed / "merged" / "merged.mtz").read_bytes()

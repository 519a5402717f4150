"""The same bytes from every driver, with any number of workers, whatever the caller's environment says of threads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import Result, command, environment, xfelproc, xfelproc_mpi
from tests.integration.test_resume import assert_same

pytestmark = pytest.mark.slow

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")


def test_mpi_alone(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    result = xfelproc("run", experiment / "job.toml", "-o", tmp_path / "run", "--driver", "mpi")
    assert result.code == 0, result.output
    assert "one MPI rank alone" in result.output
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(("ranks", "threads"), [(2, "1"), (3, "2"), (5, "1")])
def test_mpi_equals_inline(experiment: Path, undisturbed: Path, tmp_path: Path, ranks: int, threads: str) -> None:
    arguments = ["run", experiment / "job.toml", "-o", tmp_path / "run"]
    result = xfelproc_mpi(ranks, *arguments, **dict.fromkeys(THREADS, threads))
    assert result.code == 0, result.output
    assert result.output.count("process: 24 frames") == 1
    assert_same(tmp_path / "run", undisturbed)


def run_with(threads: str, *arguments: object) -> Result:
    variables = {**environment(), **dict.fromkeys(THREADS, threads)}
    done = subprocess.run(
        command(arguments), env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False
    )
    return Result(done.returncode, done.stdout)


@pytest.mark.parametrize(("driver", "threads"), [("pool", "2"), ("dask", "1"), ("dask", "2")])
def test_others_equal_inline(experiment: Path, undisturbed: Path, tmp_path: Path, driver: str, threads: str) -> None:
    if driver == "dask":
        pytest.importorskip("distributed", reason="Dask is not installed: pip install 'xfelproc[dask]'")
    result = run_with(threads, "run", experiment / "job.toml", "-o", tmp_path / "run", "--driver", driver)
    assert result.code == 0, result.output
    assert not [line for line in result.output.splitlines() if "distributed" in line or "Traceback" in line]
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.peer
def test_real_pixels(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "stills_nanobragg"
    if not (folder / "stills.h5").is_file():
        pytest.skip(f"test data not found at {folder}")
    job = tmp_path / "job.toml"
    job.write_text(
        f'[input]\nfiles = "{folder}/stills.h5"\nframes = "0:20"\ngeometry = "{folder}/stills.geom"\n'
        '[index]\ncell = [79.1, 79.1, 38, 90, 90, 90]\nspace_group = "P 43 21 2"\n'
        "[execution]\nunit_size = 2\nworkers = 2\n[report]\nenabled = false\n"
    )
    files = {}
    for name in ("inline", "pool", "dask", "mpi2", "mpi3", "mpi5"):
        arguments = ["run", job, "-o", tmp_path / name]
        result = xfelproc_mpi(int(name[3:]), *arguments) if name.startswith("mpi") else xfelproc(*arguments, "--driver", name)
        assert result.code == 0, result.output
        files[name] = [(tmp_path / name / "merged" / kind).read_bytes() for kind in ("merged.mtz", "unmerged.mtz")]
    assert all(found == files["inline"] for found in files.values())

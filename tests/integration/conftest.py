"""A small simulated experiment, and the command line as a function."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.once import made_once
from xfelproc.simulation import preset, simulate

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "slurm" / "test_cluster"
DETECTOR = {"size": (640, 640), "pixel_size": 0.2, "distance": 120.0}


@dataclass(frozen=True)
class Result:
    code: int
    output: str
    """What was printed, on standard output and error."""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def command(arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", "xfelproc", *map(str, arguments)]


def xfelproc(*arguments: object, timeout: float = 600) -> Result:
    """Run the real command."""
    done = subprocess.run(
        command(arguments),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Result(done.returncode, done.stdout)


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a simulated experiment of 24 frames with its job file; not to be written to."""

    def make(folder: Path) -> None:
        simulate(preset("demo", frames=24, detector=DETECTOR), folder)
        with (folder / "job.toml").open("a") as stream:
            stream.write("\n[execution]\nworkers = 2\nunit_size = 2\n\n[report]\nenabled = false\n")

    return made_once(tmp_path_factory, "experiment", make)


@pytest.fixture(scope="session")
def undisturbed(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of that experiment, by the driver inline; not to be written to."""

    def make(folder: Path) -> None:
        result = xfelproc("run", experiment / "job.toml", "-o", folder / "run", "--driver", "inline")
        assert result.code == 0, result.output

    return made_once(tmp_path_factory, "undisturbed", make) / "run"


def mpiexec() -> list[str]:
    """Return the start of a command in several ranks; the number is to follow."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'xfelproc[mpi]'")
    found = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    if found is None:
        pytest.skip("there is no mpiexec")
    return [found, "--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else []), "-n"]


def xfelproc_mpi(ranks: int, *arguments: object, timeout: float = 600, **variables: str) -> Result:
    """Run the real command in several ranks."""
    done = subprocess.run(
        [*mpiexec(), str(ranks), *command([*arguments, "--driver", "mpi"])],
        env={**environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Result(done.returncode, done.stdout)


def installed(name: str) -> bool:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is not None


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A SLURM that answers, known by $SLURM_CONF."""
    if "SLURM_CONF" in os.environ and subprocess.run(["scontrol", "ping"], capture_output=True, check=False).returncode == 0:
        yield
        return
    if not all(map(installed, ("slurmctld", "slurmd", "munged", "sbatch"))):
        pytest.skip("SLURM is not installed: apt-get install slurm-wlm munge libpmix-dev")
    folder = tmp_path_factory.mktemp("cluster")
    variables = {**os.environ, "XFELPROC_SLURM_CPUS": "8"}
    started = subprocess.run([CLUSTER, "start", folder], env=variables, capture_output=True, text=True, check=False)
    if started.returncode != 0:
        pytest.skip(f"SLURM cannot be started here: {started.stderr}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield
    subprocess.run([CLUSTER, "stop", folder], check=True)

"""Jobs of the real SLURM: chains, arrays, ranks, what ends them on the way, and the same bytes in the end.

Runs on the cluster of $SLURM_CONF if that answers, else on one it starts itself (``slurm/test_cluster``); touches its own jobs
alone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.conftest import Result, command, environment
from tests.integration.test_resume import assert_same
from xfelproc.drivers import slurm
from xfelproc.drivers.slurm import QueueState, queue_state, read_record

pytestmark = pytest.mark.slow

PATIENCE = 600.0
PLUGIN = """
import os
import time
from pathlib import Path
from typing import Literal
from xfelproc.algorithms.spotfinding.block_background import BlockBackground

class Slow(BlockBackground):
    method: Literal["slow"] = "slow"

    def strong_pixels(self, frame, workspace):
        time.sleep(float(Path(os.environ["PACE"]).read_text()))
        return super().strong_pixels(frame, workspace)
"""


@dataclass
class Site:
    """A user's folder: job files, the pace of the spot finder, and what was submitted from it."""

    folder: Path
    experiment: Path
    variables: dict[str, str]
    runs: list[Path] = field(default_factory=list)

    def slow_down(self, seconds: float) -> None:
        """Let every frame take so long."""
        path = Path(self.variables["PACE"])
        path.with_suffix(".new").write_text(str(seconds))
        path.with_suffix(".new").replace(path)

    def job(self, name: str, **keys: object) -> Path:
        """Write a job of the simulated experiment with a section [slurm]."""
        text = (self.experiment / "job.toml").read_text()
        for file in ("frames.h5", "detector.geom"):
            text = text.replace(f'"{file}"', f'"{self.experiment / file}"')
        given = {
            "time": "5",
            "signal_before": 120,
            "mpi": "none",
            "tasks_per_node": 1,
            "merge_tasks": 1,
            "cache_folder": "none",
            **keys,
        }
        section = "\n".join(f"{key} = {json.dumps(value)}" for key, value in given.items())
        path = self.folder / name
        path.write_text(f'{text}\n[spots]\nmethod = "slow"\n\n[slurm]\n{section}\n')
        return path

    def xfelproc(self, *arguments: object) -> Result:
        done = subprocess.run(
            command(arguments),
            env=self.variables,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return Result(done.returncode, done.stdout)

    def submit(self, *arguments: object) -> list[Path]:
        """Submit job files; return their run directories."""
        result = self.xfelproc("submit", *arguments, "--no-check")
        assert result.code == 0, result.output
        runs = [Path(str(a)).with_suffix(".run") for a in arguments if str(a).endswith(".toml")]
        self.runs += runs
        return runs

    def cancel(self) -> None:
        """Cancel what is left of it in the queue."""
        slurm.cancel({job.id for run in self.runs for job in read_record(run)})


@pytest.fixture(scope="module")
def surroundings(cluster: None, experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Folder of the slow spot finder, installed by lying on the path, and the environment of the jobs."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "slowfinder.py").write_text(PLUGIN)
    info = folder / "slowfinder-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slowfinder\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[xfelproc.spotfinders]\nslow = slowfinder:Slow\n")
    variables = environment()
    variables["PYTHONPATH"] = f"{folder}{os.pathsep}{variables['PYTHONPATH']}"
    variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return folder, variables


def make_site(surroundings: tuple[Path, dict[str, str]], experiment: Path, pace: str, seconds: float) -> Site:
    folder, variables = surroundings
    one = Site(folder, experiment, {**variables, "PACE": str(folder / pace)})
    one.slow_down(seconds)
    return one


@pytest.fixture
def site(surroundings: tuple[Path, dict[str, str]], experiment: Path) -> Iterator[Site]:
    one = make_site(surroundings, experiment, "pace", 0)
    yield one
    one.cancel()


@pytest.fixture(scope="module", autouse=True)
def short_of_time(surroundings: tuple[Path, dict[str, str]], experiment: Path) -> Iterator[Site]:
    """A run whose wall time ends again and again while the other tests go on: SLURM counts it in minutes."""
    one = make_site(surroundings, experiment, "pace-wall", 5)
    # warned at SLURM's first look at the clock, which it takes every 30 s; not so the job that merges, which needs some of them
    keys = {"time": "3", "merge_time": "30", "signal_before": 90, "max_idle": 10}
    one.submit(one.job("wall.toml", **keys, directives=["--signal=B:USR1@150"]))
    yield one
    one.cancel()


def wait_for(what: Callable[[], bool], run: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, told(run)
        time.sleep(0.3)


def told(run: Path) -> str:
    """Return what the jobs of a run printed."""
    lines = [state.line() for state in queue_state(run)]
    return "\n".join([*lines, *(path.read_text() for path in sorted(run.glob("logs/*.out")))])


def at_end(run: Path) -> list[QueueState]:
    """Wait for the jobs of a run and return their states."""
    wait_for(lambda: not any(state.is_alive for state in queue_state(run)), run)
    return queue_state(run)


def assert_completed(run: Path) -> list[QueueState]:
    states = at_end(run)
    assert [state.state for state in states] == ["COMPLETED"] * len(states), told(run)
    return states


def shards(run: Path) -> int:
    return len(list((run / "shards" / "process").rglob("[0-9]*.h5")))


def test_a_chain(site: Site, undisturbed: Path) -> None:
    (run,) = site.submit(site.job("chain.toml", tasks_per_node=2))
    assert [state.part for state in queue_state(run)] == ["process", "merge"]
    status = site.xfelproc("status", run)
    assert f"job {read_record(run)[1].id} (merge): PENDING (Dependency)" in status.output, status.output
    refused = site.xfelproc("submit", site.folder / "chain.toml", "--no-check")
    assert refused.code == 2
    assert "has a job in the queue already" in refused.output
    assert_completed(run)
    assert_same(run, undisturbed)
    jobs = json.loads(site.xfelproc("status", run, "--json").output)["queue"]
    assert [(job["part"], job["state"]) for job in jobs] == [("process", "COMPLETED"), ("merge", "COMPLETED")]
    assert "process of" in (run / "logs" / f"process-{read_record(run)[0].id}.out").read_text()


def ranks(launcher: str) -> dict[str, object]:
    """Return the keys of three ranks by a launcher, on however few CPUs; the test is skipped where it is not there."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'xfelproc[mpi]'")
    listed = subprocess.run(["srun", "--mpi=list"], capture_output=True, text=True, check=False)
    if "pmix" in launcher and "pmix" not in listed.stdout + listed.stderr:
        pytest.skip("this SLURM has no plug-in for PMIx: apt-get install libpmix-dev")
    if launcher == "mpiexec":
        found = shutil.which("mpiexec", path=str(Path(command([])[0]).parent)) or "mpiexec"
        launcher = f"{found} --oversubscribe"
    return {"tasks_per_node": 3, "merge_job": False, "directives": ["--overcommit"], "mpi": launcher}


@pytest.mark.parametrize("launcher", ["mpiexec", "srun --mpi=pmix"])
def test_ranks(site: Site, undisturbed: Path, launcher: str) -> None:
    (run,) = site.submit(site.job(f"ranks-{launcher[-4:]}.toml", **ranks(launcher)))
    assert_completed(run)
    assert_same(run, undisturbed)


def test_an_array_with_a_bad_run(site: Site, undisturbed: Path) -> None:
    good, bad = site.job("good.toml"), site.job("bad.toml")
    bad.write_text(bad.read_text().replace("frames.h5", "missing.h5"))
    first, second = site.submit(good, bad)
    assert_completed(first)
    assert_same(first, undisturbed)
    assert [state.state for state in at_end(second)] == ["FAILED", "CANCELLED"], told(second)
    (log,) = (second / "logs").glob("process-*_1.out")
    assert "no such file" in log.read_text()


def test_cancelled_and_submitted_again(site: Site, undisturbed: Path) -> None:
    site.slow_down(0.5)
    job = site.job("cancelled.toml")
    (run,) = site.submit(job)
    wait_for(lambda: shards(run) > 0, run)
    slurm.cancel([read_record(run)[0].id])
    assert [state.state for state in at_end(run)] == ["CANCELLED", "CANCELLED"]
    assert 0 < shards(run) < 12
    site.slow_down(0)
    site.submit(job)
    assert_completed(run)
    assert_same(run, undisturbed)


def dispatcher(run: Path) -> int:
    return int(json.loads((run / "lock").read_text())["pid"])


def worker(run: Path) -> int:
    return next(int(path.name.rpartition("-")[2]) for path in (run / "logs" / "inflight").iterdir())


@pytest.mark.parametrize(("launcher", "victim"), [("none", dispatcher), ("srun --mpi=pmix", worker)])
def test_killed_in_the_allocation(site: Site, undisturbed: Path, launcher: str, victim: Callable[[Path], int]) -> None:
    site.slow_down(0.5)
    keys: dict[str, object] = {"merge_job": False} if launcher == "none" else ranks(launcher)
    (run,) = site.submit(site.job(f"killed-{victim.__name__}.toml", **keys))
    wait_for(lambda: shards(run) > 0, run)
    os.kill(victim(run), signal.SIGKILL)
    (state,) = assert_completed(run)
    assert state.restarts == 0
    assert ", time 1\n" in told(run)
    assert_same(run, undisturbed)


def test_taken_off_its_node(site: Site, undisturbed: Path) -> None:
    site.slow_down(0.3)
    (run,) = site.submit(site.job("taken.toml", merge_job=False))
    wait_for(lambda: shards(run) > 0, run)
    slurm.ask("scontrol", "requeue", read_record(run)[0].id)  # what SLURM does after a node's failure, and to preempt
    (state,) = assert_completed(run)
    assert state.restarts == 1
    assert_same(run, undisturbed)


def test_the_wall_time_ends_it_three_times(short_of_time: Site, undisturbed: Path) -> None:
    (run,) = short_of_time.runs
    wait_for(lambda: queue_state(run)[0].restarts >= 3, run)
    short_of_time.slow_down(0)
    process, _ = assert_completed(run)
    assert process.restarts >= 3
    assert told(run).count("warned of the end of the wall time") >= 3
    assert_same(run, undisturbed)

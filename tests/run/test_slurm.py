"""Section [slurm] and the scripts it becomes; the script itself is run by bash with stubs of what it calls."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from xfelproc.errors import ConfigError
from xfelproc.run.config import make_config
from xfelproc.run.directory import relevant
from xfelproc.run.slurm import ALL, MERGE, PROCESS, TEMPLATE, Part, Slurm, Target, fill, parts_of, seconds, write_script

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10", 600),
        ("1:30", 90),
        ("04:00:00", 14400),
        ("1-0", 86400),
        ("2-03", 183600),
        ("1-1:30", 91800),
        ("1-01:30:05", 91805),
    ],
)
def test_times(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "4h", "1:2:3:4", "-5", "1-"])
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError, match="is no time of SLURM"):
        seconds(text)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"time": "4h"}, "is no time of SLURM"),
        ({"time": "0:30"}, "less than a minute"),
        ({"time": "8", "signal_before": 300}, "more than half of time = 8"),
        ({"merge_time": "2"}, "more than half of merge_time"),
        ({"signal_before": 60}, "greater than or equal to 90"),
        ({"mpi": "none", "nodes": 2}, "nodes = 2: name a launcher"),
        ({"partition": "a b"}, "pattern"),
        ({"directives": ["reservation=x"]}, "is no option of sbatch"),
        ({"setup": ["a\nb"]}, "holds a line break"),
        ({"partitions": "x"}, "partitions"),
    ],
)
def test_wrong_sections(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Slurm.model_validate(keys)


def test_times_as_toml_has_them() -> None:
    (hours,) = tomllib.loads("a = 04:00:00").values()
    assert Slurm(time=hours, merge_time=90).time == "04:00:00"
    assert Slurm(time=hours, merge_time=90).merge_time == "90"


def test_slurm_is_in_no_lineage() -> None:
    document = {"input": {"files": "a.h5"}}
    plain = make_config(document, Path("/base"))
    other = make_config({**document, "slurm": {"partition": "long", "nodes": 7}}, Path("/base"))
    assert other.slurm.nodes == 7
    assert relevant(plain.resolved()) == relevant(other.resolved())


def test_template_is_relative_to_the_job() -> None:
    config = make_config({"input": {"files": "a.h5"}, "slurm": {"template": "my.sbatch"}}, Path("/base"))
    assert config.slurm.template == "/base/my.sbatch"


def script(
    settings: Slurm, part: Part = PROCESS, targets: tuple[Target, ...] = (Target(Path("/jobs/a.toml"), Path("/runs/a")),)
) -> str:
    return write_script(settings, part, targets, "name", Path("/runs/a/logs"))


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]


FULL = Slurm(
    partition="upex",
    account="p1234",
    qos="high",
    constraint="EPYC&ib",
    time="1-00:00:00",
    nodes=4,
    tasks_per_node=64,
    memory="0",
    modules=("openmpi/5", "python"),
    venv="/home/me/my venv/",
    setup=("ulimit -c 0", "export A=1"),
    directives=("--reservation=beam", "--exclusive"),
    merge_tasks=16,
    merge_time="01:00:00",
    merge_memory="64G",
)


def test_directives_of_the_frames() -> None:
    assert directives(script(FULL)) == [
        "--job-name=name",
        "--partition=upex",
        "--account=p1234",
        "--qos=high",
        "--constraint=EPYC&ib",
        "--time=1-00:00:00",
        "--nodes=4",
        "--ntasks=256",
        "--ntasks-per-node=64",
        "--cpus-per-task=1",
        "--mem=0",
        "--output=/runs/a/logs/process-%j.out",
        "--open-mode=append",
        "--requeue",
        "--signal=B:USR1@300",
        "--reservation=beam",
        "--exclusive",
    ]


def test_the_home_folder_is_known_when_submitting() -> None:
    assert f"\n. {Path.home()}/env/bin/activate || " in script(Slurm(venv="~/env"))


def test_without_its_venv_a_job_ends(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(script(Slurm(venv=str(tmp_path / "none"))))
    environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "1"}
    ended = subprocess.run(["bash", tmp_path / "job.sh"], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "slurm.venv is not there" in ended.stdout


def test_directives_of_merging() -> None:
    found = directives(script(FULL, MERGE))
    assert {"--time=01:00:00", "--nodes=1", "--ntasks=16", "--ntasks-per-node=16", "--mem=64G"} <= set(found)


def test_directives_of_a_pool() -> None:
    found = directives(script(Slurm(mpi="none", tasks_per_node=48, cpus_per_task=2)))
    assert {"--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--cpus-per-task=96"} <= set(found)


def test_directives_of_an_array() -> None:
    targets = tuple(Target(Path(f"/jobs/{i}.toml"), Path(f"/runs/with space/{i}")) for i in range(3))
    text = write_script(Slurm(array_limit=2), PROCESS, targets, "name", Path("/runs/100 %/logs"))
    found = directives(text)
    assert "--array=0-2%2" in found
    assert '--output="/runs/100 %%/logs/process-%A_%a.out"' in found
    assert "jobs=(\n  /jobs/0.toml\n  /jobs/1.toml\n  /jobs/2.toml\n)" in text
    assert "  '/runs/with space/1'\n" in text


def test_surroundings() -> None:
    text = script(FULL)
    assert "\nload openmpi/5\nload python\n. '/home/me/my venv'/bin/activate || " in text
    assert "\nulimit -c 0\nexport A=1\nset -u\n" in text
    assert "\nxfelproc=(xfelproc)\nlauncher=(srun --mpi=pmix)\n" in text
    assert "--driver mpi --wait" in text


@pytest.mark.parametrize(
    ("mpi", "launcher", "driver"),
    [
        ("none", "", "--driver pool --workers 32"),
        ("mpiexec", 'mpiexec -n "$SLURM_NTASKS"', "--driver mpi"),
        ("/opt/mpi/bin/mpirun --bind-to core", '/opt/mpi/bin/mpirun --bind-to core -n "$SLURM_NTASKS"', "--driver mpi"),
        ("mpiexec -n 3", "mpiexec -n 3", "--driver mpi"),
        ("srun --mpi=pmi2", "srun --mpi=pmi2", "--driver mpi"),
    ],
)
def test_launchers(mpi: str, launcher: str, driver: str) -> None:
    text = script(Slurm(mpi=mpi))
    assert f"\nlauncher=({launcher})\n" in text
    assert f" {driver} --wait" in text


def test_parts() -> None:
    assert [part.name for part in parts_of(Slurm())] == ["process", "merge"]
    assert [part.name for part in parts_of(Slurm(merge_job=False))] == ["run"]


def test_own_template(tmp_path: Path) -> None:
    path = tmp_path / "my.sbatch"
    path.write_text('@directives@\n"${a[@]}" someone@somewhere @part@\n')
    text = script(Slurm(template=str(path), time="600"))
    assert text.endswith('"${a[@]}" someone@somewhere process\n')
    path.write_text("@directive@")
    with pytest.raises(ConfigError, match=r"nothing to put in for @directive@ \(known: .*directives"):
        script(Slurm(template=str(path)))
    with pytest.raises(ConfigError, match=r"slurm.template: .* cannot be read"):
        script(Slurm(template=str(tmp_path / "missing")))


def test_fill_takes_values_as_they_are() -> None:
    assert fill("@a@ @b@", {"a": "@b@", "b": r"\1"}, Path("x")) == r"@b@ \1"


def test_folder_slurm_shows_the_template() -> None:
    assert (ROOT / "slurm" / "run.sbatch").resolve() == TEMPLATE.resolve()


class Batch:
    """A script beside stubs: ``xfelproc`` ends as ``plan`` says, one line a call; what was called is in ``calls``."""

    def __init__(self, folder: Path, settings: Slurm, part: Part, n_runs: int = 1) -> None:
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir()
        self._stub(
            "xfelproc",
            'echo "$@" >>"$STUBS/calls"; [ "$1" = run ] || exit 0; now=$(head -n 1 "$STUBS/plan"); '
            'sed -i 1d "$STUBS/plan"; eval "${now:-exit 0}"',
        )
        self._stub("scontrol", 'echo "scontrol $@" >>"$STUBS/calls"')
        self._stub("sleep", '[ "$1" = 60 ] || exec /bin/sleep "$1"')
        for number in range(n_runs):
            (folder / f"run{number}" / "shards").mkdir(parents=True)
        targets = [Target(folder / f"job{number}.toml", folder / f"run{number}") for number in range(n_runs)]
        given = settings.model_copy(update={"command": "xfelproc", "cache_folder": str(folder / "cache")})
        self.text = write_script(given, part, targets, "name", folder)
        self.run = folder / "run0"

    def _stub(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def start(self, *plan: str, **variables: str) -> subprocess.Popen[str]:
        (self.folder / "plan").write_text("".join(f"{line}\n" for line in plan))
        (self.folder / "calls").write_text("")
        (self.folder / "script").write_text(self.text)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
            **{"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "STUBS": str(self.folder), "RUN": str(self.run)},
            **{"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"},
            **variables,
        }
        return subprocess.Popen(
            ["bash", self.folder / "script"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def end(self, *plan: str, **variables: str) -> tuple[int, str]:
        process = self.start(*plan, **variables)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def runs(self) -> list[str]:
        return [call for call in self.calls() if call.startswith("run")]

    def wait_for_call(self) -> None:
        while not self.runs():
            time.sleep(0.02)


Maker = Callable[..., Batch]


@pytest.fixture
def batch(tmp_path: Path) -> Maker:
    def make(part: Part = ALL, n_runs: int = 1, **keys: Any) -> Batch:
        return Batch(tmp_path, Slurm(**{"mpi": "none", "tasks_per_node": 3, **keys}), part, n_runs)

    return make


WARNED = "trap '' USR1; kill -USR1 $PPID; /bin/sleep 0.2; exit 75"
PUBLISH = "mktemp -p $RUN/shards XXXXXXXX.h5; "
END = """echo '{"event": "end"}' >$RUN/journal.jsonl; """


def test_a_run_that_ends(batch: Maker) -> None:
    one = batch()
    code, output = one.end()
    assert code == 0, output
    assert one.calls() == [
        f"warm {one.folder}/job0.toml",
        f"run {one.folder}/job0.toml --output {one.run} --driver pool --workers 3 --wait 150",
    ]
    assert not list((one.run / "logs").iterdir())


def test_the_merging_part_refuses_before_it_processes(batch: Maker) -> None:
    one = batch(MERGE, merge_tasks=2)
    assert one.end()[0] == 0
    first, second = one.runs()
    assert first.endswith("--workers 2 --wait 150 --only merge")
    assert second.endswith("--wait 150")
    assert one.end("exit 2")[0] == 2
    assert len(one.runs()) == 1


def test_a_task_of_an_array_does_its_own_run(batch: Maker) -> None:
    one = batch(n_runs=3)
    code, output = one.end(SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_JOB_ID="5")
    assert code == 0
    assert f"job2.toml --output {one.folder}/run2" in one.runs()[0]
    log = one.folder / "run2" / "logs" / "run-5_2.out"
    assert output.endswith(f"goes on in {log}\n")
    assert log.read_text().endswith("done\n")


@pytest.mark.parametrize(("part", "expected"), [(PROCESS, 0), (ALL, 1)])
def test_too_many_failed_frames_do_not_stop_the_chain(batch: Maker, part: Part, expected: int) -> None:
    one = batch(part)
    assert one.end(f"{END} exit 1")[0] == expected
    assert len(one.runs()) == 1


@pytest.mark.parametrize("code", [2, 130])
def test_codes_that_end_a_job(batch: Maker, code: int) -> None:
    one = batch()
    assert one.end(f"exit {code}")[0] == code
    assert len(one.runs()) == 1


def test_started_again_after_a_death(batch: Maker) -> None:
    one = batch()
    code, output = one.end("kill -KILL $$", "exit 1", f"{END} exit 0")
    assert code == 1, output  # the second death came without a change
    assert "nothing changed since its last death" in output
    code, output = one.end("kill -KILL $$", f"{PUBLISH} exit 1", f"{END} exit 0")
    assert code == 0, output
    assert len(one.runs()) == 3


def test_restarts_are_limited(batch: Maker) -> None:
    one = batch(restarts=2)
    code, output = one.end(*[f"{PUBLISH} exit 139"] * 5)
    assert code == 139
    assert len(one.runs()) == 3
    assert "slurm.restarts = 2" in output


def test_suspects_count_as_a_change(batch: Maker) -> None:
    one = batch()
    suspect = "mkdir -p $RUN/gather; echo $RANDOM$$ >$RUN/gather/suspects.json; exit 137"
    assert one.end(suspect, suspect, "exit 0")[0] == 0


def test_requeued_at_75(batch: Maker) -> None:
    one = batch()
    code, output = one.end(WARNED)
    assert code == 75
    assert one.calls()[-1] == "scontrol requeue 7"
    assert len(one.runs()) == 1
    assert "requeued, to go on from here" in output


def test_a_lost_rank_needs_no_other_allocation(batch: Maker) -> None:
    one = batch()
    assert one.end("exit 75", "exit 0")[0] == 0
    assert len(one.runs()) == 2
    assert not any(call.startswith("scontrol") for call in one.calls())


def test_a_warning_is_passed_on(batch: Maker) -> None:
    one = batch()
    process = one.start("trap 'exit 75' USR1; while :; do /bin/sleep 0.05; done")
    one.wait_for_call()
    time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert one.calls()[-1] == "scontrol requeue 7"


def test_a_run_killed_by_the_warning_is_requeued(batch: Maker) -> None:
    one = batch()
    process = one.start("while :; do /bin/sleep 0.05; done")  # no handler yet: it dies of the signal
    one.wait_for_call()
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert one.calls()[-1] == "scontrol requeue 7"
    assert len(one.runs()) == 1


def test_a_run_that_does_not_end_is_not_waited_for(batch: Maker) -> None:
    one = batch()
    one.text = one.text.replace("patience=285", "patience=1")
    process = one.start("trap '' USR1; echo $$ >$STUBS/pid; while :; do /bin/sleep 0.05; done")
    one.wait_for_call()
    time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 75
    os.kill(int((one.folder / "pid").read_text()), signal.SIGKILL)
    assert one.calls()[-1] == "scontrol requeue 7"


def test_cancelled(batch: Maker) -> None:
    one = batch()
    process = one.start("trap 'exit 130' USR1; while :; do /bin/sleep 0.05; done")
    one.wait_for_call()
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert not any(call.startswith("scontrol") for call in one.calls())


def test_no_progress_in_some_allocations(batch: Maker) -> None:
    one = batch(max_idle=2)
    assert "requeued" in one.end(f"{PUBLISH} {WARNED}")[1]
    assert "requeued" in one.end(WARNED, SLURM_RESTART_COUNT="1")[1]
    code, output = one.end(WARNED, SLURM_RESTART_COUNT="2")
    assert code == 75
    assert "no progress in 2 allocations in a row: not requeued" in output
    assert one.calls()[-1] != "scontrol requeue 7"
    assert "requeued, to" in one.end(f"{PUBLISH} {WARNED}", SLURM_RESTART_COUNT="3")[1]


def test_requeues_are_limited(batch: Maker) -> None:
    one = batch(max_requeues=4)
    code, output = one.end(f"{PUBLISH} {WARNED}", SLURM_RESTART_COUNT="4")
    assert code == 75
    assert "requeued 4 times already" in output
    assert one.calls()[-1] != "scontrol requeue 7"


def test_without_a_cache_each_process_finds_its_own_place(batch: Maker) -> None:
    one = batch()
    one._stub("xfelproc", 'echo "$1 ${NUMBA_CACHE_DIR:-none}" >>"$STUBS/calls"; [ "$1" = run ]')
    code, output = one.end()
    assert code == 0
    assert one.calls() == [f"warm {one.folder}/cache/xfelproc-{os.getuid()}", "run none"]
    assert "kernels could not be compiled" in output


def test_kernels_are_compiled_once_a_node(batch: Maker) -> None:
    one = batch()
    one._stub("srun", 'echo "srun $@" >>"$STUBS/calls"')
    assert one.end(SLURM_JOB_NUM_NODES="3")[0] == 0
    assert one.calls()[0] == f"srun --nodes=3 --ntasks=3 --ntasks-per-node=1 xfelproc warm {one.folder}/job0.toml"

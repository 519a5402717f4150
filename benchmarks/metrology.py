"""Measure metrology on simulated residuals, and write the table of `docs/explanation/metrology.md`.

    python benchmarks/metrology.py [--only accuracy|size|growth|dials] [--crystals N] [--write]

Spots are traced to displaced panels by `tests/algorithms/metrology/simulated.py`. Compilation and start-up are left out.
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from tests.algorithms.metrology import simulated
from tests.peers import test_metrology as peer
from xfelproc.algorithms.metrology import CrystalSpots, Metrology, MetrologyState, Partial
from xfelproc.models.experiment import Detector
from xfelproc.stages.fold import combine_all

PAGE = ROOT / "docs" / "explanation" / "metrology.md"
FIELDS = ("A", "hkl", "panel", "fast", "slow", "variance", "key", "n")
BLOCK = 1000


def accuracy() -> list[str]:
    """Return rows for a CSPAD of 64 displaced panels and 300 crystals."""
    rows = []
    for in_plane, noise in ((0.8, 0.1), (0.8, 0.2), (2.0, 0.1)):
        figures = []
        for seed in (1, 2):
            rng = np.random.default_rng(seed)
            recorded = simulated.cspad()
            truth = simulated.displaced(recorded, simulated.Errors(in_plane=in_plane), rng, (0.05, -0.08, 0.3))
            state = Metrology(prediction="turn").refine(recorded, simulated.BEAM, simulated.shots(truth, 300, rng, noise))
            off = simulated.errors_in_plane(state.detector, truth)
            end, inside = state.outcomes[-1], simulated.internal_errors(state.detector, truth)
            figures.append(
                [
                    state.iteration,
                    np.sqrt(np.mean(off**2)),
                    np.sqrt(np.mean(simulated.errors_across_rays(state.detector, truth) ** 2)),
                    np.sqrt(np.mean((inside / end.sigma_internal) ** 2)),
                    np.sqrt(np.mean((end.half_difference / end.half_sigma) ** 2)),
                ]
            )
        passes, plane, across, ratio, halves = np.mean(figures, axis=0)
        rows.append(
            f"| 64 panels, {in_plane} px, σ of positions {noise} px | {passes:.0f} passes; in-plane error {plane:.3f} px rms, as "
            f"the spots see it {across:.3f} px; error / stated σ {ratio:.2f}, half-set difference / stated {halves:.2f} |"
        )
    return rows


def make_block(folder: Path, number: int, size: int, truth: Detector) -> None:
    """Write ``size`` crystals of 100 spots: one in ten is new, the others have its spots with other errors."""
    rng = np.random.default_rng(number)
    found = simulated.shots(truth, max(1, size // 10), rng, 0.2, (100, 100))
    crystals = []
    for i in range(size):
        c = found[i % len(found)]
        shake = 0.2 * rng.normal(size=(2, len(c.panel)))
        crystals.append(replace(c, fast=c.fast + shake[0], slow=c.slow + shake[1], key=int(rng.integers(2))))
    np.savez(
        folder / f"{number}.npz",
        A=np.array([c.A for c in crystals]),
        hkl=np.concatenate([c.hkl for c in crystals]),
        panel=np.concatenate([c.panel for c in crystals]),
        fast=np.concatenate([c.fast for c in crystals]),
        slow=np.concatenate([c.slow for c in crystals]),
        variance=np.concatenate([2.0 * c.var_fast for c in crystals]),
        key=np.array([c.key for c in crystals]),
        n=np.array([len(c.panel) for c in crystals]),
    )


def read_block(path: Path) -> list[CrystalSpots]:
    with np.load(path) as file:
        d = {name: file[name] for name in FIELDS}
    ends = np.cumsum(d["n"])
    crystals = []
    for i, (last, n) in enumerate(zip(ends, d["n"], strict=True)):
        s = slice(last - n, last)
        crystals.append(
            CrystalSpots(
                d["A"][i],
                simulated.SPACE_GROUP,
                simulated.BEAM.wavelength,
                d["hkl"][s],
                d["panel"][s],
                d["fast"][s],
                d["slow"][s],
                d["variance"][s],
                d["variance"][s],
                int(d["key"][i]),
            )
        )
    return crystals


def accumulate_block(settings: Metrology, state: MetrologyState, path: Path) -> tuple[Partial, float, float]:
    """Return a block's sums, the worker's largest memory in MiB and the CPU time in s."""
    begun = time.process_time()
    partial = settings.accumulate(state, read_block(path))
    return partial, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.process_time() - begun


def run_size(n_crystals: int, workers: int = 2) -> tuple[MetrologyState, tuple[float, float, float], float, Detector]:
    """Return, of 256 panels on a pool, the last state; wall and CPU seconds (workers, this process); MiB; the truth."""
    recorded = simulated.grid(16)
    truth = simulated.displaced(recorded, simulated.Errors(), np.random.default_rng(0), (0.05, -0.08, 0.3))
    settings = Metrology(levels=(2,), prediction="turn")
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        folder = Path(name)
        blocks = -(-n_crystals // BLOCK)
        sizes = [min(BLOCK, n_crystals - i * BLOCK) for i in range(blocks)]
        list(pool.map(make_block, [folder] * blocks, range(blocks), sizes, [truth] * blocks))
        paths = [folder / f"{i}.npz" for i in range(blocks)]
        state = settings.begin(recorded, simulated.BEAM)
        for _ in range(2):  # each worker compiles
            list(pool.map(accumulate_block, [settings] * 4, [state] * 4, [paths[0]] * 4))
        begun, own_cpu, memory, cpu = time.perf_counter(), time.process_time(), [0.0], [0.0]
        while not state.finished:
            results = pool.map(accumulate_block, [settings] * blocks, [state] * blocks, paths)
            state = settings.advance(state, combine_all(_Fold(settings), _watched(results, memory, cpu)))
        seconds = (time.perf_counter() - begun, sum(cpu), time.process_time() - own_cpu)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return state, seconds, max(*memory, own), truth


class _Fold:
    """What `combine_all` needs."""

    lineage = ""

    def __init__(self, settings: Metrology) -> None:
        self.settings = settings

    def accumulate(self, blocks: object) -> Partial:
        raise NotImplementedError

    def combine(self, first: Partial, second: Partial) -> Partial:
        return self.settings.combine(first, second)


def _watched(results: Iterable[tuple[Partial, float, float]], memory: list[float], cpu: list[float]) -> Iterator[Partial]:
    for partial, most, seconds in results:
        memory.append(most)
        cpu.append(seconds)
        yield partial


def size(n_crystals: int) -> list[str]:
    """Return the row of 256 panels."""
    state, seconds, memory, truth = run_size(n_crystals)
    off = simulated.errors_in_plane(state.detector, truth)
    return [
        f"| 256 panels, {n_crystals} crystals of 100 spots, pool of 2 | {state.iteration} passes, {seconds[0]:.1f} s "
        f"(CPU time: workers {seconds[1]:.1f} s, solving and adding up {seconds[2]:.1f} s), "
        f"{memory:.0f} MiB a process at most; "
        f" in-plane error {np.sqrt(np.mean(off**2)):.3f} px rms; converged: {state.converged} {state.why} |"
    ]


def growth() -> list[str]:
    """Return a row on how the time of a pass grows with the crystals."""
    recorded = simulated.grid(16)
    settings = Metrology(levels=(2,), prediction="turn")
    state = settings.begin(recorded, simulated.BEAM)
    crystals = simulated.shots(recorded, 100, np.random.default_rng(0), 0.2, (100, 100))
    settings.accumulate(state, crystals[:10])
    times = []
    for factor in (2, 4, 8):
        begun = time.process_time()
        settings.accumulate(state, crystals * factor)
        times.append(1e3 * (time.process_time() - begun) / (100 * factor))
    return [
        "| a pass, 256 panels, CPU ms a crystal of 100 spots | 200, 400, 800 crystals: "
        + ", ".join(f"{t:.2f}" for t in times)
        + " |"
    ]


def dials() -> list[str]:
    """Return rows for the real CSPAD shots, against dials.refine."""
    data = Path(os.environ.get("XFELPROC_TEST_DATA", ROOT.parent / "shared" / "data")) / "metrology_cspad"
    if not data.is_dir():
        return ["| CSPAD, 300 real shots | test data not found: set XFELPROC_TEST_DATA |"]
    rows = []
    detector, beam, crystals, observed = peer.load(data, "experiments.expt.xz", used=True)
    for level in range(3):
        settings = peer.AS_DIALS.model_copy(update={"levels": tuple(range(level + 1))})
        settings.refine(detector, beam, crystals)
        begun, cpu = time.perf_counter(), time.process_time()
        state = settings.refine(detector, beam, crystals)
        wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
        x, y, psi = peer.rmsds(state, settings, crystals, observed)
        limits = "{:.6f}, {:.6f} mm, {:.6f}".format(*peer.DIALS[level])
        rows.append(
            f"| 300 real CSPAD shots, levels 0 to {level} | RMSD X, Y {x:.6f}, {y:.6f} mm, ΔΨ {psi:.6f} (DIALS {limits}); "
            f"{state.iteration} passes, {wall:.2f} s, {cpu:.2f} s of CPU time |"
        )
    detector, beam, crystals, observed = peer.load(data, "perturbed.expt.xz", used=False)
    state = settings.refine(detector, beam, crystals)
    x, y, _ = peer.rmsds(state, settings, crystals, observed)
    rows.append(
        f"| the same, sensors moved by 0.1 mm and 3 mrad, all 8790 spots | RMSD X, Y {x:.5f}, {y:.5f} mm (DIALS 0.04385, 0.04904); "
        f"{state.iteration} passes |"
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("accuracy", "size", "growth", "dials"), action="append")
    parser.add_argument("--crystals", type=int, default=10_000)
    parser.add_argument("--write", action="store_true", help="put the table into docs/explanation/metrology.md")
    options = parser.parse_args()
    measures = {"dials": dials, "accuracy": accuracy, "size": lambda: size(options.crystals), "growth": growth}
    lines = ["| case | measured |", "|---|---|"]
    for name, measure in measures.items():
        if not options.only or name in options.only:
            for row in measure():
                lines.append(row)
                print(row, flush=True)
    if options.write:
        text = PAGE.read_text(encoding="utf-8")
        table = "<!-- table -->\n" + "\n".join(lines) + "\n<!-- end -->"
        PAGE.write_text(re.sub(r"<!-- table -->.*<!-- end -->", lambda _: table, text, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()

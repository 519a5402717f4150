"""Measure how well stills are merged, against the truth, and write the tables of `docs/explanation/merging-accuracy.md`.

    python benchmarks/merging_accuracy.py --work FOLDER [--quick] [--output FILE]

Frames are simulated and processed in FOLDER by the command line, once (an hour of CPU time; ``--quick``: 60 lattices each); what
is there already is used. The independent simulation is read from the test data (XFELPROC_TEST_DATA), if there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import gemmi
import h5py
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from xfelproc.algorithms.merging import Merge, concatenate, half_set
from xfelproc.algorithms.merging.final import merged_rows
from xfelproc.algorithms.merging.in_memory import block_in_memory, scale_blocks
from xfelproc.algorithms.merging.lattice_block import LatticeFacts
from xfelproc.algorithms.merging.observations import Observations, corrected, usable_rows
from xfelproc.algorithms.merging.output import output_block
from xfelproc.geometry.miller import pack, possible_reflections, to_asu
from xfelproc.io.shards import read_shard
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.simulation.observations import ObservationSimulator

CELL = (79.1, 79.1, 38.0, 90.0, 90.0, 90.0)
GROUP = gemmi.SpaceGroup("P 43 21 2")
BANDWIDTH = 0.002
LIMITS = {"d_min": 2.0, "d_max": 30.0}
CLEAN = ("beam.jitter=0.0", "crystal.cell_spread=0.0")
HARD = ("beam.jitter=0.001", "crystal.cell_spread=0.001", "geometry_error.centre=[0.3,0.0]")
HEADER = """# Accuracy of merged stills

Made by `python benchmarks/merging_accuracy.py`. P43212, 79.1 79.1 38.0 Å, 30-2.0 Å, the preset `large` of `xfelproc simulate`,
frames found, indexed, refined and integrated by default runs, merged with defaults unless said. CC and R (Σ|J - kT| / ΣkT) are to
the true intensities T. R_split is over all reflections measured in both halves; the halves are of frames, by a hash, and share
scales and models unless said. *p > 0.2*: over the reflections that have an observation of that partiality;
*p > 0.2 alone*: merged with `min_partiality = 0.2`. CPU is that of all cycles and
the output.

"""


@dataclass(frozen=True)
class Set:
    """Observations of a run's lattices, and the truth as packed indices, sorted, with intensities."""

    observations: Observations
    facts: LatticeFacts
    keys: NDArray[np.int64]
    intensity: NDArray[np.float64]

    def first(self, n: int | None) -> Set:
        """Return the set with n lattices, evenly spaced."""
        total = self.observations.n_lattices
        return self if n is None or n >= total else self.some(np.isin(np.arange(total), np.arange(n) * total // n))

    def some(self, keep: NDArray[np.bool_]) -> Set:
        """Return the set with some lattices."""
        number = np.cumsum(keep) - 1
        old = self.observations.select(keep[self.observations.lattice])
        columns = {**vars(old), "lattice": number[old.lattice], "half": old.half[keep], "n_lattices": int(keep.sum())}
        facts = LatticeFacts(**{name: values[keep] for name, values in vars(self.facts).items()})
        return Set(Observations(**columns), facts, self.keys, self.intensity)


def load(run: Path, truth: Path, settings: Merge) -> Set:
    """Return the lattices of a run's shards."""
    parts, facts = [], []
    for unit, path in enumerate(sorted((run / "shards" / "process").glob("*.h5"))):
        result = read_shard(path)
        row = result.lattices["frame"]
        identity = zip(result.frames["source"][row].tolist(), result.frames["index"][row].tolist(), strict=True)
        half = np.array([half_set(f"file{source}", index) for source, index in identity], dtype=np.uint8)
        parts.append(corrected(result.reflections.select(usable_rows(result.reflections, settings)), half))
        numbers = np.arange(len(row), dtype=np.int32)
        facts.append((result.lattices["A"], result.lattices["cell"], result.frames["wavelength"][row], numbers * 0 + unit, numbers))
    a, cell, wavelength, unit_, number = (np.concatenate(column) for column in zip(*facts, strict=True))
    known = LatticeFacts(a, cell, wavelength, np.full(len(a), BANDWIDTH), unit_, number, np.zeros(len(a), dtype=np.int16))
    with h5py.File(truth) as file:
        hkl, intensity = file["hkl"][()].astype(np.int32), file["intensity"][()]
    keys = pack(to_asu(hkl, GROUP)[0])
    order = np.argsort(keys)
    return Set(concatenate(parts), known, keys[order], intensity[order])


@dataclass(frozen=True)
class Merged:
    """Merged intensities by packed index, those of the halves, which have an observation of p > 0.2, CPU seconds, cycles."""

    keys: NDArray[np.int64]
    mean: NDArray[np.float64]
    halves: tuple[NDArray[np.float64], NDArray[np.float64]]
    fuller: NDArray[np.bool_]
    seconds: float
    cycles: int


def merged(given: Set, **changes: object) -> Merged:
    """Merge a set."""
    settings = Merge.model_validate({**LIMITS, **changes})
    block, state = block_in_memory(given.observations, given.facts, CELL, GROUP, settings)
    begin = time.process_time()
    scaled = scale_blocks([block], state)
    rows, _, sums = output_block(block, scaled.models[0], scaled.state)
    seconds = time.process_time() - begin
    found = merged_rows(sums, scaled.state)
    kept = (rows["partiality"] > 0.2) & (rows["flags"] & int(ReflectionFlag.OUTLIER) == 0)
    keys = pack(found["hkl"])
    fuller = np.isin(keys, pack(rows["hkl_asu"][kept]))
    return Merged(keys, found["intensity"], (found["half1"], found["half2"]), fuller, seconds, scaled.state.cycle)


def figures(given: Set, result: Merged, rows: NDArray[np.bool_] | None = None) -> str:
    """Return number, completeness, CC, R, R_split and pairs as cells of a table."""
    possible = pack(possible_reflections(CELL, GROUP, LIMITS["d_min"], LIMITS["d_max"]))
    place = np.minimum(np.searchsorted(given.keys, result.keys), len(given.keys) - 1)
    good = np.isin(result.keys, possible) & np.isfinite(result.mean) & (given.keys[place] == result.keys)
    if rows is not None:
        good &= rows
    value, true = result.mean[good], given.intensity[place][good]
    scale = (value @ true) / (true @ true)
    cc = np.corrcoef(value, true)[0, 1]
    residual = np.abs(value - scale * true).sum() / (scale * true).sum()
    split, pairs = r_split(result.halves[0][good], result.halves[1][good])
    return f"{good.sum()} | {good.sum() / len(possible):.3f} | {cc:.4f} | {100 * residual:.1f} % | {100 * split:.2f} % ({pairs})"


def r_split(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, int]:
    """Return R_split and its number of pairs."""
    both = np.isfinite(first) & np.isfinite(second)
    a, b = first[both], second[both]
    return float(np.abs(a - b).sum() / np.sqrt(2) / (0.5 * (a + b)).sum()), int(both.sum())


def apart(given: Set) -> tuple[float, int]:
    """Return R_split of halves that were scaled and post-refined each by itself, brought to one scale."""
    one, two = (merged(given.some(given.observations.half == half)) for half in (0, 1))
    _, i, j = np.intersect1d(one.keys, two.keys, return_indices=True)
    a, b = one.mean[i], two.mean[j]
    return r_split(a, b * (a @ b) / (b @ b))


def make(work: Path, name: str, frames: int, seed: int, changes: tuple[str, ...]) -> Path:
    """Simulate frames with the command line, if they are not there; return the folder."""
    folder = work / name
    if not (folder / "truth.h5").exists():
        options = [word for change in ("hit_fraction=1.0", *changes) for word in ("--set", change)]
        command(["simulate", "large", "-n", str(frames), "--seed", str(seed), "-o", str(folder), *options])
    return folder


def processed(job: Path, run: Path) -> Path:
    """Process frames with the command line, if that is not done; return the run."""
    if not (run / "merged" / "merged.mtz").exists():
        command(["run", str(job), "-o", str(run)])
    return run


def command(words: list[str]) -> None:
    """Run xfelproc."""
    subprocess.run([sys.executable, "-m", "xfelproc", *words], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def simulated(work: Path, quick: bool) -> dict[str, Set]:
    """Return the simulated sets: clean, weak, and hard with every tenth lattice of another structure."""
    n, settings = (60 if quick else 500), Merge.model_validate(LIMITS)
    base, weak = make(work, "base", n, 1, CLEAN), make(work, "weak", n, 1, (*CLEAN, "photons=400"))
    hard, others = make(work, "hard", n - n // 10, 1, HARD), make(work, "hard_outliers", n // 10, 2, HARD)
    both = hard / "both.toml"
    files = f'files = ["frames.h5", "../{others.name}/frames.h5"]'
    both.write_text((hard / "job.toml").read_text(encoding="utf-8").replace('files = ["frames.h5"]', files), encoding="utf-8")
    sets = {}
    for folder, job in ((base, base / "job.toml"), (weak, weak / "job.toml"), (hard, both)):
        sets[folder.name] = load(processed(job, folder / "run"), folder / "truth.h5", settings)
    return sets


def independent(data: Path, work: Path) -> Set | None:
    """Return the set of the independent simulation, if it is there."""
    folder = data / "stills_nanobragg"
    if not folder.is_dir():
        return None
    job = work / "nano" / "job.toml"
    job.parent.mkdir(parents=True, exist_ok=True)
    if not job.exists():
        job.write_text(
            f'recipe = "stills"\n[input]\nfiles = ["{folder}/stills.h5"]\ngeometry = "{folder}/stills.geom"\n'
            f'[index]\ncell = [{", ".join(map(str, CELL))}]\nspace_group = "P 43 21 2"\n',
            encoding="utf-8",
        )
    return load(processed(job, job.parent / "run"), folder / "truth.h5", Merge.model_validate(LIMITS))


def observed(n: int) -> Set:
    """Return n lattices simulated as observations, without frames, with misset, spread of widths and errors of partiality."""
    simulator = ObservationSimulator.of(cell=CELL, space_group="P 43 21 2", d_min=2.0, misset=0.003)
    found = simulator.simulate(0, n)
    block = found.block()
    zeros = np.zeros(n, dtype=np.int32)
    facts = LatticeFacts(
        block["A"],
        np.tile(CELL, (n, 1)),
        block["wavelength"],
        np.zeros(n),
        zeros,
        np.arange(n, dtype=np.int32),
        zeros.astype(np.int16),
    )
    keys = pack(simulator.structure.hkl.astype(np.int32))
    order = np.argsort(keys)
    observations = corrected(found.table().select(usable_rows(found.table(), Merge.model_validate(LIMITS))), found.crystals.half)
    return Set(observations, facts, keys[order], simulator.structure.mean[order])


def table(
    title: str, rows: list[str], columns: str = "set | lattices | reflections | completeness | CC | R | R_split (pairs)"
) -> str:
    """Return a table."""
    return f"## {title}\n\n| {columns} |\n|{'---|' * (columns.count('|') + 1)}\n" + "\n".join(f"| {row} |" for row in rows) + "\n"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the simulated frames and their runs")
    parser.add_argument("--quick", action="store_true", help="60 lattices a set; nothing is written without --output")
    parser.add_argument("--output", type=Path, help="file to write (default: docs/explanation/merging-accuracy.md)")
    options = parser.parse_args()
    sets = simulated(options.work, options.quick)
    nano = independent(Path(os.environ.get("XFELPROC_TEST_DATA", ROOT.parent / "shared" / "data")), options.work)
    merged(sets["base"].first(50))  # kernels are compiled
    rows, costs = [], []
    for name, given in [*sets.items(), *([("independent", nano)] if nano else [])]:
        for n in (200, None) if given.observations.n_lattices > 200 else (None,):
            part = given.first(n)
            result = merged(part)
            count = part.observations.n_lattices
            rows += [
                f"{name} | {count} | {figures(part, result)}",
                f"{name}, p > 0.2 | {count} | {figures(part, result, result.fuller)}",
            ]
            if name == "independent":
                alone = merged(part, min_partiality=0.2)
                rows.append(f"{name}, p > 0.2 alone | {count} | {figures(part, alone)}")
            costs.append(f"{name} | {count} | {len(part.observations)} | {result.cycles} | {result.seconds:.2f}")
            print(rows[-2], rows[-1], costs[-1], sep="\n", flush=True)
    against = []
    for name, given, sizes in (("base", sets["base"], (50, 100, 300)), ("observations", observed(1000), (50, 100, 300, 1000))):
        for n in sizes:
            part = given.first(min(n, given.observations.n_lattices))
            for words, changes in (
                ("post-refined", {}),
                ("scaled, one width", {"post_refine": False}),
                ("Monte-Carlo", {"partiality": "unity"}),
            ):
                against.append(f"{name}, {words} | {part.observations.n_lattices} | {figures(part, merged(part, **changes))}")
                print(against[-1], flush=True)
    models = [
        f"{kind} | 200 | {figures(sets['base'].first(200), merged(sets['base'].first(200), partiality=kind))}"
        for kind in ("gaussian", "lorentzian", "overlap")
    ]
    halves = []
    for name, given in sets.items():
        together, pairs = r_split(*merged(given.first(200)).halves)
        alone, pairs_alone = apart(given.first(200))
        halves.append(f"{name} | 200 | {100 * together:.2f} % ({pairs}) | {100 * alone:.2f} % ({pairs_alone})")
    text = HEADER + "\n".join(
        [
            table("Simulated and independent sets", rows),
            "*base*: clean. *weak*: a tenth of the photons. *hard*: a tenth of the lattices is of another structure, the energy"
            " jitters by 0.1 %, cell lengths spread by 0.1 %, and the beam centre is off by 0.3 px. *independent*: the 48 hits of"
            " another simulator.\n",
            table("Against Monte-Carlo merging", against),
            table("Partiality models", models),
            table(
                "Halves refined each by itself", halves, "set | lattices | R_split, common models (pairs) | R_split, apart (pairs)"
            ),
            table("Cost", costs, "set | lattices | observations | cycles | CPU s"),
        ]
    )
    print(text)
    if options.output or not options.quick:
        (options.output or ROOT / "docs" / "explanation" / "merging-accuracy.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

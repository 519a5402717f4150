"""Measure how accurate xfelproc is, and write the tables of `docs/explanation/accuracy.md`.

    python benchmarks/accuracy.py [--set real|nanobragg|hard|random] [--quick] [--output FILE] [--only NAME] [--seed N]

Without ``--set`` all are measured. Only the sections that were measured are replaced in the file. ``--quick`` takes fewer frames
and writes nothing unless ``--output`` says where.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import _hard
import _real
from _truth import Report

ROOT = Path(__file__).resolve().parents[1]
SETS = ("real", "nanobragg", "hard", "random")
HEADER = """# Accuracy

Made by `python benchmarks/accuracy.py`. *Right* is a lattice whose primitive basis is that of the truth to a unimodular integer
matrix, less than 0.5° and 2 % in cell lengths away. *Indexed* spots have |Δhkl| ≤ 0.3 in each index under the final refined
model, all spots found being offered; where a frame has several lattices a spot is of the one that predicts it nearest, the tables
show the first, and the notes the others, all together, and the first with spots shared out otherwise. An RMSD is
√mean(Δfast² + Δslow²) in pixels over exactly the indexed spots. Numbers of spots are those that `FindSpots` finds.
"""


def measure(name: str, quick: bool, only: str, seed: int, data: Path) -> Report:
    """Measure one set."""
    if name == "hard":
        return _hard.hard(quick, only, seed)
    if name == "random":
        return _hard.random(quick)
    if not data.is_dir():
        raise SystemExit(f"test data not found at {data}: set XFELPROC_TEST_DATA")
    return _real.nanobragg(data, quick) if name == "nanobragg" else _real.real(data)


def write(path: Path, sections: dict[str, str]) -> None:
    """Replace the measured sections in ``path``, keeping the others."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    kept = dict(re.findall(r"<!-- set (\w+) -->\n(.*?)<!-- end -->", old, flags=re.DOTALL))
    kept.update(sections)
    body = "\n".join(f"<!-- set {name} -->\n{kept[name]}<!-- end -->\n" for name in SETS if name in kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{HEADER}\n{body}", encoding="utf-8")


def main() -> int:
    """Run the command; 1 if a figure does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--set", choices=SETS, action="append", help="what to measure (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer frames; nothing is written without --output")
    parser.add_argument("--output", type=Path, help="file to write (default: docs/explanation/accuracy.md)")
    parser.add_argument("--only", default="", help="of the hard frames, only the cases whose name contains this")
    parser.add_argument("--seed", type=int, default=11, help="seed of the hard frames")
    options = parser.parse_args()
    data = Path(os.environ.get("XFELPROC_TEST_DATA", ROOT.parent / "shared" / "data"))
    sections, holds = {}, True
    for name in options.set or SETS:
        start = time.process_time()
        report = measure(name, options.quick, options.only, options.seed, data)
        sections[name] = report.markdown()
        holds &= all(row.holds is not False for row in report.rows)
        print(sections[name], f"{time.process_time() - start:.0f} s of CPU time\n", sep="\n", flush=True)
    if options.output or not (options.quick or options.only):
        write(options.output or ROOT / "docs" / "explanation" / "accuracy.md", sections)
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Whole runs from geometries that are wrong: what the gather stage makes of them, by the real command line.

    python benchmarks/metrology_runs.py [--work FOLDER] [--data FOLDER] [--frames N] [--only near far lost design thermolysin]
                                        [--workers N] [--write FILE.md]

Simulated CSPAD shots of 60 to 150 spots; the panels' places are judged by the truth, after the common shift, the turn about the
beam and the scale that the distance absorbs have been removed. Frames are kept in the work folder and used again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import h5py
import numpy as np
from _truth import Report, compare
from numpy.typing import NDArray

from xfelproc.io.exchange.dials_expt import read_expt
from xfelproc.io.exchange.geom import read_geom
from xfelproc.io.shards import read_frames, read_lattices, read_shard, shard_path
from xfelproc.models.experiment import Crystal, Detector, DetectorGroup, as_matrix, as_vector
from xfelproc.run.config import load_config
from xfelproc.run.directory import RunDirectory
from xfelproc.run.geometry import result_stage
from xfelproc.simulation import preset, simulate
from xfelproc.simulation.experiment import recorded_layout
from xfelproc.simulation.layout import Layout, make_layout
from xfelproc.simulation.settings import GeometryErrorSettings, SimulationSettings
from xfelproc.simulation.writing import write_geometry

Floats = NDArray[np.float64]
ROOT = Path(__file__).resolve().parents[1]
SPACE_GROUP = "P 43 21 2"
MANY = 50
"""Spots from which on a panel must be where it is to 0.05 px."""


def xfelproc(arguments: Sequence[object]) -> str:
    """Run the real command; return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-m", "xfelproc", *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"xfelproc {' '.join(command[3:])} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


@dataclass(frozen=True)
class Rates:
    """What a run found: frames with a lattice that is right by the truth, wrong lattices, spots a frame, indexed spots a panel."""

    right: int
    wrong: int
    frames: int
    spots: NDArray[np.int64]
    rmsd: float

    def __str__(self) -> str:
        return f"{self.right} of {self.frames} right, {self.wrong} wrong, RMSD {self.rmsd:.2f} px"


def rates_of(run: Path, truth: Path | None) -> Rates:
    """Return what is in the result shards of a run."""
    stage = result_stage(load_config(run / "job.toml"), RunDirectory(run))
    known: dict[int, Floats] = {}
    if truth is not None:
        with h5py.File(truth) as file:
            known = dict(zip(file["lattice/frame"][()].tolist(), file["lattice/A"][()], strict=True))
    right, wrong, frames, squares, used = set[tuple[int, int]](), 0, 0, 0.0, 0
    spots: list[int] = []
    for unit in range(len(list((run / "shards" / "process").rglob("*.h5")))):
        first = read_frames(shard_path(run, "process", unit))
        table, lattices = read_frames(shard_path(run, stage, unit)), read_lattices(shard_path(run, stage, unit))
        frames += len(table)
        spots += first["n_spots"].tolist()
        for row in range(len(lattices)):
            index = int(table["index"][lattices["frame"][row]])
            squares += float(lattices["rmsd_used"][row]) ** 2 * int(lattices["n_used"][row])
            used += int(lattices["n_used"][row])
            found = Crystal(as_matrix(lattices["A"][row]), str(lattices["space_group"][row]))
            if truth is None or (index in known and compare(found, known[index], SPACE_GROUP).right):
                right.add((int(table["source"][lattices["frame"][row]]), index))
            else:
                wrong += 1
    return Rates(len(right), wrong, frames, np.array(spots), float(np.sqrt(squares / max(1, used))))


def indexed_spots(run: Path, stage: str, n_panels: int) -> NDArray[np.int64]:
    """Return (panel,) how many indexed spots refinement used."""
    total = np.zeros(n_panels, dtype=np.int64)
    for unit in range(len(list((run / "shards" / "process").rglob("*.h5")))):
        result = read_shard(shard_path(run, stage, unit))
        rows = result.indexed["spot"][result.indexed["used"]]
        total += np.bincount(result.spots["panel"][rows], minlength=n_panels)
    return total


def middles(detector: Detector) -> dict[str, Floats]:
    """Return the middle of each panel, mm, by its name."""
    half = 0.5 * detector.pixel_sizes * detector.image_sizes
    places = (detector.d_matrices @ np.column_stack([half, np.ones(len(half))])[:, :, None])[:, :, 0]
    return {panel.name.removeprefix("module_"): place for panel, place in zip(detector.panels, places, strict=True)}


def in_plane_errors(detector: Detector, true: Detector, weight: NDArray[np.bool_], along_rays: bool = False) -> Floats:
    """Return (panel, 2) px: how far panels are from where they should be, across the beam, but for what no data tell.

    The common shift, the turn about the beam and the scale that the distance absorbs are those of the panels in ``weight``. With
    ``along_rays`` it is what rays see: a panel that is too near is compared where the ray to its true middle meets it.
    """
    ours, theirs = middles(detector), middles(true)
    names = [panel.name.removeprefix("module_") for panel in detector.panels]
    place = np.array([theirs[name][:2] for name in names])
    off = np.array([ours[name][:2] for name in names]) - place
    if along_rays:
        depth = np.array([theirs[name][2] for name in names])
        off = off - place / depth[:, None] * (np.array([ours[name][2] for name in names]) - depth)[:, None]
    x, y = place.T
    one, none = np.ones(len(x)), np.zeros(len(x))
    modes = np.stack([np.stack([one, none], 1), np.stack([none, one], 1), np.stack([-y, x], 1), np.stack([x, y], 1)], axis=2)
    chosen = modes[weight].reshape(-1, 4)
    fit = np.linalg.lstsq(chosen, off[weight].reshape(-1), rcond=None)[0]
    errors: Floats = (off - modes @ fit) / true.pixel_sizes[0, 0]
    return errors


def rms(errors: Floats) -> float:
    """Return √mean(Δx² + Δy²)."""
    return float(np.sqrt(np.mean(np.sum(errors**2, axis=1)))) if len(errors) else float("nan")


def outcome_of(run: Path) -> Any:
    """Return the finest level's outcome of the last round of refinement, or None."""
    from xfelproc.io.nodes import read_node
    from xfelproc.stages.metrology import unpacked_state

    paths = sorted((run / "gather" / "metrology").glob("result-*.h5"))
    if not paths:
        return None
    state = unpacked_state(read_node(paths[-1], ["result"])[1]["result"])
    return state.outcomes[-1] if state.outcomes else None


@dataclass(frozen=True)
class Start:
    """A recorded geometry to start from, the true one, and the frames."""

    name: str
    what: str
    folder: Path
    recorded: Path
    true: Path


def run_start(start: Start, work: Path, label: str, geometry: Path, enabled: bool, workers: int, extra: Sequence[str] = ()) -> Path:
    """Run the whole recipe but the report from a geometry; return the run directory."""
    run = work / "runs" / f"{start.name}-{label}"
    options = [f'input.geometry="{geometry}"', f"metrology.enabled={str(enabled).lower()}", "report.enabled=false", *extra]
    sets = [word for option in options for word in ("--set", option)]
    print(xfelproc(["run", start.folder / "job.toml", "-o", run, "--workers", workers, "--restart", *sets]), flush=True)
    return run


def judge(start: Start, work: Path, workers: int, report: Report, figure: str) -> None:
    """Run with the true geometry, with the wrong one as it is, and with metrology; add the rows of the table."""
    truth = start.folder / "truth.h5"
    rates = {}
    for label, geometry, enabled in (
        ("true", start.true, False),
        ("wrong", start.recorded, False),
        ("refined", start.recorded, True),
    ):
        run = run_start(start, work, label, geometry, enabled, workers)
        rates[label] = rates_of(run, truth)
    spots = rates["true"].spots
    spread = f"{np.percentile(spots, 5):.0f}-{np.percentile(spots, 95):.0f}, median {np.median(spots):.0f}"
    report.add(figure, f"{start.what}: spots a shot (5th to 95th percentile)", "60-150", spread)
    report.add(figure, f"{start.what}: with the true geometry", "", str(rates["true"]))
    report.add(figure, f"{start.what}: as recorded", "", str(rates["wrong"]))
    same = rates["refined"].right >= rates["true"].right
    report.add(figure, f"{start.what}: after metrology", "the rate of the true geometry", str(rates["refined"]), same)
    places(start, work / "runs" / f"{start.name}-refined", report, figure)


def places(start: Start, run: Path, report: Report, figure: str) -> None:
    """Add the rows about where the panels are."""
    record = json.loads((run / "gather" / "metrology.json").read_text(encoding="utf-8"))
    true, before = read_geom(start.true).detector(), read_geom(start.recorded).detector()
    rounds = "; ".join(f"{r['shift_px']:.2f} px in {r['iterations']} passes" for r in record["rounds"])
    report.notes.append(f"{start.what}: {len(record['rounds'])} rounds ({rounds}); {record['why']}")
    report.notes.extend(f"{start.what}: {text}" for text in record["warnings"])
    path = run / "gather" / "geometry.geom"
    if not path.is_file():
        report.add(figure, f"{start.what}: geometry", "refined", f"none: {record['why']}", False)
        return
    after = read_geom(path).detector()
    n = indexed_spots(run, record["stage"], len(after))
    many = n >= MANY
    start_error, error = in_plane_errors(before, true, many), in_plane_errors(after, true, many)
    report.add(
        figure, f"{start.what}: in-plane error before, panels of >= {MANY} spots", "", f"{rms(start_error[many]):.3f} px rms"
    )
    seen = in_plane_errors(after, true, many, along_rays=True)
    what = f"{start.what}: in-plane error after, {many.sum()} panels of >= {MANY} spots"
    for how, found in ((", as rays see it", seen[many]), (", x and y of their middles alone", error[many])):
        largest = np.abs(found).max()
        report.add(figure, what + how, "<= 0.05 px rms", f"{rms(found):.4f} px rms, largest {largest:.3f}", rms(found) <= 0.05)
    depth = {name: place[2] for name, place in middles(after).items()}
    known = {name: place[2] for name, place in middles(true).items()}
    off = np.array([depth[name] - known[name] for name in known])
    report.add(
        figure, f"{start.what}: along the beam, less the mean", "", f"{np.std(off[many]):.3f} mm rms; mean {off.mean():+.3f} mm"
    )
    outcome = outcome_of(run)
    if outcome is not None:
        precision(start, outcome, (seen, error), many, true, report, figure)


def precision(
    start: Start, outcome: Any, errors: tuple[Floats, Floats], many: NDArray[np.bool_], true: Detector, report: Report, figure: str
) -> None:
    """Add the rows about stated uncertainties: against the truth (as rays see it, and of middles), and between half-sets."""
    for how, error, stated in (("as rays see it", errors[0], outcome.sigma_ray), ("middles", errors[1], outcome.sigma_centre)):
        sigma = stated / true.pixel_sizes[0, 0]
        pull = error / np.maximum(sigma, 1e-9)
        few = ~many
        if few.any():
            worst = float(np.abs(pull[few]).max())
            what = f"{start.what}: error of {few.sum()} panels of fewer spots, {how}"
            report.add(figure, what, "within 3 σ", f"largest {worst:.2f} σ, {np.sqrt(np.mean(pull[few] ** 2)):.2f} rms", worst <= 3)
        ratio = float(np.sqrt(np.mean(pull[many] ** 2)))
        measured = f"{ratio:.2f} rms, largest {np.abs(pull[many]).max():.2f} (√(σx² + σy²) {rms(sigma[many]):.4f} px rms)"
        report.add(figure, f"{start.what}: error / stated σ, others, {how}", "", measured)
    free = ~outcome.tied
    halves = outcome.half_difference[free] / outcome.half_sigma[free]
    ratio = float(np.sqrt(np.nanmean(halves**2)))
    within = 1 / 1.5 <= ratio <= 1.5
    report.add(figure, f"{start.what}: half-set differences / stated σ", "0.67-1.5", f"{ratio:.2f} rms", within)


def cspad_frames(work: Path, frames: int) -> tuple[Path, SimulationSettings]:
    """Simulate the shots unless they are there; return their folder and settings."""
    settings = preset("metrology", frames=frames)
    return _simulated(work / f"cspad-{frames}", settings, make_layout(settings.detector), None), settings


def _simulated(folder: Path, settings: SimulationSettings, true: Layout, recorded: Layout | None) -> Path:
    marker = folder / "settings.json"
    if not marker.is_file() or marker.read_text(encoding="utf-8") != settings.model_dump_json():
        simulate(settings, folder, lambda n: print(f"{n} frames simulated", flush=True) if n % 50 == 0 else None, true, recorded)
        marker.write_text(settings.model_dump_json(), encoding="utf-8")
    return folder


def near(work: Path, frames: int) -> Start:
    """Panels 0.8 px and 0.1° off, distance and centre off."""
    folder, _ = cspad_frames(work, frames)
    return Start("near", "0.8 px", folder, folder / "frames.geom", folder / "true.geom")


def far(work: Path, frames: int) -> Start:
    """The same frames, recorded with panels 2 px off."""
    folder, settings = cspad_frames(work, frames)
    panels = settings.geometry_error.panels.model_copy(update={"in_plane": 2.0})
    error = GeometryErrorSettings(**{**dict(settings.geometry_error), "panels": panels})
    changed = settings.model_copy(update={"geometry_error": error})
    write_geometry(folder / "far.geom", changed, recorded_layout(changed, make_layout(settings.detector)))
    return Start("far", "2 px", folder, folder / "far.geom", folder / "true.geom")


def lost(work: Path, frames: int) -> Start:
    """Weak shots recorded with panels 4 px off: most do not index so."""
    settings = preset("metrology_far", frames=min(frames, 120))
    folder = _simulated(work / f"lost-{settings.frames}", settings, make_layout(settings.detector), None)
    return Start("lost", "4 px, weak shots", folder, folder / "frames.geom", folder / "true.geom")


def design(work: Path, frames: int, data: Path) -> Start:
    """Shots on the refined geometry of a real CSPAD, recorded with every sensor on the design grid."""
    models = read_expt(data / "stills_thermolysin" / "cspad_refined_300shots.json.xz")[0].detector
    flat = replace_sensor(models)
    slots = tuple((int(388 * (i // 16) + 194 * (i % 2)), 185 * (i % 16 // 2)) for i in range(64))
    true = Layout(flat, slots, (8 * 185, 8 * 194))
    base = preset("metrology", frames=frames, seed=2, geometry_error={})
    distance = -float(np.mean([p.origin[2] for p in flat.panels]))
    detector = base.detector.model_copy(update={"distance": distance, "pixel_size": flat.panels[0].pixel_size[0]})
    settings = base.model_copy(update={"detector": detector})
    folder = _simulated(work / f"design-{frames}", settings, true, replace(true, detector=on_the_grid(flat)))
    return Start("design", "real CSPAD, design grid", folder, folder / "frames.geom", folder / "true.geom")


def replace_sensor(detector: Detector) -> Detector:
    """Return the detector without a sensor's thickness, which the simulator does not know, and with names that files can hold."""
    names = [f"q{i // 16}a{i % 16}" for i in range(64)]
    panels = (replace(p, name=n, thickness=0.0, mu=0.0) for p, n in zip(detector.panels, names, strict=True))
    return Detector(tuple(panels), detector.hierarchy)


def on_the_grid(detector: Detector) -> Detector:
    """Return the detector with every sensor in the plane and at the angle and the place that the drawing of a quadrant has.

    Quadrants are alike but for quarter turns: a sensor's place in the drawing is the mean over them, to a tenth of a millimetre.
    """
    assert detector.hierarchy is not None
    quadrants = [q for q in detector.hierarchy.children if isinstance(q, DetectorGroup)]
    local = [_local(detector, q) for q in quadrants]
    turns = [np.rint(np.median(local[0][1] - angles + 720.0) % 360.0 / 90.0) * 90.0 for _, angles in local]
    grid = np.round(np.mean([places @ _about_z(t).T for (places, _), t in zip(local, turns, strict=True)], axis=0), 1)
    panels = list(detector.panels)
    for quadrant, (_, angles), turned in zip(quadrants, local, turns, strict=True):
        frame = np.column_stack([quadrant.fast_axis, quadrant.slow_axis, np.cross(quadrant.fast_axis, quadrant.slow_axis)])
        middle = np.mean([_middle(detector, s) for s in quadrant.children], axis=0)
        for sensor, place, angle in zip(quadrant.children, grid @ _about_z(turned), angles, strict=True):
            turn = _about_z(float(np.rint(angle / 90.0) * 90.0 - angle))
            rotation = frame @ turn @ frame.T
            target = middle + frame @ np.array([*place[:2], 0.0])
            pivot = _middle(detector, sensor)
            for i in _members(sensor):
                p = panels[i]
                panels[i] = replace(
                    p,
                    origin=as_vector(rotation @ (np.asarray(p.origin) - pivot) + target),
                    fast_axis=as_vector(rotation @ p.fast_axis),
                    slow_axis=as_vector(rotation @ p.slow_axis),
                )
    return Detector(tuple(panels), detector.hierarchy)


def _about_z(degrees: float) -> Floats:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _members(part: DetectorGroup | int) -> tuple[int, ...]:
    return (part,) if isinstance(part, int) else part.panels()


def _middle(detector: Detector, part: DetectorGroup | int) -> Floats:
    named = middles(detector)
    place: Floats = np.mean([named[detector.panels[i].name] for i in _members(part)], axis=0)
    return place


def _local(detector: Detector, quadrant: DetectorGroup) -> tuple[Floats, Floats]:
    """Return places of a quadrant's sensors from its middle, in its own frame (mm), and their angles (degrees)."""
    frame = np.column_stack([quadrant.fast_axis, quadrant.slow_axis, np.cross(quadrant.fast_axis, quadrant.slow_axis)])
    places = np.array([_middle(detector, s) for s in quadrant.children])
    fast = np.array([detector.panels[_members(s)[0]].fast_axis for s in quadrant.children]) @ frame
    return (places - places.mean(axis=0)) @ frame, np.degrees(np.arctan2(fast[:, 1], fast[:, 0]))


def thermolysin(work: Path, data: Path, workers: int, report: Report) -> None:
    """Run the two real shots as the job to copy says: they must still index."""
    run = work / "runs" / "thermolysin"
    files = ", ".join(json.dumps(str(p)) for p in sorted((data / "stills_thermolysin").glob("*.cbf")))
    sets = ["--set", f"input.files=[{files}]", "--set", "report.enabled=false"]
    print(xfelproc(["run", ROOT / "jobs" / "cspad_shots.toml", "-o", run, "--workers", workers, "--restart", *sets]), flush=True)
    rates = rates_of(run, None)
    report.add("6", "thermolysin shots, default job: indexed", "2 of 2", f"{rates.right} of {rates.frames}", rates.right == 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for frames and runs; none: a temporary one")
    default = Path(os.environ.get("XFELPROC_TEST_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=default, help="real test data")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=["near", "far", "lost", "design", "thermolysin"])
    parser.add_argument("--write", type=Path, help="file for the table")
    given = parser.parse_args()
    report = Report("Runs from geometries that are wrong")
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        for name, begin in {"near": near, "far": far, "lost": lost, "design": partial(design, data=given.data)}.items():
            if name in given.only:
                judge(begin(work, given.frames), work, given.workers, report, "6" if name == "design" else "3")
        if "thermolysin" in given.only:
            thermolysin(work, given.data, given.workers, report)
    print(report.markdown())
    if given.write is not None:
        given.write.write_text(report.markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()

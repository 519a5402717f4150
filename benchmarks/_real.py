"""Real frames, other people's spots, and an independent simulation."""

from __future__ import annotations

import json
import lzma
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import gemmi
import h5py
import numpy as np
from _sharing import offered, others, together
from _truth import Chain, Outcome, Report, Tally, compare
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tests.run.spot_lists import run_spots
from xfelproc.algorithms.integration import Integrate
from xfelproc.algorithms.merging import Merge, half_set, merge, prepare
from xfelproc.io.exchange.geom import parse_geom
from xfelproc.io.sources import open_source
from xfelproc.io.sources.overrides import beam_center
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.conventions import FLIP_XZ, wavelength_of
from xfelproc.models.experiment import Beam, Crystal, Detector, Panel
from xfelproc.models.frames import CellTarget, RefinedLattice
from xfelproc.models.tables import LatticeTable, ReflectionTable, SpotTable
from xfelproc.run.config import load_config

THERMOLYSIN = CellTarget((92.9, 92.9, 130.4, 90.0, 90.0, 120.0), "P 61 2 2")
THAUMATIN = CellTarget((58.0, 58.0, 150.0, 90.0, 90.0, 90.0), "P 41 21 2")
LYSOZYME = CellTarget((79.1, 79.1, 38.0, 90.0, 90.0, 90.0), "P 43 21 2")
HT2B = CellTarget((61.4, 122.6, 168.0, 90.0, 90.0, 90.0), "C 2 2 21")
I24 = (38.06, 78.78, 78.91, 90.0, 90.0, 90.0)
JOBS = Path(__file__).resolve().parents[1] / "jobs"
THERMOLYSIN_JOB, THAUMATIN_JOB = "cspad_shots.toml", "grid_scan.toml"
NANO_WAVELENGTH = 1.305097


def rmsd(lattice: RefinedLattice, spots: SpotTable) -> float:
    """Return √mean(Δfast² + Δslow²) in pixels over the indexed spots."""
    rows = lattice.indexed["spot"]
    fast = lattice.indexed["fast_calc"] - spots["fast"][rows]
    slow = lattice.indexed["slow_calc"] - spots["slow"][rows]
    return float(np.sqrt(np.mean(fast**2 + slow**2)))


def describe(outcome: Outcome) -> str:
    """Return spots, indexed spots, RMSD and cell of the first lattice."""
    if not outcome.lattices:
        return f"{len(outcome.spots)} spots, not indexed: {outcome.reason}"
    lattice = outcome.lattices[0]
    cell = " ".join(f"{v:.2f}" for v in lattice.crystal.cell)
    used = f"{int(lattice.indexed['used'].sum())} that fit {lattice.rmsd_used:.2f} px"
    return f"{len(outcome.spots)} spots, {len(lattice.indexed)} indexed, {rmsd(lattice, outcome.spots):.2f} px ({used}), {cell}"


def chain_of(job: str, target: CellTarget | None = None) -> Chain:
    """Return the chain of a job file of ``jobs/``, for another target if one is given."""
    config = load_config(JOBS / job)
    index = config.section("index")
    target = index.target() if target is None else target
    return Chain(target, config.section("spots"), index, config.section("refine"), config.section("calibrate"))


def settings_of(job: str) -> str:
    """Return in words what a job file sets, but for its files and the lattice."""
    document = tomllib.loads((JOBS / job).read_text(encoding="utf-8"))
    said = [
        f"{section}.{key} = {value}"
        for section, values in document.items()
        for key, value in values.items()
        if key not in ("files", "cell", "space_group")
    ]
    return f"settings of jobs/{job}, the same for all frames: {', '.join(said)}"


def read_outcome(chain: Chain, path: Path, index: int = 0) -> Outcome:
    """Process one frame of a file."""
    with open_source(path) as source:
        return chain.frame(source.read(index))


def same_cell(crystal: Crystal, cell: tuple[float, ...], space_group: str, lengths: float, angles: float) -> bool:
    """Tell whether a crystal has a cell, whatever its axes: both reduced (Niggli) by an independent library."""
    group = gemmi.find_spacegroup_by_name(crystal.space_group)
    ours = gemmi.GruberVector(gemmi.UnitCell(*crystal.cell), "P" if group.ext == "R" else group.centring_type())
    theirs = gemmi.GruberVector(gemmi.UnitCell(*cell), gemmi.find_spacegroup_by_name(space_group).centring_type())
    return gemmi_similar(ours, theirs, lengths, angles)


def gemmi_similar(a: gemmi.GruberVector, b: gemmi.GruberVector, lengths: float, angles: float) -> bool:
    """Compare two reduced cells within a relative length and degrees; nearly equal axes may be exchanged."""
    for vector in (a, b):
        vector.niggli_reduce()
    first, second = a.get_cell().parameters, b.get_cell().parameters
    return any(
        all(abs(first[i] / second[p] - 1) <= lengths for i, p in enumerate(order))
        and all(
            min(abs(first[3 + i] - second[3 + p]), abs(180 - first[3 + i] - second[3 + p])) <= angles for i, p in enumerate(order)
        )
        for order in ((0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0), (2, 0, 1))
    )


def real(data: Path) -> Report:
    """Measure figures 1, 2 and 4."""
    report = Report("Real frames and other people's spots")
    thermolysin(data / "stills_thermolysin", report)
    thaumatin(data / "stills_thaumatin", report)
    ht2b(data / "stream_5ht2b" / "test.stream.xz", report)
    i24(data / "still_i24_lyso", report)
    return report


def note_others(report: Report, frame: str, outcome: Outcome, path: Path) -> None:
    """Add a remark on the detector's place, and on further lattices whose spots are not offered to the first."""
    if not outcome.lattices:
        return
    lattice = outcome.lattices[0]
    if any(lattice.shift):
        place = f"{', '.join(f'{v:.3f}' for v in lattice.shift)} mm, tilt {', '.join(f'{v:.3f}' for v in lattice.tilt)}°"
        report.notes.append(f"{frame}: detector moved by {place}")
    if len(outcome.lattices) > 1:
        with open_source(path) as source:
            beam = source.experiment(0).beam
        report.notes.append(f"{frame}, further lattices: {others(outcome)}")
        report.notes.append(
            f"{frame}, the first lattice, without those spots that another predicts at least twice as near: "
            f"{offered(outcome, beam, 0.5)}; with all spots, whatever lattice they are of: {offered(outcome, beam, 0.0)}; "
            f"all lattices of the frame together: {together(outcome, beam)}"
        )


def thermolysin(folder: Path, report: Report) -> None:
    """Two shots of a CSPAD."""
    consensus = CellTarget()
    report.notes.append(f"thermolysin: {settings_of(THERMOLYSIN_JOB)}")
    for shot, n, limit in (("401", 121, 0.75), ("601", 29, 0.45)):
        path = folder / f"idx-20130301060858{shot}.cbf"
        outcome = read_outcome(chain_of(THERMOLYSIN_JOB), path)
        holds = bool(outcome.lattices) and len(outcome.lattices[0].indexed) >= n
        holds = holds and rmsd(outcome.lattices[0], outcome.spots) <= limit
        report.add("1", f"thermolysin {shot}, cell given", f"≥ {n} indexed, ≤ {limit} px", describe(outcome), holds)
        note_others(report, f"thermolysin {shot}", outcome, path)
        blind = read_outcome(chain_of(THERMOLYSIN_JOB, consensus), path)
        cell, group = THERMOLYSIN.cell, THERMOLYSIN.space_group
        assert cell is not None
        assert group is not None
        holds = bool(blind.lattices) and same_cell(blind.lattices[0].crystal, cell, group, 0.02, 2.0)
        words = "by the cell of 401" if consensus.cell else "alone"
        report.add("1", f"thermolysin {shot}, no cell given, {words}", "cell to 2 % and 2°", describe(blind), holds)
        if blind.lattices and consensus.cell is None:
            found = blind.lattices[0].crystal
            consensus = CellTarget(found.cell, found.space_group)


def thaumatin(folder: Path, report: Report) -> None:
    """Five stills of one crystal on a Pilatus 6M."""
    found: list[Crystal] = []
    chain = chain_of(THAUMATIN_JOB)
    report.notes.append(f"thaumatin: {settings_of(THAUMATIN_JOB)}")
    for name, n, limit in (("0002", 489, 1.65), ("0006", 639, 1.18), ("0010", 605, 1.34), ("0014", 313, 1.32)):
        path = folder / f"thau_3_2_{name}.cbf.bz2"
        outcome = read_outcome(chain, path)
        holds = bool(outcome.lattices) and len(outcome.lattices[0].indexed) >= n
        holds = holds and rmsd(outcome.lattices[0], outcome.spots) <= limit
        report.add("2", f"thaumatin {name}", f"≥ {n} indexed, ≤ {limit} px", describe(outcome), holds)
        note_others(report, f"thaumatin {name}", outcome, path)
        found += [lattice.crystal for lattice in outcome.lattices[:1]]
    blank = read_outcome(chain, folder / "thau_3_2_0017.cbf.bz2")
    report.add("2", "thaumatin 0017", "a blank", f"{len(blank.spots)} spots: {blank.reason}", not blank.hit)
    apart = [compare(a, b.a_matrix, "P 41 21 2").misorientation for a, b in combinations(found, 2)]
    worst = max(apart, default=180.0)
    report.add(
        "2", "orientations of the four", "agree to 1°", f"{len(found)} agree to {worst:.2f}°", len(found) == 4 and worst <= 1
    )


@dataclass(frozen=True)
class Chunk:
    """A frame of a stream: where its peaks are, and the crystals that were found on it."""

    spots: SpotTable
    detector: Detector
    beam: Beam
    crystals: tuple[NDArray[np.float64], ...]


def read_stream(path: Path) -> Iterator[Chunk]:
    """Yield the frames of a CrystFEL stream; crystals as matrices A in our laboratory frame."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        text = file.read()
    geometry = text.split("----- Begin geometry file -----")[1].split("----- End geometry file -----")[0]
    geom = parse_geom(geometry)
    panels = {panel.name: (number, panel.min_fs, panel.min_ss) for number, panel in enumerate(geom.panels)}
    for chunk in text.split("----- Begin chunk -----")[1:]:
        values = {"/" + key: float(value) for key, value in re.findall(r"^hdf5/(\S+) = (\S+)$", chunk, re.MULTILINE)}
        detector = geom.detector(values)
        table = re.search(r"Intensity +Panel\n(.*?)End of peak list", chunk, re.DOTALL)
        lines = [line.split() for line in table.group(1).splitlines()] if table else []
        place = np.array([[float(v) for v in line[:4]] for line in lines]).reshape(-1, 4)
        slots = np.array([panels[line[4]] for line in lines]).reshape(-1, 3)
        spots = SpotTable(
            panel=slots[:, 0],
            fast=place[:, 0] - slots[:, 1],
            slow=place[:, 1] - slots[:, 2],
            var_fast=np.full(len(lines), 0.25),
            var_slow=np.full(len(lines), 0.25),
            intensity=place[:, 3],
            snr=np.sqrt(np.maximum(place[:, 3], 1.0)),
            n_pixels=np.full(len(lines), 4),
            d=10.0 / place[:, 2],
        )
        energy = re.search(r"^photon_energy_eV = (\S+)$", chunk, re.MULTILINE)
        assert energy is not None
        stars = re.findall(r"^[abc]star = (\S+) (\S+) (\S+) nm\^-1$", chunk, re.MULTILINE)
        matrices = np.array(stars, dtype=np.float64).reshape(-1, 3, 3) / 10.0
        crystals = tuple(FLIP_XZ @ matrix.T for matrix in matrices)
        yield Chunk(spots, detector, Beam(wavelength_of(float(energy.group(1)))), crystals)


def ht2b(path: Path, report: Report) -> None:
    """Peak lists of 70 shots, 32 of which a program of other people indexed."""
    assert HT2B.cell is not None
    chain = Chain(HT2B)
    chunks = list(read_stream(path))
    indexed = near = agree = 0
    for number, chunk in enumerate(chunks):
        outcome = chain.index_spots(chunk.spots, chunk.detector, chunk.beam)
        good = [x.crystal for x in outcome.lattices if same_cell(x.crystal, HT2B.cell, "C 2 2 21", 0.02, 1.5)]
        indexed, near = indexed + bool(outcome.lattices), near + bool(good)
        if chunk.crystals:
            same = good and min(compare(good[0], other, "C 2 2 21").misorientation for other in chunk.crystals) < 2.0
            agree += bool(same)
            if not good:
                report.notes.append(f"5ht2b, shot {number}: {len(chunk.spots)} peaks, indexed by others: {describe(outcome)}")
    report.add("4", "5ht2b: shots with a lattice of the cell", "≥ 32", f"{near} of 70 ({indexed} with any lattice)", near >= 32)
    report.add("4", "5ht2b: same orientation to 2° as the stream's", "", f"{agree} of its 32 shots")
    false = sum(
        bool(chain.index_spots(spots, c.detector, c.beam).lattices) for c, spots in zip(chunks * 2, shuffled(chunks), strict=True)
    )
    report.add("4", "5ht2b: the same peaks shuffled between shots, twice: indexed", "≤ 1 of 140", str(false), false <= 1)


def shuffled(chunks: list[Chunk]) -> Iterator[SpotTable]:
    """Yield lists as long as the shots' whose peaks come from all shots: what real peaks look like where there is no lattice."""
    pool = SpotTable.concatenate([chunk.spots for chunk in chunks])
    for repeat in range(2):
        order, start = np.random.default_rng(repeat).permutation(len(pool)), 0
        for chunk in chunks:
            yield pool.select(order[start : start + len(chunk.spots)])
            start += len(chunk.spots)


def i24(folder: Path, report: Report) -> None:
    """Strong spots of four stills; the recorded distance of 289.3 mm is 10 % too short for the cell."""
    (number, spots), (detector, beam) = read_i24(folder)
    target = CellTarget(I24, "P 2 2 2")
    lists = [spots.select(number == still) for still in range(4)]
    for what, required, sample in (
        ("as recorded, by the run", "≥ 3 of 4", {}),
        ("the same, sample.max_distance_error = 0", "", {"max_distance_error": 0.0}),
    ):
        with TemporaryDirectory() as run:
            result = run_spots(lists, detector, beam, target, Path(run), sample=sample)
        right = 0
        for unit in result.units:
            for row, frame in enumerate(unit.frames["index"]):
                mine = np.flatnonzero(unit.lattices["frame"] == row)[:1]
                crystals = [Crystal(tuple(map(tuple, a)), "P 2 2 2") for a in unit.lattices["A"][mine]]
                right += any(same_cell(crystal, I24, "P 2 2 2", 0.02, 1.5) for crystal in crystals)
                words = [_still(unit.lattices, lattice) for lattice in mine]
                report.notes.append(f"i24, {what}, still {frame}: {len(lists[frame])} spots, {''.join(words) or 'not indexed'}")
        found = f", at {result.distance:.1f} mm" if result.distance else ""
        report.add("4", f"i24 lysozyme, {what}: stills indexed", required, f"{right} of 4{found}", right >= 3 if required else None)
    found = [_scattered(lists, detector, beam, target, seed) for seed in range(100)]
    false = [distance for distance in found if distance is not None]
    what = f"i24: {len(found)} runs of the same spots, each turned about the beam by a random angle: distances found"
    report.add("4", what, "0", f"{len(false)} {false or ''}", not false)


def _scattered(lists: list[SpotTable], detector: Detector, beam: Beam, target: CellTarget, seed: int) -> float | None:
    """Return the distance that a run finds over spots of the same resolutions that show no lattice."""
    rng, centre = np.random.default_rng(seed), beam_center(detector, beam)
    turned = []
    for spots in lists:
        away = (spots["fast"] - centre[0]) + 1j * (spots["slow"] - centre[1])
        away *= np.exp(2j * np.pi * rng.random(len(spots)))
        turned.append(spots.replace(fast=away.real + centre[0], slow=away.imag + centre[1]))
    with TemporaryDirectory() as run:
        return run_spots(turned, detector, beam, target, Path(run)).distance


def _still(table: LatticeTable, row: int) -> str:
    """Return indexed spots, RMSD and cell of a lattice."""
    cell = " ".join(f"{v:.2f}" for v in table["cell"][row])
    used = f"{table['n_used'][row]} that fit {table['rmsd_used'][row]:.2f} px"
    return f"{table['n_indexed'][row]} indexed, {table['rmsd'][row]:.2f} px ({used}), {cell}"


def read_i24(folder: Path) -> tuple[tuple[NDArray[np.int64], SpotTable], tuple[Detector, Beam]]:
    """Return (image number, spots) and (detector, beam)."""
    with h5py.File(folder / "strong.h5") as file:
        column = {name: file[name][()] for name in file}
    position, intensity = column["xyzobs.px.value"], column["intensity.sum.value"]
    variance = np.maximum(column["intensity.sum.variance"], 1.0)
    table = SpotTable(
        panel=column["panel"],
        fast=position[:, 0],
        slow=position[:, 1],
        var_fast=np.maximum(column["xyzobs.px.variance"][:, 0], 0.01),
        var_slow=np.maximum(column["xyzobs.px.variance"][:, 1], 0.01),
        intensity=intensity,
        snr=intensity / np.sqrt(variance),
        n_pixels=column["n_signal"],
    )
    models = json.loads((folder / "imported.expt").read_text())
    beam, panel = models["beam"][0], models["detector"][0]["panels"][0]
    parallax = panel["px_mm_strategy"]["type"] == "ParallaxCorrectedPxMmStrategy"
    detector = Detector(
        (
            Panel(
                "p0",
                tuple(panel["fast_axis"]),
                tuple(panel["slow_axis"]),
                tuple(panel["origin"]),
                tuple(panel["pixel_size"]),
                tuple(panel["image_size"]),
                thickness=panel["thickness"] if parallax else 0.0,
                mu=panel["mu"] if parallax else 0.0,
            ),
        )
    )
    return (column["id"].astype(np.int64), table), (detector, Beam(beam["wavelength"], tuple(beam["direction"])))


def nanobragg(data: Path, quick: bool) -> Report:
    """Measure figure 3."""
    report = Report("Stills by an independent simulator")
    folder = data / "stills_nanobragg"
    with h5py.File(folder / "truth.h5") as file:
        turn = Rotation.from_rotvec(file["mosaic_mean_rotation"][()]).as_matrix()
        truth = FLIP_XZ @ turn @ file["A_reciprocal"][()]
        hits = file["hit"][()]
        known = {tuple(h): float(i) for h, i in zip(file["hkl"][()].tolist(), file["intensity"][()], strict=True)}
    settings = SourceSettings(geometry=folder / "stills.geom", polarization_fraction=1.0)
    for name, target in (("cell given", LYSOZYME), ("no cell given", CellTarget())):
        given = target.cell is not None
        chain = Chain(target, integrate=Integrate() if given else None)
        tally, blanks, kept = Tally(), 0, []
        with open_source(folder / "stills.h5", settings) as source:
            for index in range(15 if quick else source.n_frames):
                outcome = chain.frame(source.read(index))
                if hits[index]:
                    tally.count(f"nanobragg {name}, frame {index}", outcome, [truth[index]], "P 43 21 2")
                    if outcome.integration is not None:
                        kept.append((index, outcome.integration.reflections))
                else:
                    blanks += bool(outcome.lattices)
        holds = tally.right == tally.true and tally.wrong == 0
        report.add("3", f"hits indexed and right, {name}", "48 of 48", tally.words(), holds)
        report.add("3", f"blanks indexed, {name}", "0", str(blanks), blanks == 0)
        report.notes += tally.failures
        if given and tally.angles:
            median, worst = float(np.median(tally.angles)), max(tally.angles)
            report.add("3", "median misorientation", "≤ 0.003°", f"{median:.4f}°", median <= 0.003)
            report.add("3", "worst misorientation", "≤ 0.02°", f"{worst:.4f}°", worst <= 0.02)
            merged(kept, known, report)
    return report


def merged(kept: list[tuple[int, ReflectionTable]], known: dict[tuple[int, ...], float], report: Report) -> None:
    """Merge what was integrated, and compare with the true intensities over 30-2.0 Å."""
    assert LYSOZYME.cell is not None
    cell = gemmi.UnitCell(*LYSOZYME.cell)
    settings = Merge(d_min=2.0, d_max=30.0)
    parts = []
    for index, table in kept:
        single = table.select(table["lattice"] == 0)
        parts.append(prepare(single, np.array([half_set("stills.h5", index)], dtype=np.uint8), settings))
    table = merge(parts, LYSOZYME.cell, "P 4/m m m", settings).merged
    asu = gemmi.ReciprocalAsu(gemmi.SpaceGroup("P 4/m m m"))
    operations = gemmi.SpaceGroup("P 4/m m m").operations()
    hkl = [tuple(asu.to_asu(h, operations)[0]) for h in table["hkl"].tolist()]
    true = np.array([known.get(_sorted(h), np.nan) for h in hkl])
    d = np.array([cell.calculate_d(h) for h in hkl])
    use = np.isfinite(true) & np.isfinite(table["intensity"]) & (d <= 30) & (d >= 2)
    total = sum(2.0 <= cell.calculate_d(h) <= 30.0 for h in known)
    twice = use & (table["multiplicity"] >= 2)
    cc_all = float(np.corrcoef(true[use], table["intensity"][use])[0, 1])
    cc_two = float(np.corrcoef(true[twice], table["intensity"][twice])[0, 1])
    complete = use.sum() / total
    report.add("3", "CC to the true intensities, all measured", "≥ 0.85", f"{cc_all:.3f} ({use.sum()})", cc_all >= 0.85)
    words = f"{cc_two:.3f} ({twice.sum()})"
    report.add("3", "the same, measured twice or more", "≥ 0.92, at least 3000", words, cc_two >= 0.92 and twice.sum() >= 3000)
    report.add("3", "completeness", "≥ 0.79", f"{complete:.3f} of {total}", complete >= 0.79)


def _sorted(h: tuple[int, ...]) -> tuple[int, ...]:
    """Return an index in the truth's asymmetric unit h >= k >= 0, l >= 0."""
    a, b = sorted((abs(h[0]), abs(h[1])), reverse=True)
    return (a, b, abs(h[2]))

"""Measure how accurate calibration is on simulated raw frames whose truth is known.

    python benchmarks/calibration.py [--detector cspad|jungfrau] [--frames N] [--darks N] [--write]

For each detector: constants from dark frames, then frames with and without Bragg spots, calibrated with each method of common mode.
With ``--write`` the tables go to `docs/explanation/calibration-accuracy.md`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import numpy as np
from _truth import Report
from numba import njit
from numpy.typing import NDArray

from xfelproc.algorithms.calibration import Calibrate, CommonModeGroups, combine_gain_sums, estimate_gain_panels, gain_sums
from xfelproc.algorithms.calibration.common_mode import PeakOffset
from xfelproc.algorithms.calibration.darks import Darks, DarkSums, dark_constants, dark_means
from xfelproc.algorithms.spotfinding import FindSpots
from xfelproc.models.calibration import DetectorConstants, StageCoding
from xfelproc.models.conventions import HC, PixelMask
from xfelproc.models.experiment import Beam
from xfelproc.models.frames import Frame, FrameRef
from xfelproc.simulation import Simulator
from xfelproc.simulation.raw import KINDS, STAGE_CODES, Electronics, Reading
from xfelproc.simulation.settings import preset

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "explanation" / "calibration-accuracy.md"
HEADER = """# Accuracy of calibration

Made by `python benchmarks/calibration.py --write` on simulated raw frames (presets `raw_cspad` and `raw_jungfrau` of
`xfelproc simulate`): noise, gain and pedestal differ from pixel to pixel, each ASIC has an offset of its own on every frame,
dark frames too, and some pixels are bad. Constants are made of the dark frames; the gain map is the true one, but where the
gain is estimated. An *error* of the common mode is the estimated offset of an ASIC less the true one, in units of σ/√n (σ the
noise of a pixel, n the unmasked pixels of the ASIC); the root of the mean square over ASICs and frames is shown. The bias is
that of photons a pixel, calibrated less true, over all good pixels of a set of frames. Bad pixels are those that the dark frames
show.

Times are CPU times of one core, for 4.5 megapixels. *Calibration* is the call by itself. *Added to the frame* is calibration and
spot finding of the raw frame, less spot finding of the same frame as whole photons (16 bits, the same mask), of which nothing has
to be calibrated: what calibration writes past the caches the spot finder has to fetch from memory, and it reads 4 bytes a pixel
instead of 2. Reading and decompression are in neither: raw values compress worse than photons, whoever calibrates them. A *bare
loop* subtracts one map and multiplies with another, without looking at a pixel. Memory sets its pace; all are measured in turns, as
cores that share a machine with other programs are up to twice as slow.
"""
CODING = StageCoding("bits", np.array([[0, 1, -1, 2]], dtype=np.int8))
METHODS = ("median", "mode", "peak")
REPEATS = 100
"""Times that are taken of each method."""


@dataclass(frozen=True)
class Bench:
    """A simulated detector with what its dark frames tell of it."""

    name: str
    simulator: Simulator
    electronics: Electronics
    constants: DetectorConstants
    dark_level: NDArray[np.float64]

    @property
    def asic(self) -> tuple[int, int]:
        """(slow, fast) size of a readout channel."""
        fast, slow = self.electronics.settings.asic
        return slow, fast

    def frame(self, raw: NDArray[np.uint16], index: int, wavelength: float = 1.3) -> Frame:
        detector = self.simulator.layout.detector
        trusted = np.tile([0.0, 2.0**self.electronics.settings.bits - 2], (len(detector), 1))
        return Frame(FrameRef(0, index), raw, np.zeros(raw.shape, np.uint8), trusted, detector, Beam(wavelength))


def make_bench(name: str, darks: int, level: float | None) -> Bench:
    """Simulate a detector, and determine its constants from dark frames."""
    changes = {} if level is None else {"background": level}
    simulator = Simulator(preset(f"raw_{name}", hit_fraction=1.0, **changes))
    assert simulator.settings.raw is not None
    electronics = Electronics(simulator.settings.raw, simulator.layout.detector, simulator.settings.seed)
    bench = Bench(name, simulator, electronics, DetectorConstants(), np.zeros(0))
    n_stages = len(electronics.settings.stages)
    coding = CODING if n_stages > 1 else None
    settings = Darks()
    first = None
    for _ in range(2):
        sums = DarkSums(settings, coding, first)
        for stage in range(n_stages):
            for n in range(darks):
                sums.add(bench.frame(electronics.dark(stage, n).raw, n))
        if first is None:
            first = dark_means(sums.partial())
    assert first is not None
    static = np.zeros(electronics.kind.shape, dtype=np.uint8)
    constants = dark_constants(settings, sums.partial(), first, static, coding)
    gain = np.where(electronics.gain == 0, np.nan, electronics.gain)
    assert constants.pedestal is not None
    assert constants.mask is not None
    levels = _levels(bench, constants.pedestal[0] - electronics.pedestal[0], constants.mask == 0)
    return replace(bench, constants=replace(constants, gain=gain, gain_unit="ADU/keV", coding=coding), dark_level=levels)


def _levels(bench: Bench, excess: NDArray[np.float32], good: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean of good pixels of each ASIC: what the pedestal has of the common mode of the dark frames."""
    slow, fast = bench.asic
    panels, height, width = excess.shape
    levels = np.zeros((panels, -(-height // slow), -(-width // fast)))
    for p, i, j in np.ndindex(levels.shape):
        box = (p, slice(i * slow, (i + 1) * slow), slice(j * fast, (j + 1) * fast))
        levels[p, i, j] = np.mean(excess[box][good[box]], dtype=np.float64)
    return levels


def judge_pixels(bench: Bench, report: Report) -> None:
    """Compare the bad pixels that were found with those planted."""
    assert bench.constants.mask is not None
    found = (bench.constants.mask & ~np.uint32(PixelMask.NO_GAIN)) != 0
    planted = bench.electronics.kind != 0
    for number, kind in enumerate(KINDS, 1):
        here = bench.electronics.kind == number
        report.add("bad pixels", f"{kind} ({here.sum()})", "", f"{100 * found[here].mean():.2f} % found")
    share, false = found[planted].mean(), (found & ~planted & ~bench.electronics.unbonded).mean()
    report.add("bad pixels", f"all planted ({planted.sum()})", "≥ 99 %", f"{100 * share:.2f} %", bool(share >= 0.99))
    report.add("bad pixels", "good ones called bad", "≤ 0.01 %", f"{100 * false:.4f} %", bool(false <= 1e-4))


@dataclass(frozen=True)
class Exposure:
    """A raw frame with its truth."""

    frame: Frame
    photons: NDArray[np.uint16]
    reading: Reading


def expose(bench: Bench, n: int, spots: bool) -> list[Exposure]:
    """Simulate frames with or without Bragg spots."""
    settings = bench.simulator.settings
    simulator = bench.simulator if spots else Simulator(settings.model_copy(update={"hit_fraction": 0.0}))
    exposures = []
    for index in range(n):
        photons, shot = simulator.photons(index)
        reading = bench.electronics.expose(photons, shot.wavelength, index + (0 if spots else 1000))
        exposures.append(Exposure(bench.frame(reading.raw, index, shot.wavelength), photons, reading))
    return exposures


def judge_method(bench: Bench, exposures: list[Exposure], method: str, what: str, report: Report) -> None:
    """Calibrate frames with one method; compare photons and offsets with the truth."""
    slow, fast = bench.asic
    with_it = Calibrate.model_validate({"common_mode": {"method": method, "group": [slow, fast]}} if method != "none" else {})
    without = Calibrate()
    detector = bench.simulator.layout.detector
    static = exposures[0].frame.mask
    constants = with_it.constants(detector, static, calibration=bench.constants)
    plain = without.constants(detector, static, calibration=bench.constants)
    good = (constants.mask == 0) & (bench.electronics.kind == 0) & ~bench.electronics.unbonded
    difference, errors, failed, total, used = 0.0, [], 0, 0, 0
    for exposure in exposures:
        done = with_it.apply(exposure.frame, constants)
        photons = done.pixels.copy()
        failed += done.common_mode_failed
        usable = good & np.isfinite(photons) & (photons < done.trusted[:, 1, None, None])
        difference += float(np.sum(photons[usable] - exposure.photons[usable], dtype=np.float64))
        used += int(usable.sum())
        if method == "none":
            continue
        before = without.apply(exposure.frame, plain).pixels
        energy = HC / exposure.frame.beam.wavelength / 1000.0
        shift = (before - photons) * (bench.electronics.gain[0] * energy)
        first = good & (exposure.reading.raw >> 14 == STAGE_CODES[0])
        errors.append(_offset_errors(bench, shift, first, exposure.reading.common_mode - bench.dark_level))
        total += errors[-1].size
    bias = difference / used
    report.add(
        "photons",
        f"{what}: {method}",
        "bias ≤ 0.02",
        f"{bias:+.4f} photon a pixel",
        None if method == "none" else abs(bias) <= 0.02,
    )
    if errors:
        rms = float(np.sqrt(np.nanmean(np.square(errors))))
        wanted = method == "peak"
        text = f"{rms:.2f} σ/√n (worst {np.nanmax(np.abs(errors)):.1f}); {failed} of {total} undetermined"
        report.add("common mode", f"{what}: {method}", "≤ 1.4 σ/√n" if wanted else "", text, rms <= 1.4 if wanted else None)


def _offset_errors(
    bench: Bench, shift: NDArray[np.float32], good: NDArray[np.bool_], true: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the error of each ASIC's offset in σ/√n; NaN where it was not determined."""
    slow, fast = bench.asic
    errors = np.full(true.shape, np.nan)
    for p, i, j in np.ndindex(true.shape):
        box = (p, slice(i * slow, (i + 1) * slow), slice(j * fast, (j + 1) * fast))
        here = good[box]
        found = np.median(shift[box][here])
        if found != 0.0:
            sigma = np.median(bench.electronics.noise[0][box][here])
            errors[p, i, j] = (found - true[p, i, j]) / (sigma / np.sqrt(here.sum()))
    return errors


def judge_gain(bench: Bench, exposures: list[Exposure], what: str, report: Report) -> None:
    """Estimate the gain of each panel from the frames alone, and compare it with the truth."""
    constants = bench.constants
    assert constants.mask is not None
    assert constants.noise is not None
    assert constants.pedestal is not None
    mask = ((constants.mask != 0) | bench.electronics.unbonded).astype(np.uint8)
    groups: CommonModeGroups = PeakOffset(group=bench.asic).prepare(mask, constants.noise[0], np.ones(len(mask), dtype=np.float32))
    mask = groups.use
    partials = []
    for exposure in exposures:
        raw = exposure.frame.pixels
        adu = raw.astype(np.float32) - constants.pedestal[0]
        adu[raw >> 14 != 0] = np.nan
        partials.append(gain_sums(adu, mask, np.nan_to_num(constants.noise[0]), groups))
    found = estimate_gain_panels(reduce(combine_gain_sums, partials))
    energy = HC / exposures[0].frame.beam.wavelength / 1000.0
    true = np.array([np.mean(bench.electronics.gain[0, p][mask[p] == 0]) for p in range(len(mask))]) * energy
    off = found.gain / true - 1.0
    text = f"{100 * np.sqrt(np.mean(off**2)):.2f} % rms, worst of {len(off)} panels {100 * np.abs(off).max():.2f} %"
    report.add("gain", f"{what}, {len(exposures)} frames", "≤ 3 %", text, bool(np.abs(off).max() <= 0.03))


def judge_times(bench: Bench, exposures: list[Exposure], report: Report) -> None:
    """Measure CPU times of calibration and spot finding, in turns with a bare loop that tells how fast the machine is just then."""
    frames, detector, find = [e.frame for e in exposures], bench.simulator.layout.detector, FindSpots().find
    bounds = {"none": 4.0, **dict.fromkeys(METHODS, 8.0)}
    calibrations: dict[str, Callable[[Frame], Frame]] = {}
    mask = frames[0].mask
    for method in bounds:
        section = {} if method == "none" else {"common_mode": {"method": method, "group": list(bench.asic)}}
        calibrate = Calibrate.model_validate(section)
        constants = calibrate.constants(detector, frames[0].mask, calibration=bench.constants)
        calibrations[method], mask = partial(calibrate.apply, constants=constants), constants.mask
        find(calibrations[method](frames[0]))
    whole = [replace(e.frame, pixels=e.photons.astype(np.uint16), mask=mask) for e in exposures]
    bare = _bare_loop(frames[0].pixels)
    find(whole[0])
    taken: dict[str, list[float]] = {method: [] for method in bounds}
    ratios: dict[str, list[float]] = {method: [] for method in bounds}
    added: dict[str, list[float]] = {method: [] for method in bounds}
    bares, finds = [], []
    for frame, photons in list(zip(frames, whole, strict=True)) * max(1, REPEATS // len(frames)):
        found = _cpu_time(partial(find, photons))
        finds.append(found)
        for method, run in calibrations.items():
            before, own, after = _cpu_time(bare), _cpu_time(partial(run, frame)), _cpu_time(bare)
            taken[method].append(own)
            ratios[method].append(2.0 * own / (before + after))
            bares += [before, after]
            added[method].append(_cpu_time(lambda run=run, frame=frame: find(run(frame))))
    scale = 1e3 * 4.5e6 / frames[0].pixels.size
    for method, bound in bounds.items():
        best, median, ratio = scale * min(taken[method]), scale * np.median(taken[method]), np.median(ratios[method])
        text = f"{best:.1f} ms at best, {median:.1f} in the median, {ratio:.1f} bare loops"
        name = "without common mode" if method == "none" else f"with {method}"
        report.add("time", f"{name}: calibration", f"≤ {bound:g} ms", text, bool(best <= bound))
        best = scale * (min(added[method]) - min(finds))
        median = scale * (np.median(added[method]) - np.median(finds))
        text = f"{best:.1f} ms at best, {median:.1f} in the median"
        report.add("time", f"{name}: added to the frame", f"≤ {bound:g} ms", text, bool(best <= bound))
    report.add("time", "bare loop", "", f"{scale * min(bares):.1f} ms at best, {scale * np.median(bares):.1f} in the median")
    text = f"{scale * min(finds):.1f} ms at best, {scale * np.median(finds):.1f} in the median"
    report.add("time", "spots of whole photons", "", text)


@njit(nogil=True)
def _subtract_and_multiply(raw: Any, dark: Any, scale: Any, out: Any) -> None:
    for x in range(len(raw)):
        out[x] = (np.float32(raw[x]) - dark[x]) * scale[x]


def _bare_loop(pixels: NDArray[np.uint16]) -> Callable[[], object]:
    """Return what subtracts a map from raw values and multiplies them with another one, with no test of a pixel."""
    maps = np.ones((3, pixels.size), dtype=np.float32)
    bare = partial(_subtract_and_multiply, pixels.reshape(-1), *maps)
    bare()
    return bare


def _cpu_time(run: Callable[[], object]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


def measure(name: str, frames: int, darks: int, levels: list[float | None]) -> Report:
    """Measure one detector."""
    report = Report({"cspad": "CSPAD", "jungfrau": "JUNGFRAU 4M"}[name])
    for number, level in enumerate(levels):
        bench = make_bench(name, darks, level)
        if number == 0:
            judge_pixels(bench, report)
        for spots in (True, False):
            exposures = expose(bench, frames, spots)
            photons = float(np.mean([np.mean(e.photons) for e in exposures]))
            what = f"{photons:.2g} photons a pixel{', spots' if spots else ''}"
            judge_method(bench, exposures, "none", what, report)
            for method in METHODS:
                judge_method(bench, exposures, method, what, report)
            judge_gain(bench, exposures, what, report)
            if number == 0 and spots:
                judge_times(bench, exposures, report)
    return report


def main() -> int:
    """Run the command; 1 if a figure does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--detector", choices=("cspad", "jungfrau"), action="append", help="default: both")
    parser.add_argument("--frames", type=int, default=10, help="frames with spots, and as many without")
    parser.add_argument("--darks", type=int, default=50, help="dark frames of each gain stage")
    parser.add_argument("--background", type=float, action="append", help="level of the background; default: the preset's")
    parser.add_argument("--write", action="store_true", help="write the page of the documentation")
    options = parser.parse_args()
    made = f"{options.frames} frames with spots, as many without, {options.darks} dark frames of each stage.\n"
    texts, holds = [HEADER, made], True
    for name in options.detector or ("cspad", "jungfrau"):
        report = measure(name, options.frames, options.darks, options.background or [None])
        texts.append(report.markdown())
        holds &= all(row.holds is not False for row in report.rows)
        print(texts[-1], flush=True)
    if options.write:
        PAGE.write_text("\n".join(texts), encoding="utf-8")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Static masks and powder rings: from the average of a run, which is made here or was made before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.calibration.average import Average
from xfelproc.algorithms.calibration.calibrants import CALIBRANTS
from xfelproc.algorithms.calibration.masks import StaticMask, counts_of
from xfelproc.algorithms.calibration.powder import Powder, PowderResult
from xfelproc.errors import ConfigError
from xfelproc.io.exchange.detector_images import read_images
from xfelproc.io.exchange.dials_write import write_expt
from xfelproc.io.exchange.geom_write import write_geom
from xfelproc.io.exchange.mask_files import crystfel_lines, read_reasons, write_mask
from xfelproc.io.exchange.nexus_write import write_nexus_geometry
from xfelproc.io.sources.overrides import beam_center, detector_distance
from xfelproc.models.conventions import PixelMask
from xfelproc.models.experiment import Experiment
from xfelproc.run.averaging import Averaged, FrameChoice, average_frames, check_output
from xfelproc.run.frame_session import frame_session
from xfelproc.run.session import Reporter

T = TypeVar("T")


def with_average(choice: FrameChoice, file: Path | None, output: Path, reporter: Reporter, use: Callable[[Averaged], T]) -> T:
    """Return what ``use`` makes of an average: the one in ``file``, or that of the frames chosen.

    The parts of the latter are beside ``output``.

    Raises
    ------
    ConfigError
        If both a file and frames are named.
    DataError
        If it cannot be read.
    """
    if file is not None:
        if choice.inputs or choice.run is not None:
            raise ConfigError(f"--average {file}: give either an average or frames")
        return use(read_average(file))
    config = choice.job()
    with frame_session(output, config.execution, choice.finder(config, reporter.say), reporter) as session:
        return use(average_frames(session, raw=False))


def read_average(file: Path) -> Averaged:
    """Return what ``xfelproc average`` wrote.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    found = read_images(file, ("mean", "sd", "max", "count", "mask"))
    arrays = found.images
    average = Average(int(found.attributes["n_frames"]), arrays["count"], arrays["mean"], arrays["sd"], arrays["max"])
    return Averaged(average, found.experiment, arrays["mask"], str(found.attributes["unit"]))


def run_mask(
    choice: FrameChoice, file: Path | None, settings: StaticMask, add: Sequence[str], output: Path, reporter: Reporter
) -> list[str]:
    """Write a mask; return lines that say what is in it and how to use it. ``add`` names mask files whose reasons are taken over.

    Raises
    ------
    ConfigError
        If the request makes no sense.
    DataError
        If frames cannot be read.
    """
    check_output(output)

    def make(found: Averaged) -> list[str]:
        detector, beam = found.experiment.detector, found.experiment.beam
        mask = found.mask | settings.of_geometry(detector, beam)
        for name in add:
            mask = mask | read_reasons(name, detector)
        mask = mask | settings.of_run(found.average, mask, detector, beam)
        write_mask(output, mask, found.experiment)
        return mask_lines(mask, found.average.n_frames, output)

    return with_average(choice, file, output, reporter, make)


def mask_lines(mask: NDArray[np.uint32], n_frames: int, output: Path) -> list[str]:
    """Return what a user wants to know of a mask."""
    counts = counts_of(mask)
    bad = counts.pop("bad")
    pixels = int(np.count_nonzero(mask & np.uint32(PixelMask.GAP) == 0))
    lines = [f"{bad} of {pixels} pixels are masked ({100 * bad / max(1, pixels):.3f} %), from {n_frames} frames:"]
    lines += [f"  {name.lower():<11}{n:>9}" for name, n in counts.items()]
    lines += [f"wrote {output}", 'in a job:         [input] mask = "' + f'{output}:/mask"', "in a .geom file:"]
    lines += [f"  {line}" for line in crystfel_lines(output)]
    return lines


def spacings_of(calibrant: str | None, given: Sequence[float]) -> tuple[float, ...]:
    """Return the d-spacings (Å) of a powder by its name, or those given.

    Raises
    ------
    ConfigError
        If the name is not known, or both or none are given.
    """
    if given and calibrant is not None:
        raise ConfigError("--calibrant and --d: give one of them")
    if given:
        if min(given) <= 0:
            raise ConfigError(f"--d {min(given):g}: a d-spacing is a positive number of Å")
        return tuple(given)
    names = {name.lower().replace(" ", ""): name for name in (*CALIBRANTS,)} | {
        "agbeh": "silver behenate",
        "agbh": "silver behenate",
    }
    name = names.get((calibrant or "").lower().replace(" ", "").replace("_", "").replace("-", ""))
    if name is None:
        raise ConfigError(f"--calibrant {calibrant}: known are {', '.join(CALIBRANTS)}; give the d-spacings of others by --d")
    return CALIBRANTS[name]


def run_powder(
    choice: FrameChoice,
    file: Path | None,
    settings: Powder,
    spacings: tuple[float, ...],
    use_maximum: bool,
    output: Path | None,
    reporter: Reporter,
) -> list[str]:
    """Find the detector by powder rings; write it if asked to; return lines that say what was found.

    Raises
    ------
    ConfigError
        If the output's format is not known.
    DataError
        If there are no rings.
    """
    if output is not None and output.suffix not in _WRITERS:
        raise ConfigError(f"--output {output}: geometries are written as {', '.join(_WRITERS)}")

    def fit(found: Averaged) -> list[str]:
        average, models = found.average, found.experiment
        image = average.maximum if use_maximum else average.mean
        good = (average.count > 0) & (found.mask == 0)
        result = settings.fit(image, good, models.detector, models.beam, spacings)
        lines = powder_lines(result, models)
        if output is not None:
            _WRITERS[output.suffix](replace(models, detector=result.detector), output)
            lines.append(f"wrote {output}")
        return lines

    return with_average(choice, file, output or Path("powder.geom"), reporter, fit)


def _expt(experiment: Experiment, path: Path) -> None:
    write_expt([experiment], path)


_WRITERS: dict[str, Callable[[Experiment, Path], None]] = {".geom": write_geom, ".expt": _expt, ".nxs": write_nexus_geometry}


def powder_lines(result: PowderResult, before: Experiment) -> list[str]:
    """Return what a user wants to know of a fit: the detector with uncertainties, and how well each ring fits."""
    beam, pixel = before.beam, before.detector.panels[0].pixel_size
    centre, old = beam_center(result.detector, beam), beam_center(before.detector, beam)
    x, y, along, turn_x, turn_y = result.sigma
    distance, was = detector_distance(result.detector, beam), detector_distance(before.detector, beam)
    lines = [
        f"distance     {distance:.4f} ± {along:.4f} mm (was {was:.4f})",
        f"beam centre  {centre[0]:.3f}, {centre[1]:.3f} px (fast, slow) of the first panel (was {old[0]:.3f}, {old[1]:.3f}); "
        f"± {x / pixel[0]:.3f} across, ± {y / pixel[1]:.3f} upwards",
    ]
    if turn_x:
        lines.append(
            f"tilt         {result.tilt[0]:.4f} ± {turn_x:.4f}° about x, {result.tilt[1]:.4f} ± {turn_y:.4f}° about y "
            "(laboratory frame)"
        )
    lines.append(f"{len(result.rings)} rings fit to {result.rms:.3f} px rms:")
    lines += [f"  {ring.d:8.4f} Å  {ring.n_points:5d} pieces  {ring.rms:.3f} px" for ring in result.rings]
    if not turn_x:
        lines.append(f"in a job:  [input] distance = {distance:.4f}, beam_center = [{centre[0]:.3f}, {centre[1]:.3f}]")
    return lines

"""Darks and gains: from raw frames to a file of calibration constants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xfelproc.algorithms.calibration import Darks, GainEstimate, dark_constants, dark_means, estimate_gain_panels
from xfelproc.algorithms.calibration.common_mode import NoCommonMode
from xfelproc.algorithms.calibration.masks import counts_of
from xfelproc.errors import ConfigError, DataError
from xfelproc.io.calibration_file import read_calibration, write_calibration
from xfelproc.models.calibration import DetectorConstants, StageCoding, merged
from xfelproc.models.conventions import MaskBit
from xfelproc.run.averaging import FrameChoice, check_output
from xfelproc.run.frame_session import FrameSession, frame_session
from xfelproc.run.lineage import digest, file_identity
from xfelproc.run.session import Reporter
from xfelproc.stages.calibration_folds import DarkFold, GainFold
from xfelproc.stages.inputs import load_calibration

FEW_PHOTONS = 1000.0
"""Photons of a panel from which its gain is estimated to some percent."""


def run_dark(choice: FrameChoice, darks: Darks, output: Path, reporter: Reporter) -> list[str]:
    """Write pedestal, noise and bad pixels of dark frames; stages that a file of this name has already are kept.

    Two passes over the frames: the second leaves out values that the first shows to be far off.

    Raises
    ------
    ConfigError
        If the frames cannot be found, or their gain stages cannot be told.
    DataError
        If there are too few frames, or the file that is there is of another detector.
    """
    check_output(output)
    config = choice.job()
    with frame_session(output, config.execution, choice.finder(config, reporter.say, raw=True), reporter) as session:
        coding = _coding(session)
        parameters = {"darks": darks.model_dump(mode="json"), "coding": _content(coding)}
        first = dark_means(session.fold(DarkFold(digest({"fold": "dark", **parameters}), darks, coding), "dark"))
        means = (session.directory.gather / "first.h5").absolute()
        write_calibration(means, first)
        # what is left out depends on all frames
        lineage = digest({"fold": "dark 2", **parameters, "frames": session.given.manifest.stamp})
        partial = session.fold(DarkFold(lineage, darks, coding, means), "dark", 1)
        found = dark_constants(darks, partial, first, session.static_mask(), coding)
        whole = _publish(output, found, session)
    return [*_dark_lines(found), *_stage_lines(whole, coding, output)]


def _coding(session: FrameSession) -> StageCoding | None:
    config = session.given.config
    known = load_calibration(config.input.calibration)
    coding: StageCoding | None = config.section("calibrate").gain_stages.coding(session.given.experiment.detector, known)
    return coding


def _content(coding: StageCoding | None) -> Any:
    """Return how stages are told, for a lineage."""
    if coding is None:
        return None
    thresholds = None if coding.thresholds is None else coding.thresholds.tolist()
    return [coding.source, coding.stages.tolist(), coding.shift, thresholds, coding.saturated]


def _publish(output: Path, found: DetectorConstants, session: FrameSession) -> DetectorConstants:
    """Write constants, with those that the file holds already; return all. How stages are told is left out until all are there."""
    whole = found
    if output.is_file():
        whole = merged(read_calibration(output), found)
        session.reporter.say(f"{output} is there: what is new replaces what is in it, the rest is kept, bad pixels are united")
    if whole.coding is not None and _missing(whole, whole.coding):
        write_calibration(output, replace(whole, coding=None))
    else:
        write_calibration(output, whole)
    return whole


def _missing(constants: DetectorConstants, coding: StageCoding) -> list[int]:
    """Return the gain stages that raw values tell and that no pedestal was measured of."""
    used = [stage for stage in range(coding.n_stages) if np.any(coding.stages == stage)]
    pedestal = constants.pedestal
    return [s for s in used if pedestal is None or s >= len(pedestal) or np.isnan(pedestal[s]).all()]


def _dark_lines(found: DetectorConstants) -> list[str]:
    assert found.pedestal is not None
    assert found.noise is not None
    assert found.mask is not None
    lines = []
    good = found.mask == 0
    for stage, (pedestal, noise) in enumerate(zip(found.pedestal, found.noise, strict=True)):
        frames = found.provenance.get(f"dark_frames_{stage}")
        if frames is not None and good.any():
            lines.append(
                f"gain stage {stage}: {frames} frames, pedestal {np.nanmedian(pedestal[good]):.2f} ADU, noise "
                f"{np.nanmedian(noise[good]):.3f} ADU (medians)"
            )
    counts = counts_of(found.mask)
    bad = counts.pop("bad")
    lines.append(f"{bad} pixels are bad: " + (", ".join(f"{n} {name.lower()}" for name, n in counts.items()) or "none"))
    return lines


def _stage_lines(whole: DetectorConstants, coding: StageCoding | None, output: Path) -> list[str]:
    missing = [] if coding is None else _missing(whole, coding)
    lines = [f"wrote {output}"]
    if missing:
        stages = ", ".join(map(str, missing))
        lines.append(f"gain stages {stages} are not measured yet: give their dark runs with the same --output before you use it")
    else:
        lines.append(f'in a job:  [input] calibration = "{output}"')
    return lines


def run_gain(choice: FrameChoice, output: Path, reporter: Reporter) -> list[str]:
    """Estimate the gain of each panel from ordinary frames; write it to a constants file with pedestal and noise.

    Raises
    ------
    ConfigError
        If the frames cannot be found, or no constants are named.
    DataError
        If there are too few photons in all panels, or the constants are of another detector.
    """
    check_output(output)
    config = choice.job()
    name = config.input.calibration
    if name is None:
        raise ConfigError(
            "the gain is estimated from values less the pedestal, beyond the noise: name the file of 'xfelproc calibrate dark' by "
            "--constants, or in the job by input.calibration"
        )
    with frame_session(output, config.execution, choice.finder(config, reporter.say, raw=True), reporter) as session:
        estimate = _estimate(session, Path(name))
        found = _gains(estimate, session)
        known = read_calibration(Path(name))
        whole = _without_unknown_stages(merged(known, found), session)
        write_calibration(output, whole)
    return [*_gain_lines(estimate, session), f"wrote {output}", f'in a job:  [input] calibration = "{output}"']


def _without_unknown_stages(whole: DetectorConstants, session: FrameSession) -> DetectorConstants:
    """Return constants whose stages without a gain are no measurement: ordinary frames tell that of the first stage alone."""
    coding, gain = whole.coding, whole.gain
    if coding is None or gain is None:
        return whole
    known = [stage for stage in range(len(gain)) if np.isfinite(gain[stage]).any()]
    stages = np.where(np.isin(coding.stages, known), coding.stages, np.int8(-1))
    if np.array_equal(stages, coding.stages):
        return whole
    session.warn(
        "the gains of higher gain stages are not known: pixels in them are left out by this file, until their gains are added"
    )
    return replace(whole, coding=replace(coding, stages=stages))


def _estimate(session: FrameSession, constants: Path) -> GainEstimate:
    known, coding = read_calibration(constants), _coding(session)
    groups = None
    common_mode = session.given.config.section("calibrate").common_mode
    parameters = {"constants": file_identity(str(constants)), "coding": _content(coding)}
    if not isinstance(common_mode, NoCommonMode):
        if known.noise is None:
            raise DataError("the constants have no noise, which common mode needs: make it by 'xfelproc calibrate dark'", constants)
        mask = session.static_mask()
        if known.mask is not None:
            mask = mask | np.where(known.mask != 0, np.uint8(MaskBit.CALIBRATION), np.uint8(0))
        groups = common_mode.prepare(mask, known.noise[0], np.ones(len(mask), np.float32))
        parameters["common_mode"] = common_mode.model_dump(mode="json")
    lineage = digest({"fold": "gain", **parameters})
    estimate = estimate_gain_panels(_sums(session, GainFold(lineage, constants, coding, groups), 0))
    if groups is None or not np.isfinite(estimate.gain).any():
        return estimate
    # with the gain about known, the peak of the pixels without a photon tells the offset
    about = tuple(np.where(np.isfinite(estimate.gain), estimate.gain, np.nanmedian(estimate.gain)).tolist())
    lineage = digest({"fold": "gain 2", **parameters, "frames": session.given.manifest.stamp})
    return estimate_gain_panels(_sums(session, GainFold(lineage, constants, coding, groups, about), 1))


def _sums(session: FrameSession, fold: GainFold, iteration: int) -> dict[str, Any]:
    partial = session.fold(fold, "gain", iteration)
    if "sums" not in partial:
        raise DataError(
            f"none of the {session.given.manifest.n_frames} frames can be read: 'xfelproc inspect' tells more of a file"
        )
    return partial


def _gains(estimate: GainEstimate, session: FrameSession) -> DetectorConstants:
    """Return the gains as constants; panels with too few photons have that of the others."""
    known = np.isfinite(estimate.gain) & (estimate.photons > FEW_PHOTONS)
    if not known.any():
        raise DataError(
            f"no panel has enough photons for its gain to be estimated ({np.nansum(estimate.photons):.0f} in all): give more "
            "frames, with background or powder"
        )
    median = float(np.median(estimate.gain[known]))
    if not known.all():
        names = [panel.name for panel, good in zip(session.given.experiment.detector.panels, known, strict=True) if not good]
        shown = ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
        session.warn(f"{len(names)} panels have too few photons and are given the median gain, {median:.4g} ADU/photon: {shown}")
    return DetectorConstants(gain=np.where(known, estimate.gain, median).astype(np.float32)[None], gain_unit="ADU/photon")


def _gain_lines(estimate: GainEstimate, session: FrameSession) -> list[str]:
    panels = session.given.experiment.detector.panels
    rows = zip(panels, estimate.gain, estimate.error, estimate.photons, strict=True)
    return [
        f"{panel.name:>12}  {gain:9.4f} ± {error:.4f} ADU/photon  {photons:.3g} photons" for panel, gain, error, photons in rows
    ]

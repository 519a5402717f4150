"""The ``[calibrate]`` section: raw values to photons, and the mask of what is not used."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from xfelproc.algorithms.calibration.common_mode import CommonMode, NoCommonMode, UnbondedOffset
from xfelproc.algorithms.calibration.constants import CalibrationConstants, check_shape, expand, full_map, stage_maps, with_groups
from xfelproc.algorithms.calibration.gain import estimate_gain
from xfelproc.algorithms.calibration.reasons import reasons_of
from xfelproc.algorithms.calibration.stages import (
    NO_CODES,
    AutoStages,
    GainStages,
    apply_stages,
    calibrate_raw,
    flat,
    stage_constants,
)
from xfelproc.errors import DataError
from xfelproc.kernels.calibration import RawFrame, calibrate_panels
from xfelproc.kernels.pixels import pixel_limits, plain_limits
from xfelproc.kernels.streaming import LINE
from xfelproc.models.calibration import DetectorConstants, StageCoding
from xfelproc.models.conventions import MaskBit, energy_of, mask_bits
from xfelproc.models.experiment import Detector
from xfelproc.models.frames import Frame
from xfelproc.models.parameters import Parameters

Floats32 = NDArray[np.float32]

INTEGRATING_INDEX = 2.0
"""Index of dispersion above which raw values cannot be photons: counting detectors have 1."""


class Calibrate(Parameters):
    """Pedestal, gain and mask. Values in photons come out."""

    gain: Annotated[
        Literal["auto", "panel", "estimate"] | Annotated[float, Field(gt=0, le=1e6)],
        Field(
            description="raw units (ADU) a photon: a number; 'panel': the geometry's; 'estimate': from the scatter of each frame;"
            " 'auto': the geometry's, and where these are all 1, estimated for frames that cannot be counts; a gain map replaces it"
        ),
    ] = "auto"
    edge_pixels: Annotated[int, Field(ge=0, le=100, description="pixels along each panel edge that are not used, px")] = 0

    gain_stages: Annotated[
        GainStages,
        Field(
            description="how raw values tell the gain stage: 'auto': as the constants file says; 'none': there is one; 'bits':"
            " JUNGFRAU's two top bits; 'epix10k': bit 14; 'array': input.gain_data; or a table"
        ),
    ] = AutoStages()
    common_mode: Annotated[
        CommonMode,
        Field(
            description="offset that the pixels of a readout channel share on a frame, to be determined from each and subtracted:"
            " 'none', a method's name, or its table; needs pedestal, noise and gain"
        ),
    ] = NoCommonMode()

    def constants(
        self,
        detector: Detector,
        static_mask: NDArray[np.uint8],
        dark: ArrayLike | None = None,
        gain: ArrayLike | None = None,
        calibration: DetectorConstants | None = None,
    ) -> CalibrationConstants:
        """Return what `apply` needs for all frames of a detector.

        Parameters
        ----------
        static_mask
            (panel, slow, fast) MaskBit from the source.
        dark
            Pedestal a pixel, raw units, in the shape of the stack (or (slow, fast) for one panel); replaces every other pedestal.
            With gain stages (stage, panel, slow, fast); one map is that of the first stage.
        gain
            Raw units a photon and pixel, likewise; replaces every other gain. Pixels of 0, negative or NaN are masked.
        calibration
            The constants file; replaces the panels' pedestals and the job's gain.

        Raises
        ------
        DataError
            If a map has the wrong shape or no usable pixel, or a gain stage is missing.
        """
        shape = detector.stack_shape
        if static_mask.shape != shape:
            raise DataError(
                f"mask of shape {static_mask.shape}: the geometry has panels, slow, fast = {shape}; give the mask of it"
            )
        mask = static_mask | self._panel_mask(detector)
        if calibration is not None:
            check_shape(calibration, shape)
            if calibration.mask is not None:
                mask |= mask_bits(calibration.mask)
        if isinstance(self.common_mode, UnbondedOffset):
            mask |= np.where(self.common_mode.unbonded(mask), np.uint8(MaskBit.BAD), np.uint8(0))
        coding = self.gain_stages.coding(detector, calibration)
        if coding is not None:
            return self._grouped(_staged(coding, mask, dark, gain, calibration), calibration)
        given = calibration or DetectorConstants()
        if dark is None and given.pedestal is not None:
            dark = given.pedestal[0]
        per_kev = gain is None and given.gain is not None and given.gain_unit == "ADU/keV"
        if gain is None and given.gain is not None:
            gain = stage_maps("gain", given.gain, shape)[0]
        plain = self._one_stage(detector, mask, dark, gain)
        return self._grouped(replace(plain, per_kev=per_kev, reasons=given.mask, saturation=given.saturation), calibration)

    def _grouped(self, constants: CalibrationConstants, calibration: DetectorConstants | None) -> CalibrationConstants:
        """Return the constants with what the common mode needs."""
        if isinstance(self.common_mode, NoCommonMode):
            return constants
        return with_groups(constants, self.common_mode, calibration)

    def _one_stage(
        self, detector: Detector, mask: NDArray[np.uint8], dark: ArrayLike | None, gain: ArrayLike | None
    ) -> CalibrationConstants:
        """Return the constants of detectors without gain stages."""
        shape = detector.stack_shape
        pedestal = np.array([p.pedestal for p in detector.panels], dtype=np.float32)
        gains = np.array([p.gain for p in detector.panels], dtype=np.float32)
        if not np.all(gains > 0):
            raise DataError(f"gain {gains[~(gains > 0)][0]} of a panel: raw units a photon must be positive; correct the geometry")
        estimate: Literal["never", "always", "if integrating"] = "never"
        if gain is not None:
            gains = full_map("gain", gain, shape)
        elif isinstance(self.gain, float):
            gains = np.full(len(detector), self.gain, dtype=np.float32)
        elif self.gain == "estimate":
            gains, estimate = np.ones_like(gains), "always"
        elif self.gain == "auto" and np.all(gains == 1.0):
            estimate = "if integrating"
        if dark is not None:
            pedestal = full_map("dark", dark, shape)
        usable = (gains > 0) & np.isfinite(gains)
        inverse = np.divide(np.float32(1.0), gains, out=np.zeros_like(gains), where=usable)
        if gains.ndim != pedestal.ndim:
            inverse, pedestal, usable = (expand(v, shape) for v in (inverse, pedestal, usable))
        if inverse.ndim == 3:
            usable = usable & np.isfinite(pedestal)
            if not np.any(usable & (mask == 0)):
                raise DataError("no pixel has a usable dark and gain: raw units a photon must be positive; give other maps")
            mask = mask | np.where(usable, np.uint8(0), np.uint8(MaskBit.CALIBRATION))
            pedestal = np.where(usable, pedestal, np.float32(0.0))
        mask.setflags(write=False)
        return CalibrationConstants(mask, pedestal, inverse, estimate)

    def _panel_mask(self, detector: Detector) -> NDArray[np.uint8]:
        """Return the mask of padding, untrusted rectangles and panel edges."""
        mask = np.zeros(detector.stack_shape, dtype=np.uint8)
        edge = self.edge_pixels
        for number, panel in enumerate(detector.panels):
            n_fast, n_slow = panel.image_size
            mask[number, n_slow:] |= np.uint8(MaskBit.PADDING)
            mask[number, :n_slow, n_fast:] |= np.uint8(MaskBit.PADDING)
            for fast0, slow0, fast1, slow1 in panel.mask:
                mask[number, max(0, slow0) : max(0, slow1), max(0, fast0) : max(0, fast1)] |= np.uint8(MaskBit.REGION)
            if edge:
                inner = np.zeros((n_slow, n_fast), dtype=np.bool_)
                inner[edge : n_slow - edge, edge : n_fast - edge] = True
                mask[number, :n_slow, :n_fast][~inner] |= np.uint8(MaskBit.EDGE)
        return mask

    def apply(self, frame: Frame, constants: CalibrationConstants) -> Frame:
        """Return the frame in photons.

        Where raw values are photons, the pixels are passed on as they are. Else they are float32 in a buffer that the next call of
        the same thread overwrites: NaN where the raw value is no measurement, above ``trusted`` where it is saturated.

        Raises
        ------
        DataError
            If the frame is not of the shape that the constants were made for.
        """
        if frame.pixels.shape != constants.mask.shape:
            raise DataError(
                f"frame of shape {frame.pixels.shape}: the geometry has panels, slow, fast = {constants.mask.shape}",
                frame=frame.ref.index,
            )
        if frame.stages is not None and constants.stages is None:
            raise DataError(
                "input.gain_data is given, and nothing says what its values mean: set calibrate.gain_stages = 'array', and give "
                "constants of each stage",
                frame=frame.ref.index,
            )
        masked = replace(frame, mask=constants.mask)
        if constants.saturation is not None:
            trusted = frame.trusted.copy()
            trusted[:, 1] = np.minimum(trusted[:, 1], np.nextafter(constants.saturation, -np.inf))
            masked = replace(masked, trusted=trusted)
        factor = 1e3 / energy_of(frame.beam.wavelength) if constants.per_kev else 1.0
        if constants.estimate != "never":
            raw = masked if not constants.pedestal.any() else _in_photons(masked, constants, 1.0)
            gain = estimate_gain(raw)
            if gain > (INTEGRATING_INDEX if constants.estimate == "if integrating" else 0.0):
                return _in_photons(masked, constants, 1.0 / gain)
        return masked if constants.identity else _in_photons(masked, constants, factor)

    def reasons(self, frame: Frame, constants: CalibrationConstants) -> NDArray[np.uint32]:
        """Return why pixels of a frame are not used: PixelMask (panel, slow, fast), 0 for good ones. For looking at, not for speed.

        Raises
        ------
        DataError
            As `apply`.
        """
        return reasons_of(frame, self.apply(frame, constants), constants)


def _staged(
    coding: StageCoding,
    mask: NDArray[np.uint8],
    dark: ArrayLike | None,
    gain: ArrayLike | None,
    calibration: DetectorConstants | None,
) -> CalibrationConstants:
    """Return the constants of detectors with gain stages; a map that the job gives replaces the file's of the same stages."""
    given, shape = calibration or DetectorConstants(), (mask.shape[0], mask.shape[1], mask.shape[2])
    maps = []
    for name, own, of_file in (("dark", dark, given.pedestal), ("gain", gain, given.gain)):
        if own is None and of_file is None:
            raise DataError(
                f"gain stages need a {name} of each stage: give input.calibration, or set calibrate.gain_stages = 'none'"
            )
        found = None if of_file is None else stage_maps(name, of_file, shape)
        if own is not None:
            first = stage_maps(name, own, shape)
            found = first if found is None else np.concatenate([first, found[len(first) :]])
        assert found is not None
        maps.append(found)
    per_kev = given.gain is not None and given.gain_unit == "ADU/keV"
    if gain is not None and per_kev and given.gain is not None and len(given.gain) > len(stage_maps("gain", gain, shape)):
        raise DataError("input.gain is in ADU/photon, the other stages' gain in the constants file in ADU/keV: give all or none")
    per_kev = per_kev and gain is None
    stages = stage_constants(coding, maps[0], maps[1])
    mask = mask | np.where(stages.unusable, np.uint8(MaskBit.CALIBRATION), np.uint8(0))
    if mask.all():
        raise DataError("no pixel has a usable dark and gain that is not masked as well; give other maps, or another mask")
    mask.setflags(write=False)
    one = np.ones(len(mask), dtype=np.float32)
    return CalibrationConstants(mask, 0 * one, one, "never", per_kev, given.mask, stages=stages)


def _in_photons(frame: Frame, constants: CalibrationConstants, factor: float) -> Frame:
    """Return the frame with all inverse gains multiplied by ``factor``."""
    out = _buffer(frame.pixels.shape)
    groups = constants.groups
    if constants.stages is not None:
        highest, failed = apply_stages(frame, constants.stages, factor, out, groups)
        return replace(frame, pixels=out, trusted=_trusted(highest), stages=None, common_mode_failed=failed)
    limits = pixel_limits(frame.pixels.dtype, frame.trusted)
    lowest_pedestal, largest_inverse = constants.extremes
    if groups is not None:
        lowest_pedestal = lowest_pedestal - groups.reach
    highest = _highest(frame.trusted[:, 1], lowest_pedestal, largest_inverse * np.float32(factor))
    ceiling = np.nextafter(highest, np.float32(np.inf), dtype=np.float32)
    if constants.inverse_gain.ndim == 1:
        inverse = constants.inverse_gain * np.float32(factor)
        calibrate_panels(frame.pixels, limits, constants.pedestal, inverse, ceiling, out)
        return replace(frame, pixels=out, trusted=_trusted(highest))
    panels = len(limits)
    raw = RawFrame(
        pixels=flat(frame.pixels),
        codes=NO_CODES,
        width=frame.pixels.shape[2],
        coded=False,
        shift=0,
        bits=False,
        limits=limits,
        plain=plain_limits(limits),
        stages=np.zeros((panels, 1), dtype=np.int8),
        saturated=np.empty((panels, 0, 2)),
        largest=np.empty(panels),
        pedestal=flat(constants.pedestal)[None],
        inverse_gain=flat(constants.inverse_gain)[None],
        factor=np.float32(factor),
        ceiling=ceiling,
    )
    failed = calibrate_raw(raw, groups, out)
    return replace(frame, pixels=out, trusted=_trusted(highest), common_mode_failed=failed)


def _trusted(highest: Floats32) -> NDArray[np.float64]:
    """Return (panel, 2) the trusted range of calibrated values."""
    return np.column_stack([np.full(len(highest), -np.inf), highest])


def _highest(raw: NDArray[np.float64], pedestal: Floats32, inverse: Floats32) -> Floats32:
    """Return (panel,) a bound in photons that no trusted value of a panel exceeds."""
    highest = (raw - pedestal) * inverse
    return np.where(np.isfinite(raw), highest, np.inf).astype(np.float32)


_LOCAL = threading.local()


def _buffer(shape: tuple[int, ...]) -> Floats32:
    """Return this thread's array for calibrated pixels: fresh pages for each frame would cost more than the calibration."""
    buffer = getattr(_LOCAL, "buffer", None)
    if buffer is None or buffer.shape != shape:
        whole = np.empty(math.prod(shape) + LINE, dtype=np.float32)
        begin = -(whole.ctypes.data // whole.itemsize) % LINE  # kernels write whole lines
        buffer = _LOCAL.buffer = whole[begin : begin + math.prod(shape)].reshape(shape)
    out: Floats32 = buffer
    return out

"""The ``[calibrate]`` section: raw values to photons, and the mask of what is not used."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from xfelproc.algorithms.calibration.gain import estimate_gain
from xfelproc.errors import DataError
from xfelproc.kernels.calibration import calibrate_maps, calibrate_panels
from xfelproc.kernels.pixels import pixel_limits
from xfelproc.models.conventions import MaskBit
from xfelproc.models.experiment import Detector
from xfelproc.models.frames import Frame
from xfelproc.models.parameters import Parameters

Floats32 = NDArray[np.float32]

INTEGRATING_INDEX = 2.0
"""Index of dispersion above which raw values cannot be photons: counting detectors have 1."""


@dataclass(frozen=True)
class CalibrationConstants:
    """What does not change from frame to frame.

    ``pedestal`` (raw units) and ``inverse_gain`` (photons a raw unit) are (panel,) or (panel, slow, fast) alike. ``mask`` is what
    calibrated frames carry.
    """

    mask: NDArray[np.uint8]
    pedestal: Floats32
    inverse_gain: Floats32
    estimate: Literal["never", "always", "if integrating"]

    @cached_property
    def extremes(self) -> tuple[Floats32, Floats32]:
        """(panel,) lowest pedestal and largest inverse gain."""
        panels = len(self.pedestal)
        return self.pedestal.reshape(panels, -1).min(axis=1), self.inverse_gain.reshape(panels, -1).max(axis=1)

    @cached_property
    def identity(self) -> bool:
        """True where raw values are photons already."""
        return self.pedestal.ndim == 1 and not self.pedestal.any() and bool(np.all(self.inverse_gain == 1.0))


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

    def constants(
        self, detector: Detector, static_mask: NDArray[np.uint8], dark: ArrayLike | None = None, gain: ArrayLike | None = None
    ) -> CalibrationConstants:
        """Return what `apply` needs for all frames of a detector.

        Parameters
        ----------
        static_mask
            (panel, slow, fast) MaskBit from the source.
        dark
            Pedestal a pixel, raw units, in the shape of the stack (or (slow, fast) for one panel); replaces the panels' pedestals.
        gain
            Raw units a photon and pixel, likewise; replaces every other gain. Pixels of 0, negative or NaN are masked.

        Raises
        ------
        DataError
            If a map has the wrong shape or no usable pixel.
        """
        shape = detector.stack_shape
        if static_mask.shape != shape:
            raise DataError(
                f"mask of shape {static_mask.shape}: the geometry has panels, slow, fast = {shape}; give the mask of it"
            )
        mask = static_mask | self._panel_mask(detector)
        pedestal = np.array([p.pedestal for p in detector.panels], dtype=np.float32)
        gains = np.array([p.gain for p in detector.panels], dtype=np.float32)
        if not np.all(gains > 0):
            raise DataError(f"gain {gains[~(gains > 0)][0]} of a panel: raw units a photon must be positive; correct the geometry")
        estimate: Literal["never", "always", "if integrating"] = "never"
        if gain is not None:
            gains = _map("gain", gain, shape)
        elif isinstance(self.gain, float):
            gains = np.full(len(detector), self.gain, dtype=np.float32)
        elif self.gain == "estimate":
            gains, estimate = np.ones_like(gains), "always"
        elif self.gain == "auto" and np.all(gains == 1.0):
            estimate = "if integrating"
        if dark is not None:
            pedestal = _map("dark", dark, shape)
        usable = (gains > 0) & np.isfinite(gains)
        inverse = np.divide(np.float32(1.0), gains, out=np.zeros_like(gains), where=usable)
        if gains.ndim != pedestal.ndim:
            inverse, pedestal, usable = (_expand(v, shape) for v in (inverse, pedestal, usable))
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
        masked = replace(frame, mask=constants.mask)
        factor = 1.0
        if constants.estimate != "never":
            gain = estimate_gain(masked)
            if gain > (INTEGRATING_INDEX if constants.estimate == "if integrating" else 0.0):
                factor = 1.0 / gain
            elif constants.identity:
                return masked
        elif constants.identity:
            return masked
        inverse = constants.inverse_gain * np.float32(factor)
        out = _buffer(frame.pixels.shape)
        limits = pixel_limits(frame.pixels.dtype, frame.trusted)
        lowest_pedestal, largest_inverse = constants.extremes
        highest = _highest(frame.trusted[:, 1], lowest_pedestal, largest_inverse * np.float32(factor))
        ceiling = np.nextafter(highest, np.float32(np.inf), dtype=np.float32)
        kernel = calibrate_panels if inverse.ndim == 1 else calibrate_maps
        kernel(frame.pixels, limits, constants.pedestal, inverse, ceiling, out)
        trusted = np.column_stack([np.full(len(highest), -np.inf), highest])
        return replace(masked, pixels=out, trusted=trusted)


def _map(name: str, values: ArrayLike, shape: tuple[int, int, int]) -> Floats32:
    """Return a per-pixel map in the shape of the stack."""
    array = np.asarray(values, dtype=np.float32)
    if array.ndim == 2 and shape[0] == 1:
        array = array[None]
    if array.shape != shape:
        raise DataError(f"{name} of shape {array.shape}: the geometry has panels, slow, fast = {shape}; give a map of that shape")
    return np.ascontiguousarray(array)


def _expand(values: NDArray[Any], shape: tuple[int, int, int]) -> NDArray[Any]:
    """Return one value a panel as a full map; a full map as it is."""
    return values if values.ndim == 3 else np.ascontiguousarray(np.broadcast_to(values[:, None, None], shape))


def _highest(raw: NDArray[np.float64], pedestal: Floats32, inverse: Floats32) -> Floats32:
    """Return (panel,) a bound in photons that no trusted value of a panel exceeds."""
    highest = (raw - pedestal) * inverse
    return np.where(np.isfinite(raw), highest, np.inf).astype(np.float32)


_LOCAL = threading.local()


def _buffer(shape: tuple[int, ...]) -> Floats32:
    """Return this thread's array for calibrated pixels: fresh pages for each frame would cost more than the calibration."""
    buffer = getattr(_LOCAL, "buffer", None)
    if buffer is None or buffer.shape != shape:
        buffer = _LOCAL.buffer = np.empty(shape, dtype=np.float32)
    out: Floats32 = buffer
    return out

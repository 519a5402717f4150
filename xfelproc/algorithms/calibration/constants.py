"""What does not change from frame to frame, made of the geometry, the job and the files of constants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xfelproc.algorithms.calibration.common_mode import CommonModeGroups, GroupedOffset
from xfelproc.algorithms.calibration.stages import StageConstants
from xfelproc.errors import DataError
from xfelproc.models.calibration import DetectorConstants

Floats32 = NDArray[np.float32]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class CalibrationConstants:
    """What does not change from frame to frame.

    ``pedestal`` (raw units) and ``inverse_gain`` (photons a raw unit) are (panel,) or (panel, slow, fast) alike. ``mask`` is what
    calibrated frames carry. With ``per_kev`` the inverse gain is keV a raw unit. ``reasons`` is PixelMask where a file of constants
    has one. Raw values from ``saturation`` are saturated. With ``stages`` these are used instead of pedestal and inverse gain.
    ``groups`` are what share a common mode; None: it is not corrected for.
    """

    mask: NDArray[np.uint8]
    pedestal: Floats32
    inverse_gain: Floats32
    estimate: Literal["never", "always", "if integrating"]
    per_kev: bool = False
    reasons: NDArray[np.uint32] | None = None
    saturation: float | None = None
    stages: StageConstants | None = None
    groups: CommonModeGroups | None = None

    @cached_property
    def extremes(self) -> tuple[Floats32, Floats32]:
        """(panel,) lowest pedestal and largest inverse gain."""
        panels = len(self.pedestal)
        return self.pedestal.reshape(panels, -1).min(axis=1), self.inverse_gain.reshape(panels, -1).max(axis=1)

    @cached_property
    def identity(self) -> bool:
        """True where raw values are photons already."""
        plain = self.stages is None and self.groups is None and not self.per_kev and self.pedestal.ndim == 1
        return plain and not self.pedestal.any() and bool(np.all(self.inverse_gain == 1.0))


def full_map(name: str, values: ArrayLike, shape: Shape) -> Floats32:
    """Return a per-pixel map in the shape of the stack.

    Raises
    ------
    DataError
        If it has another shape.
    """
    array = np.asarray(values, dtype=np.float32)
    if array.ndim == 2 and shape[0] == 1:
        array = array[None]
    if array.shape != shape:
        raise DataError(f"{name} of shape {array.shape}: the geometry has panels, slow, fast = {shape}; give a map of that shape")
    return np.ascontiguousarray(array)


def stage_maps(name: str, values: ArrayLike, shape: Shape) -> Floats32:
    """Return maps (stage, panel, slow, fast); one map is that of stage 0, (stage, panel) holds for whole panels.

    Raises
    ------
    DataError
        If they have another shape.
    """
    array = np.asarray(values, dtype=np.float32)
    if array.ndim == 2 and array.shape[1] == shape[0] and array.shape != shape[1:]:
        array = np.broadcast_to(array[:, :, None, None], (*array.shape, *shape[1:]))
    if array.ndim == 4 and array.shape[1:] == shape:
        return np.ascontiguousarray(array)
    return full_map(name, array, shape)[None]


def expand(values: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """Return one value a panel as a full map; a full map as it is."""
    return values if values.ndim == 3 else np.ascontiguousarray(np.broadcast_to(values[:, None, None], shape))


def check_shape(calibration: DetectorConstants, shape: Shape) -> None:
    """See that constants are of this detector.

    Raises
    ------
    DataError
        If a map has the wrong shape, or the gains are of another number of panels.
    """
    for name in ("pedestal", "noise", "gain", "mask"):
        array = getattr(calibration, name)
        if array is None:
            continue
        found = array.shape[-3:] if array.ndim > 2 else (array.shape[1], *shape[1:])
        if found != shape:
            raise DataError(
                f"{name} in the constants file has shape {array.shape}: the geometry has panels, slow, fast = {shape}; "
                "give the constants of this detector, or the geometry they were made with"
            )


def with_groups(
    constants: CalibrationConstants, common_mode: GroupedOffset, calibration: DetectorConstants | None
) -> CalibrationConstants:
    """Return the constants with the groups of pixels that share an offset.

    Parameters
    ----------
    calibration
        The constants file, of which noise and the number of dark frames are taken.

    Raises
    ------
    DataError
        If gain or noise is not known, or the groups do not fit the panels.
    """
    shape = (constants.mask.shape[0], constants.mask.shape[1], constants.mask.shape[2])
    if constants.estimate != "never":
        raise DataError(
            "common mode needs the gain, as photons raise a pixel, too: give input.calibration or input.gain,"
            " or calibrate.gain as a number"
        )
    staged = constants.stages
    first = np.zeros(shape[0], dtype=np.int8) if staged is None else np.maximum(staged.table[:, 0], 0)
    if staged is None:
        pedestal, inverse = (expand(values, shape) for values in (constants.pedestal, constants.inverse_gain))
    else:
        pedestal, inverse = (np.stack([maps[s, p] for p, s in enumerate(first)]) for maps in (staged.pedestal, staged.inverse_gain))
    noise = None if calibration is None else calibration.noise
    told = "" if calibration is None else calibration.provenance.get("dark_frames_0", "")
    of_first = None if noise is None else np.stack([noise[min(s, len(noise) - 1), p] for p, s in enumerate(first)])
    groups = common_mode.prepare(constants.mask, of_first, inverse, int(told) if told.isdecimal() else None)
    groups = groups.with_maps(pedestal, inverse)
    if staged is not None:
        return replace(constants, groups=groups)
    return replace(constants, groups=groups, pedestal=pedestal, inverse_gain=inverse)

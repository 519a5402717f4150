"""Common mode: the offset that a readout channel's pixels share on one frame."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from xfelproc.errors import DataError
from xfelproc.kernels.common_mode import METHODS
from xfelproc.kernels.pixel_histogram import scratch_size
from xfelproc.models.conventions import MaskBit
from xfelproc.models.parameters import Algorithm, method_by_name

Floats32 = NDArray[np.float32]
Size = Annotated[int, Field(ge=1, le=65536)]
Group = Literal["panel", "rows", "columns"] | tuple[Size, Size]
"""Pixels that share an offset: a panel, each row or column of one, or rectangles of [rows, columns]."""

GAIN_SPREAD = 0.3
"""Pixels whose gain is further than this fraction from their group's median (another gain mode) do not serve."""
NOISE_SPREAD = 3.0
"""Pixels whose noise is more than this many times their group's median do not serve."""
REACH = 20.0
"""Largest offset looked for, in units of the noise, where the job says none."""


class CommonModeGroups(NamedTuple):
    """What the kernels need to determine the offsets of a detector's groups; made once with the calibration constants.

    ``bounds`` (group, 5): panel, first and last slow (half open), first and last fast. ``constants`` (group, 5): noise (ADU rms),
    gain (the inverse of the inverse gain's unit; inf: photons are not reckoned with), excess kurtosis of the noise,
    largest offset (ADU) and largest standard error (photons). ``use`` (panel, slow, fast) is 0 where a pixel may serve.
    ``scratch`` is the length of the kernels' uint32 scratch. ``maps`` are pedestal, inverse gain and ``use``, the pixels of one
    group after the other: in this order they are read faster.
    """

    method: int
    bounds: NDArray[np.int32]
    constants: NDArray[np.float64]
    use: NDArray[np.uint8]
    scratch: int
    maps: tuple[Floats32, Floats32, NDArray[np.uint8]] | None = None

    @property
    def reach(self) -> float:
        """Largest offset of a group, ADU."""
        return float(self.constants[:, 3].max(initial=0.0))

    def with_maps(self, pedestal: Floats32, inverse_gain: Floats32) -> CommonModeGroups:
        """Return the groups with maps (panel, slow, fast) in their order."""
        boxes = [(p, slice(y0, y1), slice(x0, x1)) for p, y0, y1, x0, x1 in self.bounds]
        dark, scale, use = (np.concatenate([values[box].ravel() for box in boxes]) for values in (pedestal, inverse_gain, self.use))
        return self._replace(maps=(dark, scale, use))


class NoCommonMode(Algorithm):
    """There is none, or it is not corrected for."""

    method: Literal["none"] = "none"


class GroupedOffset(Algorithm):
    """What all methods share."""

    group: Annotated[
        Group,
        Field(
            description="pixels that share an offset: a panel, each row or column of one, or [rows, columns] of a readout channel"
            " (an ASIC, a bank); panels are cut from their first pixel on"
        ),
    ] = "panel"
    max_offset: Annotated[
        float | None, Field(gt=0, le=1e5, description="largest offset looked for, ADU; None: 20 times the noise")
    ] = None
    max_error: Annotated[
        float,
        Field(
            gt=0, le=10, description="largest standard error, photons; a group of which it is larger is left as it is, and counted"
        ),
    ] = 0.1
    noise: Annotated[
        float | None, Field(gt=0, le=1e5, description="noise of a pixel, ADU rms; None: that of the calibration constants")
    ] = None

    def prepare(
        self, mask: NDArray[np.uint8], noise: Floats32 | None, inverse_gain: Floats32, frames: int | None = None
    ) -> CommonModeGroups:
        """Return what the kernels need.

        Parameters
        ----------
        mask
            (panel, slow, fast) MaskBit; masked pixels do not serve.
        noise
            (panel, slow, fast) or (panel,) ADU rms of the stage in which pixels have few photons.
        inverse_gain
            Photons an ADU of that stage, likewise. 0 or NaN: the pixel does not serve.
        frames
            Dark frames from which the noise is known: few make pixels seem to differ more than they do.

        Raises
        ------
        DataError
            If the noise is not known, or a group is larger than a panel.
        """
        shape = mask.shape
        if noise is None and self.noise is None:
            raise DataError(
                "common mode needs the noise of the pixels: give a constants file with noise (xfelproc calibrate dark),"
                " or calibrate.common_mode.noise"
            )
        use = self._use(mask)
        sigmas = _full(np.float32(self.noise) if self.noise is not None else noise, shape)
        inverse = _full(inverse_gain, shape)
        bounds = self._bounds(mask)
        constants = np.zeros((len(bounds), 5))
        for number, (p, y0, y1, x0, x1) in enumerate(bounds):
            box = (p, slice(y0, y1), slice(x0, x1))
            constants[number, [0, 2, 1]] = self._typical(use[box], sigmas[box], inverse[box])
        if frames is not None and frames > 1:
            sampled = 1.0 + 2.0 / (frames - 1)
            constants[:, 2] = np.maximum(3.0 * ((constants[:, 2] / 3.0 + 1.0) / sampled - 1.0), 0.0)
        constants[:, 3] = REACH * constants[:, 0] if self.max_offset is None else self.max_offset
        # without a known gain the error is told against the noise
        constants[:, 4] = np.where(np.isfinite(constants[:, 1]), self.max_error, self.max_error * constants[:, 0])
        widest = int((bounds[:, 4] - bounds[:, 3]).max(initial=1))
        return CommonModeGroups(METHODS[self._method], bounds, constants, use, scratch_size(widest))

    @property
    def _method(self) -> str:
        name: str = getattr(self, "method")  # noqa: B009  (each method declares its own literal)
        return name

    def _use(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return (panel, slow, fast), 0 where a pixel may serve."""
        use: NDArray[np.uint8] = (mask != 0).astype(np.uint8)
        return use

    def _typical(self, use: NDArray[np.uint8], sigma: Floats32, inverse_gain: Floats32) -> tuple[float, float, float]:
        """Return noise, its kurtosis and gain of a group; mark odd pixels in ``use``. (1, 0, inf): there are no others."""
        usable = (use == 0) & (sigma > 0) & np.isfinite(sigma) & (inverse_gain != 0) & np.isfinite(inverse_gain)
        if not usable.any():
            use[...] = 1
            return 1.0, 0.0, np.inf
        noise, inverse = np.median(sigma[usable]), np.median(inverse_gain[usable])
        usable &= (sigma < NOISE_SPREAD * noise) & (np.abs(inverse_gain / inverse - 1.0) < GAIN_SPREAD)
        use[...] = ~usable
        gains = 1.0 / np.abs(inverse_gain[usable].astype(np.float64))
        return *_noise(sigma[usable]), float(gains.mean())

    def _bounds(self, mask: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Return the groups that have pixels."""
        boxes = group_bounds(self.group, (mask.shape[0], mask.shape[1], mask.shape[2]))
        padded = np.uint8(MaskBit.PADDING)
        return boxes[[not np.all(mask[p, y0:y1, x0:x1] & padded) for p, y0, y1, x0, x1 in boxes]]


def group_bounds(group: Group, shape: tuple[int, int, int]) -> NDArray[np.int32]:
    """Return (group, 5) panel, first and last slow (half open), first and last fast of all groups.

    Raises
    ------
    DataError
        If a group is larger than a panel.
    """
    panels, height, width = shape
    sizes = {"panel": (height, width), "rows": (1, width), "columns": (height, 1)}
    rows, columns = sizes[group] if isinstance(group, str) else group
    if rows > height or columns > width:
        raise DataError(
            f"calibrate.common_mode.group of {rows} rows, {columns} columns: panels have {height} rows, {width} columns;"
            " give the size of a readout channel, or 'panel'"
        )
    boxes = [
        (p, y, min(y + rows, height), x, min(x + columns, width))
        for p in range(panels)
        for y in range(0, height, rows)
        for x in range(0, width, columns)
    ]
    return np.array(boxes, dtype=np.int32)


class MedianOffset(GroupedOffset):
    """Median of the pixels without a photon: those nearer to the lowest peak than to that of one photon."""

    method: Literal["median"] = "median"


class ModeOffset(GroupedOffset):
    """Lowest peak of the smoothed histogram."""

    method: Literal["mode"] = "mode"


class PeakOffset(GroupedOffset):
    """Fit of the peaks of zero, one, two, ... photons to the histogram: holds at any background that can be told from an offset."""

    method: Literal["peak"] = "peak"


class UnbondedOffset(GroupedOffset):
    """Mean of pixels that are read out without being bonded to the sensor: they see no photons."""

    method: Literal["unbonded"] = "unbonded"
    pixels: Annotated[
        Literal["diagonal"] | tuple[tuple[int, int], ...],
        Field(description="unbonded pixels of each group: 'diagonal' (every step-th on it, as CSPAD has), or [slow, fast] of each"),
    ] = "diagonal"
    step: Annotated[int, Field(ge=1, le=1000, description="distance of the unbonded pixels on the diagonal, px")] = 10
    max_error: Annotated[
        float,
        Field(
            gt=0, le=10, description="largest standard error, photons; a group of which it is larger is left as it is, and counted"
        ),
    ] = 0.5

    def unbonded(self, mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return (panel, slow, fast), True at the unbonded pixels.

        Raises
        ------
        DataError
            If a listed pixel is outside its group.
        """
        marks = np.zeros(mask.shape, dtype=np.bool_)
        for p, y0, y1, x0, x1 in self._bounds(mask):
            height, width = int(y1 - y0), int(x1 - x0)
            diagonal = tuple((i, i) for i in range(0, min(height, width), self.step))
            for slow, fast in diagonal if self.pixels == "diagonal" else self.pixels:
                if not (0 <= slow < height and 0 <= fast < width):
                    raise DataError(
                        f"calibrate.common_mode.pixels [{slow}, {fast}]: a group has {height} rows, {width} columns;"
                        " count from 0 in the group"
                    )
                marks[p, y0 + slow, x0 + fast] = True
        marks &= (mask & np.uint8(MaskBit.PADDING)) == 0
        return marks

    def _use(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        # unbonded pixels do not respond, so that a mask has most of them
        use: NDArray[np.uint8] = (~self.unbonded(mask)).astype(np.uint8)
        return use

    def _typical(self, use: NDArray[np.uint8], sigma: Floats32, inverse_gain: Floats32) -> tuple[float, float, float]:
        usable = (use == 0) & (sigma > 0) & np.isfinite(sigma)
        use[...] = ~usable
        gains = inverse_gain[(inverse_gain != 0) & np.isfinite(inverse_gain)]
        gain = 1.0 / abs(float(np.median(gains))) if gains.size else np.inf
        return (*_noise(sigma[usable]), gain) if usable.any() else (1.0, 0.0, np.inf)


CommonMode = Annotated[
    NoCommonMode | MedianOffset | ModeOffset | PeakOffset | UnbondedOffset,
    Field(discriminator="method"),
    BeforeValidator(method_by_name),
]
"""Field type of a common mode; a bare name is a method with its defaults."""


def _full(values: Floats32 | np.float32 | None, shape: tuple[int, ...]) -> Floats32:
    array = np.asarray(values, dtype=np.float32)
    return np.broadcast_to(array[:, None, None] if array.ndim == 1 else array, shape)


def _noise(values: Floats32) -> tuple[float, float]:
    """Return the noise (rms) of pixels together, and its excess kurtosis."""
    squares = values.astype(np.float64) ** 2
    mean = float(squares.mean())
    return float(np.sqrt(mean)), 3.0 * float(np.mean(squares**2) / mean**2 - 1.0)

"""Gain stages: how a pixel's stage is told, and raw values of several stages to photons."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from xfelproc.algorithms.calibration.common_mode import CommonModeGroups
from xfelproc.errors import DataError
from xfelproc.kernels.calibration import RawFrame, calibrate_frame, codes_of_array
from xfelproc.kernels.calibration_groups import calibrate_groups
from xfelproc.kernels.pixels import pixel_limits, plain_limits
from xfelproc.models.calibration import MAX_STAGES, DetectorConstants, StageCoding
from xfelproc.models.experiment import Detector
from xfelproc.models.frames import Frame
from xfelproc.models.parameters import Algorithm

Floats32 = NDArray[np.float32]

NO_CODE = 255
"""Code of what is no code."""
Stage = Annotated[int, Field(ge=-1, lt=MAX_STAGES)]
Stages = Annotated[tuple[Stage, ...], Field(min_length=2, max_length=8)]

PANELS = "other stages of codes for panels (ASICs) in another gain mode: patterns of panel names, such as {'q0a*' = [1, 1, -1, 2]}"


class AutoStages(Algorithm):
    """Gain stages as the file in input.calibration says; one stage where there is none."""

    method: Literal["auto"] = "auto"

    def coding(self, detector: Detector, calibration: DetectorConstants | None) -> StageCoding | None:
        """Return how stages are told, or None if there is one stage.

        Raises
        ------
        DataError
            If there are constants of several stages, and nothing says how raw values tell them.
        """
        if calibration is None:
            return None
        if calibration.coding is None and calibration.n_stages > 1:
            raise DataError(
                f"the constants have {calibration.n_stages} gain stages, and nothing says how raw values tell them: "
                "set calibrate.gain_stages ('bits', 'epix10k', 'array', 'none')"
            )
        return calibration.coding


class NoStages(Algorithm):
    """One gain stage: the first of the constants."""

    method: Literal["none"] = "none"

    def coding(self, detector: Detector, calibration: DetectorConstants | None) -> None:
        """Return None: there is one stage."""


class BitStages(Algorithm):
    """Gain stage in the top bits of unsigned raw values. As it stands JUNGFRAU's: 00, 01 and 11 are stages 0, 1 and 2."""

    method: Literal["bits"] = "bits"
    shift: Annotated[int, Field(ge=1, le=31, description="lowest bit of the code, counted from 0; the value is below it")] = 14
    stages: Annotated[Stages, Field(description="stage of each code (2, 4 or 8), from 0; -1: no measurement")] = (0, 1, -1, 2)
    panels: Annotated[dict[str, Stages], Field(default_factory=dict, description=PANELS)]
    saturated: Annotated[
        int | None,
        Field(ge=0, description="value at which the last stage is saturated; None: the end of the converter's range"),
    ] = None

    def coding(self, detector: Detector, calibration: DetectorConstants | None) -> StageCoding:
        """Return how stages are told.

        Raises
        ------
        DataError
            If the number of codes is impossible, or a pattern is no panel's.
        """
        coding = StageCoding("bits", _table(detector, self.stages, self.panels), self.shift, saturated=self.saturated)
        coding.check()
        return coding


class ArrayStages(Algorithm):
    """Gain stage in a separate array, input.gain_data: its values are the codes, or how many of the thresholds they exceed."""

    method: Literal["array"] = "array"
    thresholds: Annotated[
        tuple[float, ...] | None,
        Field(description="ascending thresholds, one less than codes; None: those of the constants file, else values are codes"),
    ] = None
    stages: Annotated[Stages, Field(description="stage of each code, from 0; -1: no measurement")] = (0, 1, 2)
    panels: Annotated[dict[str, Stages], Field(default_factory=dict, description=PANELS)]
    saturated: Annotated[float | None, Field(description="value at which the last stage is saturated; None: not told")] = None

    def coding(self, detector: Detector, calibration: DetectorConstants | None) -> StageCoding:
        """Return how stages are told.

        Raises
        ------
        DataError
            If thresholds and codes do not go together, or a pattern is no panel's.
        """
        thresholds = None if calibration is None or calibration.coding is None else calibration.coding.thresholds
        if self.thresholds is not None:
            thresholds = np.array(self.thresholds, dtype=np.float32).reshape(-1, 1, 1, 1)
        coding = StageCoding("array", _table(detector, self.stages, self.panels), 0, thresholds, self.saturated)
        coding.check()
        return coding


_NAMED: dict[str, dict[str, Any]] = {"epix10k": {"method": "bits", "stages": (0, 1)}}


def _stages_by_name(value: Any) -> Any:
    return _NAMED.get(value, {"method": value}) if isinstance(value, str) else value


GainStages = Annotated[
    AutoStages | NoStages | BitStages | ArrayStages, Field(discriminator="method"), BeforeValidator(_stages_by_name)
]


def _table(detector: Detector, stages: tuple[int, ...], panels: dict[str, tuple[int, ...]]) -> NDArray[np.int8]:
    """Return (panel, code) stages; the last pattern that fits a panel's name holds."""
    rows = [stages] * len(detector)
    for pattern, own in panels.items():
        fitting = [n for n, panel in enumerate(detector.panels) if fnmatchcase(panel.name, pattern)]
        if not fitting:
            names = ", ".join(panel.name for panel in detector.panels[:8])
            raise DataError(f"calibrate.gain_stages.panels: no panel's name is like {pattern!r} (they are {names} ...)")
        if len(own) != len(stages):
            raise DataError(f"calibrate.gain_stages.panels: {pattern!r} has {len(own)} codes, gain_stages.stages {len(stages)}")
        for number in fitting:
            rows[number] = own
    return np.array(rows, dtype=np.int8)


@dataclass(frozen=True)
class StageConstants:
    """Maps (stage, panel, slow, fast) of several stages; the inverse gain is NaN where a pixel of that stage cannot be used.

    ``table`` (panel, code) is the stage of a code. ``falling`` (stage, panel) is True where values fall with the signal.
    """

    coding: StageCoding
    table: NDArray[np.int8]
    pedestal: Floats32
    inverse_gain: Floats32
    falling: NDArray[np.bool_]

    @property
    def value_mask(self) -> int:
        """Bits of a raw value that are not the code; 0 where a separate array holds that."""
        return (1 << self.coding.shift) - 1 if self.coding.source == "bits" else 0

    @cached_property
    def first(self) -> NDArray[np.int8]:
        """(panel,) the stage of the lowest code that has one: what is seen of a pixel on most frames."""
        return np.array([row[row >= 0][0] if np.any(row >= 0) else 0 for row in self.table], dtype=np.int8)

    @cached_property
    def unusable(self) -> NDArray[np.bool_]:
        """(panel, slow, fast) True where the first stage cannot be used."""
        unusable: NDArray[np.bool_] = np.isnan(np.stack([self.inverse_gain[s, panel] for panel, s in enumerate(self.first)]))
        return unusable

    @cached_property
    def saturated(self) -> NDArray[np.float64]:
        """(panel, stage, 2) the value up to which, and that from which a pixel is saturated: of the last stage of a panel."""
        limits = np.empty((len(self.table), len(self.pedestal), 2))
        limits[:] = -np.inf, np.inf
        for panel, row in enumerate(self.table):
            last, value = int(row.max()), self.coding.saturated
            if last >= 0 and self.falling[last, panel]:
                limits[panel, last, 0] = value if value is not None else 0 if self.value_mask else -np.inf
            elif last >= 0:
                limits[panel, last, 1] = value if value is not None else self.value_mask or np.inf
        return limits

    @cached_property
    def _extremes(self) -> NDArray[np.float64]:
        """(4, panel, stage) lowest and highest pedestal and inverse gain of usable pixels; NaN where there are none."""
        found = np.full((4, len(self.table), len(self.pedestal)), np.nan)
        for stage in range(len(self.pedestal)):
            for panel in range(len(self.table)):
                usable = np.isfinite(self.inverse_gain[stage, panel])
                if usable.any():
                    dark, scale = self.pedestal[stage, panel][usable], self.inverse_gain[stage, panel][usable]
                    found[:, panel, stage] = dark.min(), dark.max(), scale.min(), scale.max()
        return found

    def last_reading(self, limits: NDArray[Any]) -> NDArray[np.float64]:
        """Return (panel,) the highest raw value that is a reading, whatever the code: all bits set are none.

        ``limits`` are those of `pixel_limits`.
        """
        if self.coding.source == "bits":
            return np.full(len(limits), float((self.table.shape[1] << self.coding.shift) - 2))
        last: NDArray[np.float64] = limits[:, 2].astype(np.float64)
        return last

    def highest(self, largest: NDArray[np.float64]) -> Floats32:
        """Return (panel,) a bound that no measurement exceeds, photons or keV; ``largest`` (panel,) is the highest raw value."""
        low, high, least, most = self._extremes
        rising, falling = (largest[:, None] - low) * most, -high * least
        bound = np.where(self.falling.T, falling, rising)
        used = np.array([[np.any(row == stage) for stage in range(len(self.pedestal))] for row in self.table])
        none = 0.0 if np.isfinite(largest).all() else np.inf
        highest: Floats32 = np.where(used & np.isfinite(bound), bound, none).max(axis=1).astype(np.float32)
        return highest


def stage_constants(coding: StageCoding, pedestal: Floats32, gain: Floats32) -> StageConstants:
    """Return the constants of several stages.

    Parameters
    ----------
    pedestal, gain
        (stage, panel, slow, fast), raw units and raw units a photon (or keV). A pixel whose gain has another sign than most of its
        panel's in that stage cannot be used, nor one whose gain is 0 or NaN.

    Raises
    ------
    DataError
        If a stage that codes refer to is missing, or no pixel of the first can be used.
    """
    n_stages, panels = coding.n_stages, pedestal.shape[1]
    for name, maps in (("dark", pedestal), ("gain", gain)):
        if len(maps) < n_stages:
            raise DataError(
                f"{name} has {len(maps)} gain stage(s), raw values tell {n_stages}: measure and add the others, "
                "or give their codes as -1 so that such pixels are left out"
            )
    table = np.broadcast_to(coding.stages, (panels, coding.stages.shape[1])).copy()  # read-only it is another type to kernels
    if coding.stages.shape[0] not in (1, panels):
        raise DataError(f"the constants tell gain stages of {coding.stages.shape[0]} panels: the geometry has {panels}")
    pedestal, gain = pedestal[:n_stages], gain[:n_stages]
    usable = np.isfinite(gain) & (gain != 0) & np.isfinite(pedestal)
    falling = np.zeros((n_stages, panels), dtype=np.bool_)
    for stage in range(n_stages):
        for panel in range(panels):
            good = usable[stage, panel]
            # a stage of unknown gain still tells its direction by where the pedestal lies
            falling[stage, panel] = (
                np.median(gain[stage, panel][good]) < 0
                if good.any()
                else coding.source == "bits" and np.nan_to_num(np.nanmedian(pedestal[stage, panel])) > (1 << coding.shift) / 2
            )
    usable &= (gain < 0) == falling[:, :, None, None]
    inverse = np.divide(np.float32(1.0), gain, out=np.full_like(gain, np.nan), where=usable)
    constants = StageConstants(coding, table, np.ascontiguousarray(pedestal), inverse, falling)
    if constants.unusable.all():
        raise DataError("no pixel has a usable dark and gain in its first stage: raw units a photon must not be 0; give other maps")
    return constants


def stage_codes(frame: Frame, coding: StageCoding) -> NDArray[np.uint8] | None:
    """Return the codes (panel, slow, fast) of a separate array, or None where they are bits of the pixels.

    Raises
    ------
    DataError
        If the frame has no such array, or no bits.
    """
    if coding.source == "bits":
        if frame.pixels.dtype.kind != "u" or coding.shift >= 8 * frame.pixels.dtype.itemsize:
            raise DataError(
                f"pixels of type {frame.pixels.dtype} hold no gain stage in bits from {coding.shift}: unsigned whole numbers are"
                " needed; set calibrate.gain_stages to 'none' if these are no raw values",
                frame=frame.ref.index,
            )
        return None
    if frame.stages is None:
        raise DataError(
            "the gain stages are in a separate array, and it is not named: set input.gain_data to its HDF5 path",
            frame=frame.ref.index,
        )
    if coding.thresholds is None:
        told = frame.stages
        return np.where((told >= 0) & (told < NO_CODE), told, NO_CODE).astype(np.uint8)
    codes = np.empty(frame.pixels.shape, dtype=np.uint8)
    codes_of_array(frame.stages, coding.thresholds, codes)
    return codes


def apply_stages(
    frame: Frame, constants: StageConstants, factor: float, out: Floats32, groups: CommonModeGroups | None = None
) -> tuple[Floats32, int]:
    """Write the frame in photons to ``out``; return (panel,) a bound that no measurement exceeds, and how many groups failed.

    ``factor`` is what inverse gains are to be multiplied with. With ``groups`` the common mode of code 0's stage is subtracted.

    Raises
    ------
    DataError
        As `stage_codes`.
    """
    codes = stage_codes(frame, constants.coding)
    dtype, trusted = frame.pixels.dtype, frame.trusted
    if codes is None:
        largest = np.full(len(trusted), float(constants.value_mask))
    else:
        end = np.inf if dtype.kind == "f" else float(np.iinfo(dtype).max)
        largest = np.minimum(trusted[:, 1], end)
    highest = constants.highest(largest) * np.float32(factor)
    limits = pixel_limits(dtype, trusted)
    plain = plain_limits(limits, None if codes is not None else constants.value_mask)
    plain[constants.table[:, 0] < 0] = 1, 0  # none is: all pixels have to be looked at
    raw = RawFrame(
        pixels=flat(frame.pixels),
        codes=NO_CODES if codes is None else flat(codes),
        width=frame.pixels.shape[2],
        coded=True,
        shift=constants.coding.shift,
        bits=codes is None,
        limits=limits,
        plain=plain,
        stages=constants.table,
        saturated=constants.saturated,
        largest=constants.last_reading(limits),
        pedestal=flat(constants.pedestal),
        inverse_gain=flat(constants.inverse_gain),
        factor=np.float32(factor),
        ceiling=np.nextafter(highest, np.float32(np.inf), dtype=np.float32),
    )
    return highest, calibrate_raw(raw, groups, out)


NO_CODES = np.empty((1, 0), dtype=np.uint8)


def flat(values: NDArray[Any]) -> NDArray[Any]:
    """Return maps (..., slow, fast) with the pixels of a panel in one row: a view where they are in the memory so."""
    return np.ascontiguousarray(values).reshape(*values.shape[:-2], -1)


def calibrate_raw(raw: RawFrame, groups: CommonModeGroups | None, out: Floats32) -> int:
    """Write a frame in photons, less the common mode of ``groups``; return how many of these have none that could be determined."""
    target = out.reshape(len(out), -1)
    if groups is None or groups.maps is None:
        calibrate_frame(raw, target)
        return 0
    scratch = np.empty(groups.scratch, dtype=np.uint32)
    return int(calibrate_groups(raw, groups.bounds, *groups.maps, groups.method, groups.constants, scratch, target))

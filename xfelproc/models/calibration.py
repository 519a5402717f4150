"""What calibrates a detector: pedestal, noise, gain and bad pixels by gain stage, and how raw values tell the stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError

Floats32 = NDArray[np.float32]
GainUnit = Literal["ADU/photon", "ADU/keV"]
GAIN_UNITS: tuple[GainUnit, ...] = ("ADU/photon", "ADU/keV")
MAX_STAGES = 8


@dataclass(frozen=True)
class StageCoding:
    """How a pixel's gain stage is told.

    ``stages`` (panel, code) or, where all panels are alike, (1, code) is the stage of each code; -1: such a pixel is no
    measurement. With ``source`` "bits" the code is ``raw >> shift`` and the value what is below these bits; with "array" a
    separate array tells it: the code is the value there, or where there are ``thresholds`` (threshold, panel, slow, fast) or
    (threshold, 1, 1, 1), ascending, how many of them it exceeds. ``saturated`` is the value (bits of the code taken off)
    from which, in the direction of more signal, the last stage is saturated; None: the end of the converter's range.
    """

    source: Literal["bits", "array"]
    stages: NDArray[np.int8]
    shift: int = 14
    thresholds: Floats32 | None = None
    saturated: float | None = None

    @property
    def n_stages(self) -> int:
        """Number of stages that codes refer to."""
        return int(self.stages.max()) + 1

    def check(self, path: object = None) -> None:
        """Raise a DataError if it makes no sense."""
        stages = self.stages
        if stages.ndim != 2 or not stages.size or stages.min() < -1 or not 0 <= stages.max() < MAX_STAGES:
            raise DataError(
                f"gain stages of codes {stages.tolist()}: one row a panel (or one), stages 0 to {MAX_STAGES - 1}, -1 for none",
                path,
            )
        if self.source == "bits" and not (1 <= self.shift <= 31 and stages.shape[1] in (2, 4, 8)):
            raise DataError(
                f"gain stages in bits from {self.shift} with {stages.shape[1]} codes: give 2, 4 or 8 codes (1 to 3 bits)", path
            )
        if self.thresholds is not None and len(self.thresholds) != stages.shape[1] - 1:
            raise DataError(
                f"{len(self.thresholds)} thresholds of the gain stages for {stages.shape[1]} codes: one less than codes are needed",
                path,
            )


@dataclass(frozen=True)
class DetectorConstants:
    """Calibration constants of a detector; what is None is not known.

    ``pedestal`` and ``noise`` (stage, panel, slow, fast) are in ADU (the noise is a standard deviation), NaN where a stage was not
    measured. ``gain`` is (stage, panel, slow, fast) or (stage, panel) in ``gain_unit``, negative in stages whose values fall with
    the signal, NaN where it is not known. ``mask`` (panel, slow, fast) is PixelMask. ``coding`` tells the stages (None: there is
    one). ``saturation`` is the lowest raw value that is saturated, for detectors without stages.
    """

    pedestal: Floats32 | None = None
    noise: Floats32 | None = None
    gain: Floats32 | None = None
    gain_unit: GainUnit = "ADU/photon"
    mask: NDArray[np.uint32] | None = None
    coding: StageCoding | None = None
    saturation: float | None = None
    provenance: dict[str, str] = field(default_factory=dict)

    @property
    def n_stages(self) -> int:
        """Number of gain stages that there are constants of."""
        return max((len(a) for a in (self.pedestal, self.noise, self.gain) if a is not None), default=1)

    def check(self, path: object = None) -> None:
        """See that shapes agree and that each gain, and each stage that is used, is possible.

        Raises
        ------
        DataError
            Names the array, what is wrong with it, and what to do.
        """
        self.check_shapes(path)
        self._check_gain(path)
        if self.coding is None:
            return
        self.coding.check(path)
        wanted = self.coding.n_stages
        for name, array in (("pedestal", self.pedestal), ("gain", self.gain)):
            if array is None:
                continue
            missing = [s for s in range(wanted) if s >= len(array) or (name == "pedestal" and np.isnan(array[s]).all())]
            used = [s for s in missing if np.any(self.coding.stages == s)]
            if used:
                raise DataError(
                    f"{name} has no gain stage {used[0]} of the {wanted} that raw values tell: measure it and add it, "
                    "or give that stage's code as -1 so that its pixels are left out",
                    path,
                )

    def check_shapes(self, path: object = None) -> None:
        """Raise a DataError if shapes do not agree."""
        shapes: set[tuple[int, ...]] = set()
        for name, array, axes in (
            ("pedestal", self.pedestal, (4,)),
            ("noise", self.noise, (4,)),
            ("gain", self.gain, (2, 4)),
            ("mask", self.mask, (3,)),
        ):
            if array is None:
                continue
            if array.ndim not in axes or 0 in array.shape:
                shape = "(panel, slow, fast)" if axes == (3,) else "(stage, panel, slow, fast)"
                raise DataError(f"{name} has shape {array.shape}: {shape} is needed", path)
            if array.ndim > 2:
                shapes.add(array.shape[-3:])
            if len(shapes) > 1:
                raise DataError(
                    f"{name} has panels of shape {array.shape[-3:]}, other arrays have {min(shapes - {array.shape[-3:]})}:"
                    " constants of two detectors are mixed",
                    path,
                )
        if self.gain is not None and self.gain.ndim == 2 and any(s[0] != self.gain.shape[1] for s in shapes):
            raise DataError(
                f"gain has {self.gain.shape[1]} panels, other arrays have {min(shapes)[0]}: give one gain a panel", path
            )
        counts = {len(a) for a in (self.pedestal, self.noise) if a is not None}
        if len(counts) > 1:
            raise DataError(f"pedestal and noise have {sorted(counts)} gain stages: measure both from the same dark runs", path)

    def _check_gain(self, path: object) -> None:
        gain = self.gain
        if gain is None:
            return
        if self.gain_unit not in GAIN_UNITS:
            raise DataError(f"gain has the unit {self.gain_unit!r}: give {' or '.join(GAIN_UNITS)} as its attribute unit", path)
        if gain.ndim == 2:
            wrong = np.argwhere((gain == 0) | np.isinf(gain) | (np.isnan(gain) & (np.arange(len(gain)) == 0)[:, None]))
            if len(wrong):
                stage, panel = wrong[0]
                raise DataError(
                    f"gain of stage {stage}, panel {panel} is {gain[stage, panel]:g} {self.gain_unit}: it must be a number, and"
                    " not 0; correct it, or mask the panel",
                    path,
                )
            return
        for stage in range(len(gain)):
            usable = np.isfinite(gain[stage]) & (gain[stage] != 0)
            if not usable.any() and (stage == 0 or not np.isnan(gain[stage]).all()):
                value = gain[stage].reshape(-1)[0]
                raise DataError(
                    f"gain of stage {stage} is {value:g} or as useless in every pixel: {self.gain_unit} must be numbers other than"
                    " 0; give another gain map",
                    path,
                )


def merged(old: DetectorConstants, new: DetectorConstants) -> DetectorConstants:
    """Return constants with what is new put in: stages of pedestal, noise and gain that ``new`` has; the masks are united.

    Raises
    ------
    DataError
        If both are of different detectors.
    """
    masks = [m for m in (old.mask, new.mask) if m is not None]
    if len(masks) == 2 and masks[0].shape != masks[1].shape:
        raise DataError(f"masks of shapes {masks[0].shape} and {masks[1].shape}: constants of two detectors are mixed")
    if old.gain is not None and new.gain is not None and (old.gain_unit != new.gain_unit or old.gain.ndim != new.gain.ndim):
        old_gain = None  # gains of another kind are replaced as a whole
    else:
        old_gain = old.gain
    result = DetectorConstants(
        pedestal=_merged("pedestal", old.pedestal, new.pedestal),
        noise=_merged("noise", old.noise, new.noise),
        gain=_merged("gain", old_gain, new.gain),
        gain_unit=old.gain_unit if new.gain is None else new.gain_unit,
        mask=np.bitwise_or.reduce(masks) if masks else None,
        coding=new.coding or old.coding,
        saturation=old.saturation if new.saturation is None else new.saturation,
        provenance={**old.provenance, **new.provenance},
    )
    result.check_shapes()
    return result


def _merged(name: str, old: Floats32 | None, new: Floats32 | None) -> Floats32 | None:
    if old is None or new is None:
        return old if new is None else new
    if old.shape[1:] != new.shape[1:]:
        raise DataError(f"{name} of shapes {old.shape} and {new.shape}: constants of two detectors are mixed")
    both = np.full((max(len(old), len(new)), *new.shape[1:]), np.nan, dtype=np.float32)
    both[: len(old)] = old
    for stage in range(len(new)):
        if not np.isnan(new[stage]).all():
            both[stage] = new[stage]
    return both

"""What the electronics of an integrating detector make of photons: the settings."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from xfelproc.models.parameters import Parameters

Fraction = Annotated[float, Field(ge=0, lt=0.2)]


class StageSettings(Parameters):
    """One gain stage; a raw value is pedestal + gain x energy + common mode + noise, rounded."""

    pedestal: Annotated[float, Field(gt=0, description="mean over the pixels, ADU")]
    pedestal_spread: Annotated[float, Field(ge=0, description="standard deviation over the pixels, ADU")]
    noise: Annotated[float, Field(gt=0, description="median over the pixels of the noise of one reading, ADU rms")]
    gain: Annotated[float, Field(description="mean over the pixels, ADU a keV; negative where values fall with the signal")]
    leaves_at: Annotated[
        float | None, Field(description="value without noise beyond which the next stage takes over, ADU; None: the last stage")
    ] = None


class RawSettings(Parameters):
    """Pixels that integrate charge: pedestal, noise, gain stages, common mode and bad pixels."""

    stages: Annotated[tuple[StageSettings, ...], Field(min_length=1, max_length=3, description="from the most sensitive on")]
    bits: Annotated[int, Field(ge=8, le=16, description="of a reading; the bits above hold the stage where there are several")] = 14
    asic: Annotated[tuple[int, int], Field(description="pixels (fast, slow) that share a common mode and a mean gain")]
    gain_spread: Annotated[float, Field(ge=0, lt=0.3, description="relative standard deviation of gains over pixels")] = 0.04
    asic_gain_spread: Annotated[float, Field(ge=0, lt=0.3, description="relative standard deviation of gains over ASICs")] = 0.03
    noise_spread: Annotated[float, Field(ge=0, lt=1, description="standard deviation of log(noise) over pixels")] = 0.1
    common_mode: Annotated[
        float, Field(ge=0, description="standard deviation of what a frame adds to all pixels of an ASIC in the first stage, ADU")
    ] = 0.0
    unbonded: Annotated[
        int, Field(ge=0, description="pixels n, 2n, ... of each ASIC's diagonal are wired to no sensor; 0: all are wired")
    ] = 0
    dead: Annotated[Fraction, Field(description="fraction of pixels without signal and with a fifth of the noise")] = 0.0005
    hot: Annotated[Fraction, Field(description="fraction that leaks half or more of the first stage's range in each frame")] = (
        0.0005
    )
    cold: Annotated[Fraction, Field(description="fraction whose pedestal is 10 to 50 % of what it should be")] = 0.0003
    noisy: Annotated[Fraction, Field(description="fraction with 5 to 20 times the noise")] = 0.0005
    stuck: Annotated[Fraction, Field(description="fraction that reads the same 16 bits in every frame")] = 0.0003
    darks: Annotated[int, Field(ge=0, le=100_000, description="dark frames of each stage")] = 100
    kept_photons: Annotated[int, Field(ge=0, description="first frames whose photons a pixel are kept in truth.h5")] = 2

    @model_validator(mode="after")
    def _possible(self) -> RawSettings:
        if any(stage.gain == 0 for stage in self.stages):
            raise ValueError("a stage of gain 0 sees nothing: give ADU a keV, negative where values fall with the signal")
        switching = [stage.leaves_at is not None for stage in self.stages]
        if switching != [True] * (len(self.stages) - 1) + [False]:
            raise ValueError("leaves_at must be given for each stage but the last")
        if len(self.stages) > 1 and self.bits > 14:
            raise ValueError(f"bits = {self.bits}: values of 16 bits hold at most 14 beside the stage")
        if min(self.asic) < 2:
            raise ValueError(f"asic = {self.asic}: an ASIC has at least 2 pixels in each direction")
        return self


CSPAD: dict[str, Any] = {
    "stages": ({"pedestal": 1200.0, "pedestal_spread": 60.0, "noise": 3.5, "gain": 2.1},),
    "asic": (194, 185),
    "common_mode": 10.0,
    "unbonded": 10,
}
"""One stage, some 20 ADU a photon of 9.5 keV, read with a sixth of a photon of noise."""

JUNGFRAU: dict[str, Any] = {
    "stages": (
        {"pedestal": 3000.0, "pedestal_spread": 300.0, "noise": 12.0, "gain": 41.0, "leaves_at": 14500.0},
        {"pedestal": 14800.0, "pedestal_spread": 150.0, "noise": 3.0, "gain": -1.45, "leaves_at": 4500.0},
        {"pedestal": 14900.0, "pedestal_spread": 150.0, "noise": 3.0, "gain": -0.1},
    ),
    "asic": (256, 256),
    "gain_spread": 0.02,
    "asic_gain_spread": 0.01,
    "common_mode": 4.0,
    "darks": 50,
}
"""Three stages of 14 bits, chosen by the charge; 390 ADU a photon of 9.5 keV in the first, which holds some 30."""

"""The electronics of an integrating detector: photons to raw values, with everything that calibration has to find again.

A reading is made pixel by pixel as the detector makes it: charge, stage, offsets, noise, rounding. Nothing here undoes a step,
so nothing is shared with the calibration that it tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfelproc.models.conventions import HC
from xfelproc.models.experiment import Detector
from xfelproc.simulation.raw_settings import RawSettings, StageSettings

Images = NDArray[np.float32]
Raw = NDArray[np.uint16]

STAGE_CODES = (0b00, 0b01, 0b11)
"""What the two bits above a reading of 14 bits say of its stage; 10 never occurs in a working pixel."""
KINDS = ("dead", "hot", "cold", "noisy", "stuck")


@dataclass(frozen=True)
class Reading:
    """Raw values (panel, slow, fast), and the common mode (panel, ASIC along slow, ASIC along fast) in them, ADU."""

    raw: Raw
    common_mode: Images


class Electronics:
    """All pixels of a detector; they are a function of settings and seed.

    ``pedestal`` and ``noise`` (ADU) and ``gain`` (ADU a keV) have the shape (stage, panel, slow, fast). ``kind`` (panel, slow,
    fast) is 0 for good pixels and 1 + the place in `KINDS` for bad ones; ``unbonded`` pixels have no sensor.
    """

    def __init__(self, settings: RawSettings, detector: Detector, seed: int) -> None:
        self.settings = settings
        self._seed = seed
        self._shape = detector.stack_shape
        rng = np.random.default_rng([seed, 5])
        fast, slow = settings.asic
        self._banks = (-(-self._shape[1] // slow), -(-self._shape[2] // fast))
        self.kind = self._draw_kinds(rng)
        self.unbonded = self._unbonded()
        shared = self._normal(rng, self._shape) * np.float32(settings.gain_spread)
        shared += self._spread(self._normal(rng, self._bank_shape) * np.float32(settings.asic_gain_spread))
        maps = [self._stage(stage, shared, rng) for stage in settings.stages]
        self.pedestal, self.noise, self.gain = (np.stack(list(column)) for column in zip(*maps, strict=True))
        self._leak = self._draw_leak(rng)
        self._stuck_at = rng.integers(0, 1 << (16 if self._switches else settings.bits), self._shape, dtype=np.uint16)

    @property
    def _switches(self) -> bool:
        return len(self.settings.stages) > 1

    @property
    def _bank_shape(self) -> tuple[int, int, int]:
        return (self._shape[0], *self._banks)

    @staticmethod
    def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Images:
        return rng.standard_normal(shape, dtype=np.float32)

    def _spread(self, banks: Images) -> Images:
        """Return one value an ASIC as one a pixel."""
        fast, slow = self.settings.asic
        pixels: Images = banks.repeat(slow, axis=1).repeat(fast, axis=2)[:, : self._shape[1], : self._shape[2]]
        return pixels

    def _draw_kinds(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        edges = np.cumsum([getattr(self.settings, name) for name in KINDS])
        place = np.searchsorted(edges, rng.random(self._shape, dtype=np.float32), side="right")
        return np.where(place < len(KINDS), place + 1, 0).astype(np.uint8)

    def _is(self, kind: str) -> NDArray[np.bool_]:
        chosen: NDArray[np.bool_] = self.kind == KINDS.index(kind) + 1
        return chosen

    def _unbonded(self) -> NDArray[np.bool_]:
        wired: NDArray[np.bool_] = np.zeros(self._shape, dtype=np.bool_)
        pitch = self.settings.unbonded
        if pitch:
            fast, slow = self.settings.asic
            rows, columns = np.indices(self._shape[1:])
            rows, columns = rows % slow, columns % fast
            wired[:] = (rows == columns) & (rows % pitch == 0) & (rows > 0)
        return wired

    def _stage(self, stage: StageSettings, shared: Images, rng: np.random.Generator) -> tuple[Images, Images, Images]:
        """Return pedestal, noise and gain of a stage; ``shared`` is the relative deviation of a pixel's gain in all stages."""
        pedestal = stage.pedestal + np.float32(stage.pedestal_spread) * self._normal(rng, self._shape)
        pedestal[self._is("cold")] *= rng.uniform(0.1, 0.5, int(np.sum(self._is("cold")))).astype(np.float32)
        noise = np.float32(stage.noise) * np.exp(np.float32(self.settings.noise_spread) * self._normal(rng, self._shape))
        noise[self._is("noisy")] *= rng.uniform(5.0, 20.0, int(np.sum(self._is("noisy")))).astype(np.float32)
        noise[self._is("hot")] *= 3.0
        noise[self._is("dead")] *= 0.2
        gain = np.float32(stage.gain) * (1.0 + shared)
        gain[self._is("dead") | self._is("stuck") | self.unbonded] = 0.0
        return pedestal.astype(np.float32), noise.astype(np.float32), gain.astype(np.float32)

    def _draw_leak(self, rng: np.random.Generator) -> Images:
        """Return the energy (keV) that leaks into each pixel a frame."""
        first = self.settings.stages[0]
        top = float(1 << self.settings.bits) if first.leaves_at is None else first.leaves_at
        leak = np.zeros(self._shape, dtype=np.float32)
        hot = self._is("hot")
        share = rng.uniform(0.5, 0.9, int(hot.sum())).astype(np.float32)
        leak[hot] = share * np.float32((top - first.pedestal) / first.gain)
        return leak

    def expose(self, photons: NDArray[np.integer], wavelength: float, index: int) -> Reading:
        """Return the reading of frame ``index``, in which each pixel (panel, slow, fast) got so many photons."""
        rng = np.random.default_rng([self._seed, 6, index])
        energy = photons.astype(np.float32) * np.float32(HC / wavelength / 1000.0)
        return self._read(energy, None, rng)

    def dark(self, stage: int, index: int) -> Reading:
        """Return dark frame ``index`` with all pixels made to use a stage."""
        return self._read(np.zeros(self._shape, dtype=np.float32), stage, np.random.default_rng([self._seed, 8, stage, index]))

    def _read(self, energy: Images, forced: int | None, rng: np.random.Generator) -> Reading:
        energy = energy + self._leak
        stage = self._choose_stage(energy) if forced is None else np.full(self._shape, forced, dtype=np.uint8)
        noise = self._normal(rng, self._shape)
        offsets = np.float32(self.settings.common_mode) * self._normal(rng, self._bank_shape)
        value = np.where(stage == 0, self._spread(offsets), np.float32(0.0))
        code = np.zeros(self._shape, dtype=np.uint16)
        for number in range(len(self.settings.stages)):
            here = stage == number
            signal = self.pedestal[number] + self.gain[number] * energy + self.noise[number] * noise
            np.add(value, signal, out=value, where=here)
            code[here] = STAGE_CODES[number]
        raw = np.clip(np.rint(value), 0, (1 << self.settings.bits) - 1).astype(np.uint16)
        if self._switches:
            raw |= code << np.uint16(self.settings.bits)
        stuck = self._is("stuck")
        raw[stuck] = self._stuck_at[stuck]
        return Reading(raw, offsets)

    def _choose_stage(self, energy: Images) -> NDArray[np.uint8]:
        """Return the stage of each pixel: the charge alone, not the noise of the reading, makes it leave one."""
        chosen = np.zeros(self._shape, dtype=np.uint8)
        for number, stage in enumerate(self.settings.stages[:-1]):
            signal = self.pedestal[number] + self.gain[number] * energy
            beyond = signal > stage.leaves_at if stage.gain > 0 else signal < stage.leaves_at
            chosen[beyond & (chosen == number)] = number + 1
        return chosen

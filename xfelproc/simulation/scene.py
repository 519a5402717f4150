"""Frames, one by one: crystals, water, ice, spots of no lattice, and the counting of photons."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError
from xfelproc.kernels import simulation as kernels
from xfelproc.simulation.crystal import (
    Blocks,
    Intensities,
    SimulatedCrystal,
    draw_blocks,
    draw_crystal,
    given_intensities,
    random_intensities,
)
from xfelproc.simulation.layout import Layout, make_layout
from xfelproc.simulation.settings import SimulationSettings

Floats = NDArray[np.float64]
Images = NDArray[np.float32]

ICE_RINGS = ((3.895, 1.0), (3.661, 0.5), (3.438, 0.75), (2.666, 0.25), (2.249, 0.5), (2.068, 0.4), (1.946, 0.1), (1.918, 0.3))
"""Spacing (Å) and relative strength of the rings of hexagonal ice."""
_RING_WIDTH = 0.0015  # 1/Å
_PROFILE_STEP = 0.0005  # 1/Å
_DEAD_VALUE = 65535


@dataclass(frozen=True)
class Shot:
    """What is true of a frame: its recorded wavelength (Å), its crystals, and how many spots were added that are of no lattice."""

    wavelength: float
    crystals: tuple[SimulatedCrystal, ...]
    false_peaks: int = 0


class Simulator:
    """Makes the frames of an experiment; frame ``i`` is the same whatever was made before it.

    ``intensities`` and ``layout`` replace those that the settings describe.
    """

    def __init__(self, settings: SimulationSettings, intensities: Intensities | None = None, layout: Layout | None = None) -> None:
        self.settings = settings
        self.layout: Layout = make_layout(settings.detector) if layout is None else layout
        given = settings.crystal.reflections
        if intensities is None:
            intensities = (
                random_intensities(settings.crystal, settings.seed) if given is None else given_intensities(settings.crystal, given)
            )
        self.intensities = intensities
        self._geometry = self.layout.geometry
        self._sizes = self.layout.detector.image_sizes
        self._scratch = np.empty(self.layout.detector.stack_shape[1:], dtype=np.float32)

    @cached_property
    def dead(self) -> NDArray[np.bool_]:
        """Dead pixels (panel, slow, fast)."""
        rng = np.random.default_rng([self.settings.seed, 2])
        return rng.random(self.layout.detector.stack_shape, dtype=np.float32) < self.settings.detector.dead

    @cached_property
    def _rays(self) -> tuple[Images, Images]:
        """|u - b| of each pixel's unit ray, and what polarisation and solid angle leave of an isotropic ray."""
        _, n_slow, n_fast = self.layout.detector.stack_shape
        fast = (np.arange(n_fast) + 0.5)[None, None, :, None]
        slow = (np.arange(n_slow) + 0.5)[None, :, None, None]
        corner, step_f, step_s = (self._geometry[:, i][:, None, None, :] for i in range(3))
        lab = corner + fast * step_f + slow * step_s
        distance = np.linalg.norm(lab, axis=-1)
        unit = lab / distance[..., None]
        momentum = np.sqrt(unit[..., 0] ** 2 + unit[..., 1] ** 2 + (unit[..., 2] + 1.0) ** 2)
        normal = np.cross(step_f, step_s)
        along = np.abs(np.sum(unit * normal / np.linalg.norm(normal, axis=-1, keepdims=True), axis=-1))
        f = self.settings.beam.polarization
        polarized = f * (1 - unit[..., 0] ** 2) + (1 - f) * (1 - unit[..., 1] ** 2)
        weight = polarized * along * (self.settings.detector.distance / distance) ** 2
        return momentum.astype(np.float32), weight.astype(np.float32)

    def frame(self, index: int) -> tuple[NDArray[np.uint16], Shot]:
        """Return counts (panel, slow, fast) and truth of frame ``index``; dead pixels have the value 65535."""
        counts, shot = self.photons(index)
        counts[self.dead] = _DEAD_VALUE
        return counts, shot

    def photons(self, index: int) -> tuple[NDArray[np.uint16], Shot]:
        """Return what `frame` does, with the photons in dead pixels as well."""
        rng = np.random.default_rng([self.settings.seed, 3, index])
        settings = self.settings
        wavelength = settings.beam.wavelength * (1.0 + settings.beam.jitter * float(rng.standard_normal()))
        crystals: list[SimulatedCrystal] = []
        if rng.random() < settings.hit_fraction:
            for _ in range(settings.lattices):
                crystals.append(draw_crystal(settings.crystal, settings.photons, settings.scale_spread, rng))
        image = self.bragg(crystals, wavelength, rng)
        false_peaks = self._add_false_peaks(image, rng)
        self._add_ice_spots(image, wavelength, rng)
        self._add_background(image, wavelength, rng)
        return self._draw(image, rng), Shot(wavelength, tuple(crystals), false_peaks)

    def count(self, mean: Images, rng: np.random.Generator) -> NDArray[np.uint16]:
        """Return Poisson counts of a mean image, saturated and with the dead pixels marked."""
        counts = self._draw(mean, rng)
        counts[self.dead] = _DEAD_VALUE
        return counts

    def _draw(self, mean: Images, rng: np.random.Generator) -> NDArray[np.uint16]:
        counts = np.empty(mean.shape, dtype=np.uint16)
        state = rng.integers(0, 2**63, size=1, dtype=np.uint64)
        kernels.count_photons(mean, state, self.settings.detector.saturation, counts)
        return counts

    def bragg(self, crystals: list[SimulatedCrystal], wavelength: float, rng: np.random.Generator) -> Images:
        """Return the mean photons (panel, slow, fast) that crystals scatter, after the point spread."""
        settings = self.settings
        image: Images = np.zeros(self.layout.detector.stack_shape, dtype=np.float32)
        half_pixel = settings.detector.pixel_size / np.sqrt(2.0) / settings.detector.distance / wavelength
        for crystal in crystals:
            blocks = draw_blocks(crystal, settings.beam, wavelength, settings.crystal.samples, half_pixel, rng)
            self._check_reach(blocks, crystal)
            kernels.render_lattice(
                image,
                self._geometry,
                self._sizes,
                np.ascontiguousarray(crystal.A),
                np.linalg.inv(crystal.A).astype(np.float64),
                blocks.matrices,
                blocks.wavelengths,
                blocks.widths,
                crystal.scale * blocks.weights,
                self.intensities.table,
                wavelength,
                blocks.reach,
                settings.detector.oversample,
                settings.beam.polarization,
            )
        if crystals and settings.detector.point_spread > 0:
            kernels.blur(image, _gaussian_taps(settings.detector.point_spread), self._scratch)
        return image

    def _check_reach(self, blocks: Blocks, crystal: SimulatedCrystal) -> None:
        """Only the node nearest to a pixel is summed: refuse where nodes are broader than their distance."""
        spacing = 1.0 / max(crystal.cell[:3])
        reach = float(blocks.widths.max() * 3.0 + blocks.reach[1] / self.settings.crystal.d_min)
        if reach > 0.75 * spacing:
            raise ConfigError(
                f"reflections would be {reach:.4f} 1/Å broad where they are {spacing:.4f} 1/Å apart: choose larger domains, less "
                "mosaicity or bandwidth, a shorter cell, or a larger crystal.d_min"
            )

    def _add_background(self, image: Images, wavelength: float, rng: np.random.Generator) -> None:
        s = np.arange(0.0, 1.6, _PROFILE_STEP)
        level = self.settings.background * float(np.exp(self.settings.background_spread * rng.standard_normal()))
        profile = level * (0.25 + 0.75 * np.exp(-0.5 * ((s - 1 / 3.1) / 0.05) ** 2) + 2.0 * np.exp(-s / 0.04))
        if self.settings.ice > 0:
            strength = self.settings.ice * float(np.exp(0.3 * rng.standard_normal()))
            for d, relative in ICE_RINGS:
                profile += strength * relative * np.exp(-0.5 * ((s - 1 / d) / _RING_WIDTH) ** 2)
        momentum, weight = self._rays
        kernels.add_background(image, momentum, weight, profile.astype(np.float32), _PROFILE_STEP, wavelength)

    def _add_false_peaks(self, image: Images, rng: np.random.Generator) -> int:
        """Add spots at random places, as strong as those of the frame; how many depends on how many strong ones there are."""
        if self.settings.false_peaks == 0:
            return 0
        threshold = 2.0 + 3.0 * np.sqrt(self.settings.background)
        n = int(rng.poisson(self.settings.false_peaks * kernels.count_maxima(image, threshold)))
        panel = rng.integers(0, len(self._sizes), n)
        place = rng.random((n, 2)) * self._sizes[panel]
        strength = threshold * 4.0 * (1.0 + rng.exponential(4.0, n))
        for row in range(n):
            self._add_spot(image, int(panel[row]), place[row], float(strength[row]))
        return n

    def _add_ice_spots(self, image: Images, wavelength: float, rng: np.random.Generator) -> None:
        """Add spots on the ice rings, at random azimuths."""
        n = int(rng.poisson(self.settings.ice_spots)) if self.settings.ice_spots > 0 else 0
        rings = np.array(ICE_RINGS)
        chosen = rng.choice(len(rings), n, p=rings[:, 1] / rings[:, 1].sum())
        azimuths = rng.uniform(0, 2 * np.pi, n)
        for row in range(n):
            angle = 2.0 * np.arcsin(0.5 * wavelength / rings[chosen[row], 0])
            radial = np.sin(angle)
            ray = np.array([radial * np.cos(azimuths[row]), radial * np.sin(azimuths[row]), -np.cos(angle)])
            for panel, (corner, step_f, step_s) in enumerate(self._geometry):
                # solve corner + f step_f + s step_s = t ray
                f, s, t = np.linalg.solve(np.column_stack([step_f, step_s, -ray]), -corner)
                if t > 0 and 0 <= f < self._sizes[panel, 0] and 0 <= s < self._sizes[panel, 1]:
                    self._add_spot(image, panel, np.array([f, s]), float(200.0 * rng.exponential() + 50.0))

    def _add_spot(self, image: Images, panel: int, place: Floats, photons: float) -> None:
        """Add a round Gaussian spot at ``place`` = (fast, slow)."""
        width = float(np.hypot(0.5, self.settings.detector.point_spread))
        n_fast, n_slow = (int(v) for v in self._sizes[panel])
        f0, s0 = (max(0, int(v) - 4) for v in place)
        fast, slow = np.arange(f0, min(n_fast, f0 + 9)) + 0.5, np.arange(s0, min(n_slow, s0 + 9)) + 0.5
        r2 = (fast[None, :] - place[0]) ** 2 + (slow[:, None] - place[1]) ** 2
        spot = photons / (2 * np.pi * width**2) * np.exp(-0.5 * r2 / width**2)
        image[panel, s0 : s0 + len(slow), f0 : f0 + len(fast)] += spot.astype(np.float32)


def _gaussian_taps(sigma: float) -> Images:
    """Return half of a normalised Gaussian convolution kernel, centre first."""
    x = np.arange(int(np.ceil(4.0 * sigma)) + 1)
    taps = np.exp(-0.5 * (x / sigma) ** 2)
    taps /= taps[0] + 2.0 * taps[1:].sum()
    return taps.astype(np.float32)


def mean_spot_spacing(settings: SimulationSettings) -> float:
    """Return λ distance / V^(1/3), the mean distance of neighbouring spots near the beam, in pixels."""
    volume = gemmi.UnitCell(*settings.crystal.cell).volume
    return float(settings.beam.wavelength * settings.detector.distance / np.cbrt(volume) / settings.detector.pixel_size)

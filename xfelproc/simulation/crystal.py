"""Crystals with known truth: symmetric random intensities, random orientations, mosaic blocks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from scipy.special import ndtri

from xfelproc.errors import ConfigError
from xfelproc.simulation.settings import BeamSettings, CrystalSettings

Floats = NDArray[np.float64]
_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))
_SCHERRER = 2.0 * np.sqrt(np.log(2.0) / np.pi)


@dataclass(frozen=True)
class Intensities:
    """Intensities of the unique reflections ``hkl`` (n, 3) of a space group; Friedel mates are equal."""

    space_group: gemmi.SpaceGroup
    hkl: NDArray[np.int32]
    values: Floats

    @cached_property
    def table(self) -> NDArray[np.float32]:
        """Intensity of (h, k, l) at [h + nh, k + nk, l + nl], all mates by symmetry filled in; 0 where nothing is known."""
        operations = [np.array(op.rot, dtype=np.int64) // gemmi.Op.DEN for op in self.space_group.operations().sym_ops]
        mates = [self.hkl.astype(np.int64) @ rotation for rotation in operations]
        reach = np.max([np.abs(mate).max(axis=0) for mate in mates], axis=0)
        table = np.zeros(tuple(2 * reach + 1), dtype=np.float32)
        for mate in mates:
            for signed in (mate, -mate):
                h, k, el = (signed + reach).T
                table[h, k, el] = self.values
        return table


def random_intensities(settings: CrystalSettings, seed: int) -> Intensities:
    """Return Wilson-distributed intensities (Wilson 1949): Σ ε exp(-B/2d²) times an exponential (centric: χ²) variate, Σ = 1."""
    group = gemmi.SpaceGroup(settings.space_group)
    hkl = np.array(gemmi.make_miller_array(gemmi.UnitCell(*settings.cell), group, settings.d_min), dtype=np.int32)
    rng = np.random.default_rng([seed, 1])
    operations = group.operations()
    centric = np.array([operations.is_reflection_centric(h) for h in hkl.tolist()])
    epsilon = np.array([operations.epsilon_factor_without_centering(h) for h in hkl.tolist()])
    variate = np.where(centric, rng.standard_normal(len(hkl)) ** 2, rng.exponential(size=len(hkl)))
    q2 = np.sum((hkl @ reciprocal_basis(settings.cell).T) ** 2, axis=1)
    return Intensities(group, hkl, epsilon * variate * np.exp(-0.5 * settings.b_factor * q2))


def given_intensities(settings: CrystalSettings, path: Path) -> Intensities:
    """Return the intensities of an MTZ file; amplitudes are squared.

    Raises
    ------
    ConfigError
        If the file cannot be read or has neither intensities nor amplitudes.
    """
    try:
        mtz = gemmi.read_mtz_file(str(path))
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"crystal.reflections: {path} cannot be read as MTZ ({error})") from error
    for label, power in (("IMEAN", 1), ("I", 1), ("FP", 2), ("F", 2)):
        column = mtz.column_with_label(label)
        if column is not None:
            values = np.asarray(column.array, dtype=np.float64) ** power
            hkl = np.asarray(mtz.make_miller_array(), dtype=np.int32)
            good = np.isfinite(values) & (values > 0)
            return Intensities(gemmi.SpaceGroup(settings.space_group), hkl[good], values[good])
    raise ConfigError(f"crystal.reflections: {path} has no column IMEAN, I, FP or F")


def reciprocal_basis(cell: tuple[float, ...]) -> Floats:
    """Return columns a*, b*, c* (1/Å) of a cell in its standard Cartesian setting."""
    return np.asarray(np.array(gemmi.UnitCell(*cell).frac.mat.tolist()).T, dtype=np.float64)


@dataclass(frozen=True)
class SimulatedCrystal:
    """One crystal in the beam: ``A`` has the columns a*, b*, c* (1/Å, laboratory frame: beam to -z, y up), no mosaicity in it."""

    A: Floats
    cell: tuple[float, ...]
    scale: float
    domain_size: float
    mosaicity: float


@dataclass(frozen=True)
class Blocks:
    """Mosaic blocks, each with its wavelength: arrays as `xfelproc.kernels.simulation.render_lattice` takes them."""

    matrices: Floats
    wavelengths: Floats
    widths: Floats
    weights: Floats
    reach: Floats


def draw_crystal(settings: CrystalSettings, photons: float, spread: float, rng: np.random.Generator) -> SimulatedCrystal:
    """Return a crystal in a uniformly random orientation, its cell and scale drawn about the means."""
    cell = _vary_cell(settings, rng)
    orientation = Rotation.random(random_state=rng).as_matrix()
    return SimulatedCrystal(
        A=orientation @ reciprocal_basis(cell),
        cell=cell,
        scale=photons * float(np.exp(spread * rng.standard_normal() - 0.5 * spread**2)),
        domain_size=float(rng.uniform(*settings.domain_size)),
        mosaicity=settings.mosaicity,
    )


def _vary_cell(settings: CrystalSettings, rng: np.random.Generator) -> tuple[float, ...]:
    """Vary the lengths, keeping those equal that are; angles stay."""
    lengths = np.array(settings.cell[:3])
    factors = 1.0 + settings.cell_spread * rng.standard_normal(3)
    same = [int(np.flatnonzero(np.isclose(lengths, length, rtol=1e-6))[0]) for length in lengths]
    return (*(lengths * factors[same]).tolist(), *settings.cell[3:])


def draw_blocks(
    crystal: SimulatedCrystal, beam: BeamSettings, wavelength: float, samples: int, pixel: float, rng: np.random.Generator
) -> Blocks:
    """Return the blocks of a crystal: rotations of mean 0, sizes spread by 10 %, and wavelengths of equal shares of the spectrum.

    The transform of a block is a Gaussian of the width that Scherrer's formula gives for its size, FWHM 0.94 / size; its
    photons are proportional to its volume. ``pixel`` (1/Å) is half a pixel's diagonal in reciprocal space.
    """
    vectors = np.radians(crystal.mosaicity) * rng.standard_normal((samples, 3))
    vectors -= vectors.mean(axis=0)
    quantiles = ndtri((np.arange(samples) + 0.5) / samples)
    wavelengths = wavelength * (1.0 + beam.bandwidth / _FWHM * rng.permutation(quantiles))
    sizes = crystal.domain_size * np.exp(0.1 * rng.standard_normal(samples))
    widths = _SCHERRER / _FWHM / sizes
    weights = _SCHERRER / _FWHM / crystal.domain_size / widths / samples
    smear = float(np.abs(wavelengths / wavelength - 1.0).max() + np.linalg.norm(vectors, axis=1).max())
    return Blocks(
        matrices=Rotation.from_rotvec(vectors).as_matrix() @ crystal.A,
        wavelengths=wavelengths,
        widths=widths,
        weights=weights,
        reach=np.array([4.5 * float(widths.max()) + pixel, smear]),
    )

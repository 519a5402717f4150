"""What `xfelproc.simulation.observations` simulates."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ObservationSettings:
    """What is simulated. Spreads are standard deviations (of the logarithm for scales and widths); 0 turns an error off."""

    cell: tuple[float, float, float, float, float, float] = (79.1, 79.1, 38.0, 90.0, 90.0, 90.0)
    space_group: str = "P 43 21 2"
    d_min: float = 2.0
    d_max: float = 30.0
    b_factor: float = 20.0
    """Wilson's B of the structure, Å²."""
    anomalous: float = 0.0
    """Bijvoet ratio <|ΔF|> / <F>; ΔF is normal and independent of F."""
    pump_fraction: float = 0.0
    """Share of the lattices that are of group 1, whose intensities differ by ``pump_change`` (relative, normal)."""
    pump_change: float = 0.0
    photons: float = 3000.0
    """Of a full reflection of mean intensity at q = 0 in a crystal of scale 1."""
    background: float = 150.0
    """Photons of background under a reflection; all of them are noise."""
    background_spread: float = 0.2
    scale_spread: float = 0.5
    b_spread: float = 0.0
    """Of the crystals' B about 0, Å²."""
    width: float = 4e-4
    """Standard deviation of the Gaussian of partiality in the excitation error at q = 0, 1/Å.

    w² = width² + (mosaicity q)² + (bandwidth λ q² / 2)².
    """
    width_spread: float = 0.25
    mosaicity: float = 5e-4
    """Growth of the width with q, rad."""
    mosaicity_spread: float = 0.0
    bandwidth: float = 0.0
    """Relative standard deviation of the spectrum of a shot."""
    lorentzian: float = 0.0
    """Share of a Lorentzian of the same half-width in the partiality."""
    keep_area: bool = True
    """A wider profile is lower by width / w; otherwise its peak is 1."""
    reach: float = 3.0
    """Reflections are integrated up to this number of mean widths from the Ewald sphere."""
    wavelength: float = 1.305
    wavelength_jitter: float = 0.0
    """Relative, of the shots' wavelengths, recorded."""
    wavelength_error: float = 0.0
    """Relative, of what is recorded."""
    misset: float = 0.0
    """Error of the stated orientation about each axis, degrees."""
    cell_spread: float = 0.0
    """Relative, of the true cell lengths; the stated cells are the mean one where not ``cell_known``."""
    cell_known: bool = True
    outlier_lattices: float = 0.0
    """Share of lattices whose reflections are of no structure: intensities and partialities of others."""
    outlier_observations: float = 0.0
    outlier_size: float = 5.0
    """Mean of what is added to an outlier, in mean full intensities of its lattice."""
    settings: tuple[str, ...] = ()
    """Operators ("k,h,-l") of which each lattice is stated under one at random; (): the right one."""
    error_intensity: float = 0.0
    """Relative error of an observation beside counting."""
    error_partiality: float = 0.0
    """Error of an observation in units of the full intensity."""
    sigma_factor: float = 1.0
    """Stated σ over the σ by counting."""
    polarization: float = 0.99
    """Share of the beam with its electric field horizontal."""
    distance: float = 100.0
    """mm; the detector is a plane, its pixels of 0.1 mm are counted from (0, 0), the beam meets it at (1000, 1000)."""
    seed: int = 1

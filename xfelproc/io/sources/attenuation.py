"""Attenuation coefficients of sensor materials, for the parallax."""

from __future__ import annotations

import math

from xfelproc.models.conventions import HC

# (lowest, highest energy in eV, coefficients of ln(μ mm) as a polynomial in ln(E / 20 keV)): fits, to 0.5 %, of the total
# attenuation in the tables of Elam, Ravel & Sieber (2002), Radiat. Phys. Chem. 63, 121; densities 2.33 (Si), 5.85 (CdTe) and
# 5.32 (GaAs) g/cm³. A boundary at which the material changes by a step is an absorption edge.
_Segment = tuple[float, float, tuple[float, ...]]
_MATERIALS: dict[str, tuple[_Segment, ...]] = {
    "Si": (
        (3000.0, 8000.0, (0.727306, -0.836948, 2.35413, 1.16625, 0.200719)),
        (8000.0, 30000.0, (0.0391907, -2.89067, 0.145864, 0.186247, 0.065508)),
        (30000.0, 150000.0, (-0.0847091, -2.12328, -1.63784, 2.07015, -0.748327, 0.0910121)),
    ),
    "CdTe": (
        (4939.0, 26711.0, (2.52839, -2.69517, -0.00441819, 0.00482079, -0.0127025)),
        (26711.0, 31814.0, (3.57915, -2.50866, -0.0923677)),
        (31814.0, 150000.0, (4.17882, -2.4417, -0.108282, -0.0599082, 0.0385337)),
    ),
    "GaAs": (
        (4000.0, 10367.0, (1.07773, -2.79904, -0.0367565)),
        (10367.0, 11867.0, (2.50195, -2.60848, -0.0245224)),
        (11867.0, 40000.0, (3.12148, -2.71687, -0.120459, 0.0735008)),
        (40000.0, 150000.0, (2.97411, -2.22573, -0.664499, 0.268291)),
    ),
}

MATERIALS = tuple(_MATERIALS)

_NAMES = {"silicon": "Si", "si": "Si", "cdte": "CdTe", "cadmium telluride": "CdTe", "gaas": "GaAs", "gallium arsenide": "GaAs"}


def material_of(text: str) -> str:
    """Return the symbol of a sensor material named in a header ("Silicon", "CdTe", ...); empty if it is not known."""
    return _NAMES.get(text.strip().lower(), "")


def attenuation(material: str, wavelength: float) -> float:
    """Return μ in 1/mm of ``material`` at ``wavelength`` (Å); 0 where the material or the energy is not in the table."""
    if wavelength <= 0:
        return 0.0
    energy = HC / wavelength
    for low, high, coefficients in _MATERIALS.get(material, ()):
        if low <= energy < high:
            x = math.log(energy / 20000.0)
            return math.exp(sum(c * x**k for k, c in enumerate(coefficients)))
    return 0.0

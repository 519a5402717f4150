"""Intensities calculated from coordinates, with a flat bulk solvent, by gemmi."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np

from xfelproc.errors import DataError
from xfelproc.io.exchange.reference import ReferenceData

K_SOLVENT, B_SOLVENT = 0.35, 46.0
"""Usual density (e/Å³) and B (Å²) of bulk solvent (Fokine & Urzhumtsev 2002, Acta Cryst. D58, 1387)."""
COORDINATES = (".pdb", ".ent", ".cif", ".mmcif")


def has_coordinates(path: Path) -> bool:
    """Return whether a file holds coordinates, by its name, and for mmCIF by what is in it."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".pdb", ".ent")) and not name.endswith("-sf.ent"):
        return True
    if not name.endswith((".cif", ".mmcif")):
        return False
    try:
        return any(block.find_loop("_atom_site.Cartn_x") for block in gemmi.cif.read(str(path)))
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"cannot be read as mmCIF: {error}", path) from error


def model_intensities(path: Path, d_min: float) -> ReferenceData:
    """Return |F_calc + F_solvent|² of the first model of a file to a resolution, Å.

    Raises
    ------
    DataError
        If it cannot be read, or has no atoms, cell or space group.
    """
    try:
        structure = gemmi.read_structure(str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"cannot be read as coordinates: {error}", path) from error
    group = structure.find_spacegroup()
    if not len(structure) or not structure.cell.is_crystal() or group is None:
        raise DataError("has no atoms, no cell or no space group: give a model of a crystal", path)
    structure.setup_cell_images()
    model = structure[0]
    density = gemmi.DensityCalculatorX()
    density.d_min = d_min
    density.set_refmac_compatible_blur(model)
    density.grid.setup_from(structure)
    density.put_model_density_on_grid(model)
    atoms = gemmi.transform_map_to_f_phi(density.grid).prepare_asu_data(dmin=d_min, mott_bethe=False, unblur=density.blur)
    mask = gemmi.FloatGrid()
    mask.setup_from(structure, spacing=min(0.5 * d_min, 1.0))
    gemmi.SolventMasker(gemmi.AtomicRadiiSet.Cctbx).put_mask_on_float_grid(mask, model)
    solvent = gemmi.transform_map_to_f_phi(mask).prepare_asu_data(dmin=d_min)
    if not np.array_equal(atoms.miller_array, solvent.miller_array):
        raise DataError(f"structure factors of atoms and solvent are not of the same reflections to {d_min} Å", path)
    s2 = np.asarray(structure.cell.calculate_1_d2_array(atoms.miller_array), dtype=np.float64)
    f = np.asarray(atoms.value_array) + K_SOLVENT * np.exp(-0.25 * B_SOLVENT * s2) * np.asarray(solvent.value_array)
    a, b, c, alpha, beta, gamma = structure.cell.parameters
    intensity = np.abs(f).astype(np.float64) ** 2
    cell = (a, b, c, alpha, beta, gamma)
    return ReferenceData(atoms.miller_array.astype(np.int32), intensity, np.zeros(len(intensity)), s2, cell, group.xhm(), "F_calc")

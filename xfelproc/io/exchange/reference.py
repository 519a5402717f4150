"""Reference intensities: merged MTZ or structure-factor mmCIF of this or another program, read by gemmi."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError

INTENSITIES = (("IMEAN", "SIGIMEAN"), ("I", "SIGI"), ("I-obs", "SIGI-obs"), ("Iobs", "SIGIobs"))
AMPLITUDES = (
    ("F", "SIGF"),
    ("FP", "SIGFP"),
    ("F-obs", "SIGF-obs"),
    ("F-obs-filtered", "SIGF-obs-filtered"),
    ("FMODEL", ""),
    ("F-model", ""),
    ("FC", ""),
    ("FC_ALL", ""),
)


@dataclass(frozen=True, eq=False)
class ReferenceData:
    """``hkl`` (n, 3), ``intensity`` and ``sigma`` (0: not known) of reflections; ``columns`` are the labels they come from."""

    hkl: NDArray[np.int32]
    intensity: NDArray[np.float64]
    sigma: NDArray[np.float64]
    inverse_d2: NDArray[np.float64]
    cell: tuple[float, float, float, float, float, float]
    space_group: str
    columns: str


def read_reference(path: Path) -> ReferenceData:
    """Return the intensities of a file: mean ones, else I(+) and I(-), else squares of amplitudes, measured before calculated.

    Raises
    ------
    DataError
        If it cannot be read, or has none of these.
    """
    mtz = _opened(path)
    if mtz.spacegroup is None:
        raise DataError("the space group is not known: set it in the file's header", path)
    data, at = np.array(mtz, copy=True).astype(np.float64), {label: i for i, label in enumerate(mtz.column_labels())}
    hkl = np.rint(data[:, :3]).astype(np.int32)
    found = _columns(data, at)
    if found is None:
        raise DataError(f"no intensities or amplitudes under a known name; its columns are {', '.join(at)}", path)
    label, intensity, sigma = found
    rows = np.tile(np.arange(len(hkl)), len(intensity) // max(1, len(hkl)))
    good = np.isfinite(intensity)
    cell = mtz.get_cell()
    a, b, c, alpha, beta, gamma = cell.parameters
    return ReferenceData(
        hkl=hkl[rows][good],
        intensity=intensity[good],
        sigma=np.nan_to_num(sigma[good]),
        inverse_d2=np.asarray(cell.calculate_1_d2_array(hkl[rows][good]), dtype=np.float64),
        cell=(a, b, c, alpha, beta, gamma),
        space_group=mtz.spacegroup.xhm(),
        columns=label,
    )


def _opened(path: Path) -> gemmi.Mtz:
    try:
        if path.suffix.lower() in (".cif", ".mmcif", ".ent"):
            blocks = gemmi.as_refln_blocks(gemmi.cif.read(str(path)))
            return gemmi.CifToMtz().convert_block_to_mtz(blocks[0])
        return gemmi.read_mtz_file(str(path))
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise DataError(f"cannot be read as MTZ or structure-factor mmCIF: {error}", path) from error


def _columns(data: NDArray[np.float64], at: dict[str, int]) -> tuple[str, NDArray[np.float64], NDArray[np.float64]] | None:
    nothing = np.zeros(len(data))
    for label, sigma in INTENSITIES:
        if label in at:
            return label, data[:, at[label]], data[:, at[sigma]] if sigma in at else nothing
    if {"I(+)", "SIGI(+)", "I(-)", "SIGI(-)"} <= at.keys():
        both = [np.concatenate([data[:, at[f"{name}(+)"]], data[:, at[f"{name}(-)"]]]) for name in ("I", "SIGI")]
        return "I(+), I(-)", both[0], both[1]
    for label, sigma in AMPLITUDES:
        if label in at:
            f = data[:, at[label]]
            return label, f**2, 2.0 * np.abs(f) * data[:, at[sigma]] if sigma in at else nothing
    return None

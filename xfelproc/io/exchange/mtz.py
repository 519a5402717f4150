"""MTZ files, merged and unmerged, written and read by gemmi; `mtz_pieces` writes the unmerged ones.

The bytes depend on the data alone: no time, path, host or user is written. The file format is described in the CCP4
documentation (``mtzformat``); batch headers follow its list of words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.geometry.cells import b_matrix
from xfelproc.models.experiment import Crystal, as_matrix
from xfelproc.models.tables import AmplitudeTable, MergedTable, Table

Cell = Sequence[float]
Floats = NDArray[np.float64]

HISTORY_LENGTH = 80
TITLE_LENGTH = 70
MAX_HISTORY = 30

MERGED_COLUMNS = (
    ("FreeR_flag", "I", "free"),
    ("IMEAN", "J", "intensity"),
    ("SIGIMEAN", "Q", "sigma"),
    ("I(+)", "K", "intensity_plus"),
    ("SIGI(+)", "M", "sigma_plus"),
    ("I(-)", "K", "intensity_minus"),
    ("SIGI(-)", "M", "sigma_minus"),
    ("N(+)", "I", "n_plus"),
    ("N(-)", "I", "n_minus"),
    ("MULTIPLICITY", "I", "multiplicity"),
)

AMPLITUDE_COLUMNS = (
    ("F", "F", "amplitude"),
    ("SIGF", "Q", "sigma"),
    ("DANO", "D", "anomalous"),
    ("SIGDANO", "Q", "sigma_anomalous"),
    ("F(+)", "G", "amplitude_plus"),
    ("SIGF(+)", "L", "sigma_plus"),
    ("F(-)", "G", "amplitude_minus"),
    ("SIGF(-)", "L", "sigma_minus"),
)

HALF_COLUMNS = (
    ("FreeR_flag", "I", "free"),
    ("IMEAN", "J", "half{}"),
    ("SIGIMEAN", "Q", "sigma_half{}"),
    ("MULTIPLICITY", "I", "n_half{}"),
)

UNMERGED_COLUMNS = (
    ("M/ISYM", "Y"),
    ("BATCH", "B"),
    ("I", "J"),
    ("SIGI", "Q"),
    ("SCALEUSED", "R"),
    ("FRACTIONCALC", "R"),
    ("XDET", "R"),
    ("YDET", "R"),
    ("LP", "R"),
    ("EXCITATION", "R"),
    ("PANEL", "I"),
    ("FLAG", "I"),
)


@dataclass(frozen=True)
class MtzHeader:
    """What an MTZ says of all its reflections. ``wavelength`` is in Å; ``notes`` become history lines."""

    cell: tuple[float, float, float, float, float, float]
    space_group: str
    wavelength: float
    title: str = "xfelproc merged"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BatchModel:
    """One lattice for the batch headers: its matrix A (3, 3; columns a*, b*, c* in 1/Å), wavelength (Å) and distance (mm)."""

    a_matrix: Floats
    wavelength: float
    distance: float = 0.0
    bandwidth: float = 0.0


@dataclass(frozen=True)
class UnmergedData:
    """An unmerged MTZ as read: indices as observed (n, 3), intensities, sigmas, batch numbers, cell and space group."""

    hkl: NDArray[np.int32]
    intensity: Floats
    sigma: Floats
    batch: NDArray[np.int64]
    cell: tuple[float, float, float, float, float, float]
    space_group: str
    wavelength: float


def new_mtz(header: MtzHeader) -> gemmi.Mtz:
    """Return an MTZ of no columns but H, K, L: title, cell, symmetry, history."""
    mtz = gemmi.Mtz(with_base=True)
    mtz.title = header.title[:TITLE_LENGTH]
    mtz.spacegroup = gemmi.find_spacegroup_by_name(header.space_group)
    mtz.history = _history(header.notes)
    dataset = mtz.add_dataset("xfelproc")
    dataset.project_name = "xfelproc"
    dataset.crystal_name = "crystal"
    dataset.wavelength = header.wavelength
    mtz.set_cell_for_all(gemmi.UnitCell(*header.cell))
    return mtz


def _history(notes: Sequence[str]) -> list[str]:
    """Return notes broken into ASCII lines of 80 characters, at most 30."""
    lines: list[str] = []
    for note in notes:
        words, line = note.encode("ascii", "replace").decode().split(), ""
        for word in words:
            if line and len(line) + 1 + len(word) > HISTORY_LENGTH:
                lines.append(line)
                line = " "
            line = f"{line} {word}" if line.strip() else line + word
        lines.append(line)
    # padded, since the format has lines of exactly this length
    return [line[:HISTORY_LENGTH].ljust(HISTORY_LENGTH) for line in lines[:MAX_HISTORY]]


def merged_mtz(merged: MergedTable, header: MtzHeader, amplitudes: AmplitudeTable | None = None) -> bytes:
    """Return the bytes of a merged MTZ.

    Reflections without one of the Friedel mates have that mate missing; a centric one has I(+) alone. FreeR_flag counts from
    0, and 0 is the test set (CCP4's way).

    Parameters
    ----------
    merged
        Unique reflections, those that were not measured with intensity NaN.
    header
        Cell, space group, title, notes.
    amplitudes
        Of the same rows; None: intensities alone.

    Raises
    ------
    DataError
        If there is no reflection: an MTZ of none cannot be read by anyone.
    """
    if not len(merged):
        raise DataError(
            "no reflection was merged, so there is no MTZ to write: lower merge.min_multiplicity or merge.min_partiality"
        )
    parts: list[tuple[Table, tuple[tuple[str, str, str], ...]]] = [(merged, MERGED_COLUMNS)]
    if amplitudes is not None:
        parts.append((amplitudes, AMPLITUDE_COLUMNS))
    return _reflections_mtz(merged["hkl"], parts, header)


def half_mtz(merged: MergedTable, half: int, header: MtzHeader) -> bytes:
    """Return the bytes of the MTZ of one half-set (1 or 2): the reflections that it measured.

    Raises
    ------
    DataError
        If there is none.
    """
    rows = merged.select(np.isfinite(merged[f"half{half}"]))
    if not len(rows):
        raise DataError(f"half-set {half} has no reflection")
    # tables of before these columns have zeros in them, which nobody may take for errors
    sigma = np.where(rows[f"sigma_half{half}"] > 0, rows[f"sigma_half{half}"], np.nan)
    rows = rows.replace(**{f"sigma_half{half}": sigma})
    columns = tuple((label, kind, name.format(half)) for label, kind, name in HALF_COLUMNS)
    return _reflections_mtz(rows["hkl"], [(rows, columns)], header)


def _reflections_mtz(
    hkl: NDArray[np.int32], parts: Sequence[tuple[Table, tuple[tuple[str, str, str], ...]]], header: MtzHeader
) -> bytes:
    mtz = new_mtz(header)
    columns = [np.asarray(hkl[:, i], dtype=np.float32) for i in range(3)]
    for table, shown in parts:
        for label, kind, name in shown:
            mtz.add_column(label, kind, dataset_id=1)
            columns.append(table[name].astype(np.float32))
    mtz.set_data(np.column_stack(columns))
    mtz.sort_order = [1, 2, 3, 0, 0]
    return bytes(mtz.write_to_bytes())


def batch_header(number: int, model: BatchModel) -> gemmi.Mtz.Batch:
    """Return the header of lattice ``number``: cell, orientation U in the laboratory, a still (no rotation), the beam.

    The frame of the U matrix is ours (beam along -z); positions of the words are those of the format's description.
    """
    batch = gemmi.Mtz.Batch()
    batch.number = number + 1
    batch.title = f"lattice {number + 1}"
    batch.dataset_id = 1
    cell, u = cell_and_orientation(model.a_matrix)
    batch.cell = gemmi.UnitCell(*cell)
    batch.wavelength = model.wavelength
    batch.axes = ["AXIS"]
    ints, floats = batch.ints, batch.floats
    ints[12], ints[14], ints[15], ints[17], ints[18], ints[19] = (
        1,
        2,
        1,
        1,
        1,
        1,
    )  # crystal, area detector, axis, axes, beam, detectors
    for i in range(9):
        floats[6 + i] = float(u[i % 3, i // 3])  # by columns, as Fortran stores it
    floats[38], floats[43], floats[45] = 1.0, 1.0, 1.0  # scan axis (x), batch scale, scale of sigmas
    floats[59] = 1.0  # first goniometer axis (x)
    floats[80], floats[81], floats[82] = 0.0, 0.0, -1.0  # the idealised beam's direction
    floats[83], floats[84], floats[85] = 0.0, 0.0, -1.0
    floats[87] = model.bandwidth
    floats[111] = model.distance
    return batch


def cell_and_orientation(a_matrix: Floats) -> tuple[tuple[float, ...], Floats]:
    """Return the cell (Å, degrees) and the rotation U with A = U B, B as in `geometry.cells.b_matrix`."""
    crystal = Crystal(as_matrix(a_matrix))
    u = np.asarray(a_matrix, dtype=np.float64) @ np.linalg.inv(b_matrix(crystal.cell))
    return crystal.cell, u


def read_unmerged(path: Path) -> UnmergedData:
    """Return the observations of an unmerged MTZ.

    Raises
    ------
    DataError
        If the file is no MTZ, or has no column of intensities and batches.
    """
    try:
        mtz = gemmi.read_mtz_file(str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"cannot be read as MTZ: {error}", path) from error
    labels = mtz.column_labels()
    missing = [label for label in ("M/ISYM", "BATCH", "I", "SIGI") if label not in labels]
    if missing:
        raise DataError(f"not an unmerged MTZ: it has no column {', '.join(missing)} (columns: {', '.join(labels)})", path)
    if mtz.spacegroup is None:
        raise DataError("the space group is not known: set it in the file's header", path)
    mtz.switch_to_original_hkl()
    data = np.array(mtz, copy=True)
    at = {label: i for i, label in enumerate(labels)}
    good = np.isfinite(data[:, at["I"]]) & (data[:, at["SIGI"]] > 0)
    data = data[good].astype(np.float64)
    a, b, c, alpha, beta, gamma = mtz.cell.parameters
    return UnmergedData(
        hkl=np.rint(data[:, :3]).astype(np.int32),
        intensity=data[:, at["I"]],
        sigma=data[:, at["SIGI"]],
        batch=data[:, at["BATCH"]].astype(np.int64),
        cell=(a, b, c, alpha, beta, gamma),
        space_group=mtz.spacegroup.xhm(),
        wavelength=float(mtz.datasets[-1].wavelength),
    )

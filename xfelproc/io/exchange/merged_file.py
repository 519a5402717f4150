"""``merged.h5``: the merged reflections of a run with all columns and digits, from which exports are made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xfelproc.errors import DataError
from xfelproc.io.store import get_table, opened, to_bytes
from xfelproc.models.tables import AmplitudeTable, MergedTable

FORMAT = 1


@dataclass(frozen=True)
class MergedData:
    """Merged reflections, those not measured with intensity NaN, their amplitudes, cell (Å, degrees), symmetry, wavelength (Å)."""

    merged: MergedTable
    amplitudes: AmplitudeTable
    cell: tuple[float, float, float, float, float, float]
    space_group: str
    wavelength: float
    notes: tuple[str, ...] = ()


def merged_bytes(data: MergedData) -> bytes:
    """Return the file's bytes."""
    attributes = {
        "format": FORMAT,
        "cell": list(data.cell),
        "space_group": data.space_group,
        "wavelength": data.wavelength,
        "notes": "\n".join(data.notes),
    }
    return to_bytes(attributes, {"merged": data.merged, "amplitudes": data.amplitudes}, {})


def read_merged(path: Path) -> MergedData:
    """Read the file.

    Raises
    ------
    DataError
        If it is damaged, or of another format.
    """
    with opened(path) as file:
        if int(file.attrs.get("format", 0)) != FORMAT:
            raise DataError(f"format {file.attrs.get('format')} of merged data is not known (known: {FORMAT})", path)
        a, b, c, alpha, beta, gamma = (float(v) for v in file.attrs["cell"])
        notes = str(file.attrs["notes"])
        return MergedData(
            get_table(file, "merged", MergedTable),
            get_table(file, "amplitudes", AmplitudeTable),
            (a, b, c, alpha, beta, gamma),
            str(file.attrs["space_group"]),
            float(file.attrs["wavelength"]),
            tuple(notes.split("\n")) if notes else (),
        )

"""Files of XDS: models (XPARM.XDS), spots (SPOT.XDS) and reflections (INTEGRATE.HKL, XDS_ASCII.HKL).

XDS has a laboratory frame of the user's choice; its files are taken to ours by half a turn about x, (x, -y, -z), which takes
the usual beam along +z to -z. Its pixels count from 1 at the first pixel's centre, ours from 0.5, and its frame coordinates
are 0 at the start of the first image of the scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.models.experiment import Beam, Crystal, Detector, Experiment, Goniometer, Panel, Scan, as_matrix, as_vector
from xfelproc.models.tables import SweepSpotTable

Floats = NDArray[np.float64]

TO_OURS: Floats = np.diag([1.0, -1.0, -1.0])
"""Takes the laboratory frame of XDS to ours, and back."""
PIXEL = 0.5
"""What to take from pixel coordinates of XDS to have ours."""


def models_of_xds(
    axes: Floats, axis: Floats, beam: Floats, detector: tuple[Floats, Floats, float, float, float], panel: Panel, scan: Scan
) -> tuple[Beam, Detector, Goniometer, NDArray[np.float64]]:
    """Return beam, detector, goniometer and A (3, 3) of the quantities that XDS prints.

    Parameters
    ----------
    axes
        (3, 3) rows a, b, c in Å at angle 0, ``axis`` of rotation and ``beam`` (1/Å, its length 1/λ), all in its laboratory.
    detector
        Directions of the detector's x and y, ORGX, ORGY (px) and the distance (mm).
    panel
        Pixel size and number of pixels.
    """
    fast, slow, orgx, orgy, distance = detector
    normal = np.cross(fast, slow)
    corner = fast * (PIXEL - orgx) * panel.pixel_size[0] + slow * (PIXEL - orgy) * panel.pixel_size[1] + normal * distance
    placed = Panel(
        panel.name,
        as_vector(TO_OURS @ fast),
        as_vector(TO_OURS @ slow),
        as_vector(TO_OURS @ corner),
        panel.pixel_size,
        panel.image_size,
    )
    length = float(np.linalg.norm(beam))
    model = Beam(1.0 / length, as_vector(-(TO_OURS @ beam) / length))
    goniometer = Goniometer((as_vector(TO_OURS @ axis / np.linalg.norm(axis)),), (scan.oscillation[0],), ("spindle",), 0)
    return model, Detector((placed,)), goniometer, np.asarray(np.linalg.inv(axes @ TO_OURS))


def read_xparm(path: Path) -> Experiment:
    """Return the models of an XPARM.XDS or GXPARM.XDS of one segment; the scan has one frame, as the file does not say how many.

    Raises
    ------
    DataError
        If the file is not of this kind, or has several detector segments.
    """
    lines = path.read_text(errors="replace").splitlines()
    if not lines or "XPARM.XDS" not in lines[0]:
        raise DataError(f"{path}: not an XPARM.XDS file (its first line must say so)")
    try:
        numbers = [np.array(line.split(), dtype=np.float64) for line in lines[1:]]
        frame, start, width, *axis = numbers[0]
        wavelength, *direction = numbers[1]
        cell_axes = np.array(numbers[3:6])
        segments, nx, ny, qx, qy = numbers[6]
        orgx, orgy, distance = numbers[7]
        fast, slow = numbers[8], numbers[9]
        group = int(numbers[2][0])
    except (ValueError, IndexError) as error:
        raise DataError(f"{path}: cannot be read as XPARM.XDS ({error}): was it cut short?") from error
    if int(segments) != 1:
        raise DataError(f"{path}: {int(segments)} detector segments; only one is read: give the geometry by [input] geometry")
    panel = Panel("detector", fast, slow, (0.0, 0.0, 0.0), (float(qx), float(qy)), (int(nx), int(ny)))  # type: ignore[arg-type]
    scan = Scan((float(start), float(width)), (int(frame), int(frame)))
    vector = np.array(direction)
    beam, detector, goniometer, a = models_of_xds(
        cell_axes, np.array(axis), vector / np.linalg.norm(vector) / wavelength, (fast, slow, orgx, orgy, distance), panel, scan
    )
    symbol = gemmi.find_spacegroup_by_number(group)
    return Experiment(beam, detector, goniometer, scan, Crystal(as_matrix(a), symbol.hm if symbol else "P 1"))


def read_spot_xds(path: Path) -> tuple[SweepSpotTable, NDArray[np.int32]]:
    """Return the spots of a SPOT.XDS (frame coordinates from the start of the scan), and their indices (n, 3), 0 where there are
    none.

    Raises
    ------
    DataError
        If a line has not 4 or more numbers.
    """
    try:
        rows = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as SPOT.XDS: {error}") from error
    if rows.shape[1] < 4:
        raise DataError(f"{path}: {rows.shape[1]} columns; a SPOT.XDS has x, y, z, intensity and perhaps the segment and h, k, l")
    hkl = rows[:, -3:].astype(np.int32) if rows.shape[1] >= 7 else np.zeros((len(rows), 3), dtype=np.int32)
    spots = SweepSpotTable(fast=rows[:, 0] - PIXEL, slow=rows[:, 1] - PIXEL, z=rows[:, 2], intensity=rows[:, 3])
    return spots, hkl


@dataclass(frozen=True)
class XdsReflections:
    """Reflections of an INTEGRATE.HKL or XDS_ASCII.HKL: positions are those calculated, in our pixels and frame coordinates."""

    hkl: NDArray[np.int32]
    intensity: Floats
    sigma: Floats
    fast: Floats
    slow: Floats
    z: Floats
    cell: tuple[float, ...]
    space_group: str
    wavelength: float


def read_xds_reflections(path: Path) -> XdsReflections:
    """Return the observations of an INTEGRATE.HKL or XDS_ASCII.HKL; those with a negative σ (misfits) are left out.

    Raises
    ------
    DataError
        If gemmi cannot read the file.
    """
    try:
        found = gemmi.read_xds_ascii(str(path))
    except (RuntimeError, OSError) as error:
        raise DataError(f"{path}: cannot be read as INTEGRATE.HKL or XDS_ASCII.HKL: {error}") from error
    sigma = np.array(found.sigma_array, dtype=np.float64)
    good = sigma > 0
    group = gemmi.find_spacegroup_by_number(found.spacegroup_number)
    return XdsReflections(
        np.array(found.miller_array, dtype=np.int32)[good],
        np.array(found.iobs_array, dtype=np.float64)[good],
        sigma[good],
        np.array(found.xd_array, dtype=np.float64)[good] - PIXEL,
        np.array(found.yd_array, dtype=np.float64)[good] - PIXEL,
        np.array(found.zd_array, dtype=np.float64)[good],
        tuple(found.cell_constants),
        group.hm if group else "P 1",
        float(found.wavelength),
    )

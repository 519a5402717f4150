"""Panel, Detector, Beam, Goniometer, Scan, Crystal, Experiment: names and meanings as in dxtbx."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Vector3 = tuple[float, float, float]
Matrix3 = tuple[Vector3, Vector3, Vector3]


def as_vector(values: object) -> Vector3:
    """Return three floats as a tuple."""
    x, y, z = (float(v) for v in np.asarray(values, dtype=np.float64).reshape(3))
    return (x, y, z)


def as_matrix(values: object) -> Matrix3:
    """Return a 3 x 3 matrix as nested tuples of its rows."""
    rows = np.asarray(values, dtype=np.float64).reshape(3, 3)
    return (as_vector(rows[0]), as_vector(rows[1]), as_vector(rows[2]))


@dataclass(frozen=True)
class Panel:
    """A flat rectangle of pixels, in the laboratory frame.

    ``origin`` (mm) is the outer corner of the first pixel; ``fast_axis`` and ``slow_axis`` are unit vectors; sizes are
    (fast, slow). Values below ``trusted_range[0]`` or above ``trusted_range[1]`` (raw units) are not measurements.
    ``mu`` (1/mm) with ``thickness`` (mm) gives the parallax of the sensor; either 0 means none. ``gain`` is ADU per photon.
    ``mask`` holds untrusted rectangles (fast0, slow0, fast1, slow1), half open, in pixels.
    """

    name: str
    fast_axis: Vector3
    slow_axis: Vector3
    origin: Vector3
    pixel_size: tuple[float, float]
    image_size: tuple[int, int]
    trusted_range: tuple[float, float] = (float("-inf"), float("inf"))
    thickness: float = 0.0
    material: str = ""
    mu: float = 0.0
    gain: float = 1.0
    pedestal: float = 0.0
    raw_image_offset: tuple[int, int] = (0, 0)
    mask: tuple[tuple[int, int, int, int], ...] = ()

    @property
    def normal(self) -> Vector3:
        """Unit normal, fast × slow."""
        return as_vector(np.cross(self.fast_axis, self.slow_axis))


@dataclass(frozen=True)
class DetectorGroup:
    """A node of the detector's hierarchy (detector > quadrant > sensor > ASIC); its frame is in the laboratory."""

    name: str
    children: tuple[DetectorGroup | int, ...]
    fast_axis: Vector3 = (1.0, 0.0, 0.0)
    slow_axis: Vector3 = (0.0, 1.0, 0.0)
    origin: Vector3 = (0.0, 0.0, 0.0)

    def panels(self) -> tuple[int, ...]:
        """Return the indices of all panels below this node."""
        found: list[int] = []
        for child in self.children:
            found.extend((child,) if isinstance(child, int) else child.panels())
        return tuple(found)


Carried = TypeVar("Carried", Panel, DetectorGroup)


@dataclass(frozen=True)
class Detector:
    """Panels, and the tree that says how they hang together (None: all on one level)."""

    panels: tuple[Panel, ...]
    hierarchy: DetectorGroup | None = None

    def __len__(self) -> int:
        return len(self.panels)

    @property
    def stack_shape(self) -> tuple[int, int, int]:
        """Shape (panel, slow, fast) of a frame's pixels; smaller panels are padded."""
        return (
            len(self.panels),
            max(p.image_size[1] for p in self.panels),
            max(p.image_size[0] for p in self.panels),
        )

    @cached_property
    def d_matrices(self) -> NDArray[np.float64]:
        """(panel, 3, 3) with columns fast axis, slow axis, origin: lab = d (x_mm, y_mm, 1)."""
        return np.array([np.column_stack([p.fast_axis, p.slow_axis, p.origin]) for p in self.panels])

    @cached_property
    def inverse_d_matrices(self) -> NDArray[np.float64]:
        """(panel, 3, 3) inverses of `d_matrices`."""
        return np.linalg.inv(self.d_matrices).astype(np.float64)

    @cached_property
    def pixel_sizes(self) -> NDArray[np.float64]:
        """(panel, 2) pixel size (fast, slow) in mm."""
        return np.array([p.pixel_size for p in self.panels], dtype=np.float64)

    @cached_property
    def image_sizes(self) -> NDArray[np.int64]:
        """(panel, 2) number of pixels (fast, slow)."""
        return np.array([p.image_size for p in self.panels], dtype=np.int64)

    @cached_property
    def sensors(self) -> NDArray[np.float64]:
        """(panel, 2) μ in 1/mm and thickness in mm; both 0 where there is no parallax model."""
        return np.array([(p.mu, p.thickness) if p.mu > 0 and p.thickness > 0 else (0.0, 0.0) for p in self.panels])

    @cached_property
    def trusted_ranges(self) -> NDArray[np.float64]:
        """(panel, 2) lowest and highest trusted raw value."""
        return np.array([p.trusted_range for p in self.panels], dtype=np.float64)

    def shifted(self, shift: tuple[float, float, float]) -> Detector:
        """Return the detector translated by ``shift`` (mm, laboratory frame)."""
        move = np.asarray(shift)
        panels = tuple(replace(p, origin=as_vector(move + p.origin)) for p in self.panels)
        return Detector(panels, None if self.hierarchy is None else _shift_group(self.hierarchy, move))

    @cached_property
    def centre(self) -> NDArray[np.float64]:
        """(3,) mean of the panels' centres, mm; the point about which `moved` tilts."""
        half = 0.5 * self.image_sizes * self.pixel_sizes
        centres = self.d_matrices @ np.column_stack([half, np.ones(len(half))])[:, :, None]
        mean: NDArray[np.float64] = centres[:, :, 0].mean(axis=0)
        return mean

    def moved(self, shift: Vector3, tilt: tuple[float, float]) -> Detector:
        """Return the detector turned about its centre by the rotation vector (``tilt``, 0) (degrees, laboratory frame), then
        translated by ``shift`` (mm).
        """
        if not any(tilt):
            return self.shifted(shift) if any(shift) else self
        angle = float(np.radians(np.hypot(*tilt)))
        x, y = np.radians(tilt) / angle
        cross = np.array([[0.0, 0.0, y], [0.0, 0.0, -x], [-y, x, 0.0]])
        turn = np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * (cross @ cross)  # Rodrigues
        move = self.centre + shift - turn @ self.centre
        panels = tuple(carried(p, turn, move) for p in self.panels)
        return Detector(panels, None if self.hierarchy is None else carried_tree(self.hierarchy, turn, move))


def carried(item: Carried, turn: NDArray[np.float64], move: NDArray[np.float64]) -> Carried:
    """Return a panel, or a group alone, turned (3, 3) about the laboratory's origin and then moved (3,), mm."""
    return replace(
        item,
        fast_axis=as_vector(turn @ item.fast_axis),
        slow_axis=as_vector(turn @ item.slow_axis),
        origin=as_vector(turn @ item.origin + move),
    )


def carried_tree(group: DetectorGroup, turn: NDArray[np.float64], move: NDArray[np.float64]) -> DetectorGroup:
    """Return a group with all groups in it, turned and moved like `carried`."""
    children = tuple(c if isinstance(c, int) else carried_tree(c, turn, move) for c in group.children)
    return replace(carried(group, turn, move), children=children)


def _shift_group(group: DetectorGroup, move: NDArray[np.float64]) -> DetectorGroup:
    children = tuple(c if isinstance(c, int) else _shift_group(c, move) for c in group.children)
    return replace(group, children=children, origin=as_vector(move + group.origin))


@dataclass(frozen=True)
class Beam:
    """The incident beam. ``direction`` points to the source; ``bandwidth`` is the relative FWHM of the spectrum.

    ``polarization_fraction`` is the fraction polarised in the plane normal to ``polarization_normal``.
    """

    wavelength: float
    direction: Vector3 = (0.0, 0.0, 1.0)
    polarization_normal: Vector3 = (0.0, 1.0, 0.0)
    polarization_fraction: float = 0.999
    divergence: float = 0.0
    bandwidth: float = 0.0
    flux: float = 0.0

    @property
    def s0(self) -> NDArray[np.float64]:
        """Incident wave vector in 1/Å, length 1/wavelength."""
        return -np.asarray(self.direction) / self.wavelength


@dataclass(frozen=True)
class Goniometer:
    """Rotation axes from the one nearest the crystal to the outermost, with their angles (degrees)."""

    axes: tuple[Vector3, ...] = ((1.0, 0.0, 0.0),)
    angles: tuple[float, ...] = (0.0,)
    names: tuple[str, ...] = ("omega",)
    scan_axis: int = 0


@dataclass(frozen=True)
class Scan:
    """Rotation angles of consecutive frames, degrees; a still has none."""

    oscillation: tuple[float, float]
    image_range: tuple[int, int]
    exposure_time: float = 0.0


@dataclass(frozen=True)
class Crystal:
    """A lattice: ``A`` (rows of the matrix whose columns are a*, b*, c*, 1/Å), its symmetry and its mosaicity.

    ``space_group`` is a Hermann-Mauguin symbol; ``domain_size`` (Å) and ``half_mosaicity`` (degrees) are the D and η/2
    of Sauter et al. (2014); 0 means not known. ``mosaic_covariance`` (xx, xy, xz, yy, yz, zz; degrees², laboratory frame) is
    that of the turns of the mosaic blocks, where it was fitted, ``dilation_variance`` that of the relative length of q (wavelength
    and cells), and ``point_variance`` (1/Å²) the rest of a lattice point's spread.
    """

    A: Matrix3
    space_group: str = "P 1"
    domain_size: float = 0.0
    half_mosaicity: float = 0.0
    mosaic_covariance: tuple[float, float, float, float, float, float] | None = None
    dilation_variance: float = 0.0
    point_variance: float = 0.0

    @cached_property
    def a_matrix(self) -> NDArray[np.float64]:
        """(3, 3) array with columns a*, b*, c* in 1/Å."""
        return np.array(self.A, dtype=np.float64)

    @cached_property
    def real_space(self) -> NDArray[np.float64]:
        """(3, 3) array with rows a, b, c in Å, laboratory frame."""
        return np.linalg.inv(self.a_matrix).astype(np.float64)

    @cached_property
    def cell(self) -> tuple[float, float, float, float, float, float]:
        """a, b, c in Å and α, β, γ in degrees."""
        rows = self.real_space
        a, b, c = (float(np.linalg.norm(row)) for row in rows)

        def angle(u: NDArray[np.float64], v: NDArray[np.float64]) -> float:
            cosine = float(u @ v / (np.linalg.norm(u) * np.linalg.norm(v)))
            return float(np.degrees(np.arccos(min(1.0, max(-1.0, cosine)))))

        return (a, b, c, angle(rows[1], rows[2]), angle(rows[2], rows[0]), angle(rows[0], rows[1]))


@dataclass(frozen=True)
class Experiment:
    """What is known about the frames of one source: models, no pixels. A still has ``scan=None``."""

    beam: Beam
    detector: Detector
    goniometer: Goniometer | None = None
    scan: Scan | None = None
    crystal: Crystal | None = None
    identifier: str = ""
    image: tuple[str, int] | None = field(default=None)

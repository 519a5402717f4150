"""What a CrystFEL geometry file says, and the models it makes.

CrystFEL's laboratory frame has z along the beam and y up, with x = y × z; ours is ``diag(-1, 1, -1)`` of it. A pixel is at
``(corner + fs i + ss j) / res`` in its panel's plane, with i and j counted from the panel's own first pixel, and at
``clen + coffset`` along z.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from xfelproc.models.conventions import FLIP_XZ, HC, MaskBit, wavelength_of
from xfelproc.models.experiment import Beam, Detector, DetectorGroup, Panel, Vector3, as_vector


@dataclass(frozen=True)
class Quantity:
    """A number in ``unit``, or (``path`` set) the HDF5 path of one; times ``factor`` it is in our unit (see `PhotonSource`)."""

    value: float | None = None
    path: str = ""
    unit: str = ""
    factor: float = 1.0

    def resolve(self, values: Mapping[str, float]) -> float | None:
        """Return the number in our unit; ``values`` has what the file holds at each path; None where it has not."""
        raw = values.get(self.path) if self.path else self.value
        return None if raw is None else raw * self.factor


@dataclass(frozen=True)
class PhotonSource:
    """How the wavelength is given: ``kind`` is photon_energy (eV), wavelength (Å) or electron_voltage (V)."""

    kind: str
    quantity: Quantity

    def wavelength(self, values: Mapping[str, float]) -> float | None:
        """Return the wavelength in Å, or None where the file has not been asked."""
        number = self.quantity.resolve(values)
        if number is None or self.kind == "wavelength":
            return number
        if self.kind == "photon_energy":
            return wavelength_of(number)
        # de Broglie: hc / sqrt(E (E + 2 m c²)), with the electron's rest energy in eV (CODATA 2018)
        return float(HC / np.sqrt(number * (number + 2 * 510998.95)))


@dataclass(frozen=True)
class MaskSpec:
    """A mask: ``data`` in ``file`` ("": the frame's own). Bad if any of ``bad_bits`` is set or any of ``good_bits`` is missing."""

    data: str
    file: str = ""
    good_bits: int = 0
    bad_bits: int = 0

    def is_bad(self, values: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Return where the mask's values mean a bad pixel."""
        bad = np.zeros(values.shape, dtype=np.bool_)
        if self.bad_bits:
            bad |= (values & values.dtype.type(self.bad_bits & _ones(values.dtype))) != 0
        if self.good_bits:
            good = values.dtype.type(self.good_bits & _ones(values.dtype))
            bad |= (values & good) != good
        return bad

    def describe(self) -> str:
        """Say in words what the mask's values mean."""
        rules = [f"bad where any bit of {self.bad_bits:#x} is set"] if self.bad_bits else []
        rules += [f"bad where any bit of {self.good_bits:#x} is missing"] if self.good_bits else []
        where = f"{self.file}:{self.data}" if self.file else self.data
        return f"mask {where}: " + ("; ".join(rules) or "no bits given, not applied")


def _ones(dtype: np.dtype[np.integer]) -> int:
    """Return all bits that fit a dtype as a non-negative number of its kind."""
    bits = int(dtype.itemsize) * 8
    return (1 << (bits - 1)) - 1 if dtype.kind == "i" else (1 << bits) - 1


@dataclass(frozen=True)
class BadRegion:
    """Pixels not to be used: ``kind`` "fsss" (both ends included, numbered as in the data) or "xy" (pixels, CrystFEL's frame)."""

    name: str
    kind: str
    limits: tuple[float, float, float, float]
    panel: str = ""


@dataclass(frozen=True)
class GeomPanel:
    """One panel as in the file; ``coffset`` in m, ``res`` in pixels per m, ``corner`` in pixels. ``dims``: the data's axes."""

    name: str
    min_fs: int
    max_fs: int
    min_ss: int
    max_ss: int
    corner: tuple[float, float]
    fs: Vector3
    ss: Vector3
    res: float
    clen: Quantity | None = None
    coffset: float = 0.0
    data: str = ""
    dims: tuple[str, ...] = ("ss", "fs")
    adu_per_photon: float | None = None
    adu_per_ev: float | None = None
    max_adu: float | None = None
    masks: tuple[MaskSpec, ...] = ()
    flags: tuple[tuple[str, float], ...] = ()
    mask_edge_pixels: int = 0
    no_index: bool = False
    saturation_map: str = ""
    saturation_map_file: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Number of pixels (fast, slow)."""
        return (self.max_fs - self.min_fs + 1, self.max_ss - self.min_ss + 1)

    def distance(self, values: Mapping[str, float]) -> float:
        """Return clen + coffset in mm; clen counts as 0 where it is not known."""
        clen = self.clen.resolve(values) if self.clen is not None else 0.0
        return (clen or 0.0) + self.coffset * 1000.0

    def model(self, values: Mapping[str, float], wavelength: float | None) -> Panel:
        """Return the panel in our laboratory frame. Axes that are not unit vectors go into the pixel size."""
        fs, ss = np.asarray(self.fs), np.asarray(self.ss)
        lengths = (float(np.linalg.norm(fs)), float(np.linalg.norm(ss)))
        unit = 1000.0 / self.res
        origin = np.array([self.corner[0] * unit, self.corner[1] * unit, self.distance(values)])
        low = max([v for kind, v in self.flags if kind == "lessthan"], default=float("-inf"))
        high = min([float("inf") if self.max_adu is None else self.max_adu])
        return Panel(
            name=self.name,
            fast_axis=as_vector(FLIP_XZ @ fs / lengths[0]),
            slow_axis=as_vector(FLIP_XZ @ ss / lengths[1]),
            origin=as_vector(FLIP_XZ @ origin),
            pixel_size=(unit * lengths[0], unit * lengths[1]),
            image_size=self.size,
            trusted_range=(low, high),
            gain=self.gain(wavelength),
            raw_image_offset=(self.min_fs, self.min_ss),
        )

    def gain(self, wavelength: float | None) -> float:
        """Return ADU per photon; 1 where the file says nothing, or gives ADU per eV and the energy is not known."""
        if self.adu_per_photon is not None:
            return self.adu_per_photon
        if self.adu_per_ev is not None and wavelength is not None:
            return self.adu_per_ev * HC / wavelength
        return 1.0


@dataclass(frozen=True)
class GeomFile:
    """A CrystFEL geometry: what it says, in its own terms. ``groups`` are rigid groups, ``collections`` sets of them."""

    panels: tuple[GeomPanel, ...]
    photons: PhotonSource | None = None
    bandwidth: float = 0.0
    bad: tuple[BadRegion, ...] = ()
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    collections: tuple[tuple[str, tuple[str, ...]], ...] = ()
    nested: tuple[tuple[str, tuple[str, ...]], ...] = ()
    shift: tuple[Quantity | None, Quantity | None] = (None, None)
    peak_list: str = ""
    peak_list_type: str = ""
    path: str = ""
    notes: tuple[str, ...] = field(default=())

    def paths(self) -> tuple[str, ...]:
        """Return the HDF5 paths whose numbers geometry and wavelength depend on."""
        quantities = [p.clen for p in self.panels] + list(self.shift) + [self.photons.quantity if self.photons else None]
        return tuple(dict.fromkeys(q.path for q in quantities if q is not None and q.path))

    def wavelength(self, values: Mapping[str, float] | None = None) -> float | None:
        """Return the wavelength in Å, or None where neither this file nor ``values`` (by HDF5 path) has it."""
        return self.photons.wavelength(values or {}) if self.photons else None

    def detector(self, values: Mapping[str, float] | None = None) -> Detector:
        """Return the detector. ``values``: numbers at `paths`; a camera length that is not among them counts as 0."""
        known = values or {}
        wavelength = self.wavelength(known)
        dx, dy = ((q.resolve(known) or 0.0) if q is not None else 0.0 for q in self.shift)
        panels = tuple(p.model(known, wavelength) for p in self.panels)
        detector = Detector(panels, self._hierarchy(panels))
        # CrystFEL's shift moves the detector, so that the pixels go by it (its x is our -x)
        return detector.shifted((-dx, dy, 0.0)) if dx or dy else detector

    @cached_property
    def nominal(self) -> Detector:
        """The detector without any value from a file."""
        return self.detector()

    def beam(self, values: Mapping[str, float] | None = None) -> Beam:
        """Return the beam; the wavelength is NaN where it is not known."""
        wavelength = self.wavelength(values)
        return Beam(wavelength=float("nan") if wavelength is None else wavelength, bandwidth=self.bandwidth)

    def _hierarchy(self, panels: tuple[Panel, ...]) -> DetectorGroup | None:
        index = {p.name: i for i, p in enumerate(panels)}
        if self.nested:
            tree = dict(self.nested)
            top = "all" if "all" in tree else self.nested[-1][0]
            return _build(top, tree, index, panels)
        levels = sorted((names for _, names in self.collections), key=len)
        members = {name: [index[p] for p in group if p in index] for name, group in self.groups}
        if not levels:
            return None
        return _nest("detector", list(range(len(panels))), [[(n, members[n]) for n in names] for names in levels], panels)

    def region_mask(self, detector: Detector) -> NDArray[np.uint8]:
        """Return the stack (panel, slow, fast) of REGION, EDGE and PADDING bits of bad regions, panel edges and unused panels."""
        mask = np.full(detector.stack_shape, MaskBit.PADDING, dtype=np.uint8)
        for number, panel in enumerate(self.panels):
            n_fast, n_slow = panel.size
            view = mask[number, :n_slow, :n_fast]
            view[...] = 0
            if panel.no_index:
                view |= np.uint8(MaskBit.REGION)
            for region in self.bad:
                _mark(view, panel, region)
            edge = panel.mask_edge_pixels
            if edge:
                inner = view[edge:-edge, edge:-edge].copy()
                view |= np.uint8(MaskBit.EDGE)
                view[edge:-edge, edge:-edge] = inner
        return mask

    def with_panels(self, panels: tuple[GeomPanel, ...]) -> GeomFile:
        """Return the geometry with other panels."""
        return replace(self, panels=panels)


def _mark(view: NDArray[np.uint8], panel: GeomPanel, region: BadRegion) -> None:
    if region.panel and region.panel != panel.name:
        return
    a0, a1, b0, b1 = region.limits
    if region.kind == "fsss":
        f0, f1 = max(0, int(a0) - panel.min_fs), int(a1) - panel.min_fs + 1
        s0, s1 = max(0, int(b0) - panel.min_ss), int(b1) - panel.min_ss + 1
        if f1 > f0 and s1 > s0:
            view[s0:s1, f0:f1] |= np.uint8(MaskBit.REGION)
        return
    fast = np.arange(view.shape[1]) + 0.5
    slow = (np.arange(view.shape[0]) + 0.5)[:, None]
    x = panel.corner[0] + panel.fs[0] * fast + panel.ss[0] * slow
    y = panel.corner[1] + panel.fs[1] * fast + panel.ss[1] * slow
    view[(x >= a0) & (x <= a1) & (y >= b0) & (y <= b1)] |= np.uint8(MaskBit.REGION)


def _centre(members: list[int], panels: tuple[Panel, ...]) -> Vector3:
    """Return the mean of the panels' centres (mm, laboratory frame)."""
    middle = np.zeros(3)
    for number in members:
        p = panels[number]
        half = [0.5 * n * size for n, size in zip(p.image_size, p.pixel_size, strict=True)]
        middle += np.asarray(p.origin) + half[0] * np.asarray(p.fast_axis) + half[1] * np.asarray(p.slow_axis)
    return as_vector(middle / max(1, len(members)))


def _nest(name: str, members: list[int], levels: list[list[tuple[str, list[int]]]], panels: tuple[Panel, ...]) -> DetectorGroup:
    """Return the tree of groups: each level's groups below the group of the level above that holds all their panels."""
    children: list[DetectorGroup | int] = []
    left = set(members)
    for depth, level in enumerate(levels):
        for group, inside in level:
            if inside and left.issuperset(inside) and (len(inside) < len(members) or depth + 1 == len(levels)):
                children.append(_nest(group, inside, levels[depth + 1 :], panels))
                left -= set(inside)
    children.extend(sorted(left))
    return DetectorGroup(name, tuple(children), origin=_centre(members, panels))


def _build(
    name: str, tree: Mapping[str, tuple[str, ...]], index: Mapping[str, int], panels: tuple[Panel, ...], above: tuple[str, ...] = ()
) -> DetectorGroup:
    children: list[DetectorGroup | int] = []
    for child in tree[name]:
        if child in tree and child not in above:
            children.append(_build(child, tree, index, panels, (*above, name)))
        elif child in index:
            children.append(index[child])
    group = DetectorGroup(name, tuple(children))
    return replace(group, origin=_centre(list(group.panels()), panels))

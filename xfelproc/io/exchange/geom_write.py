"""Writing CrystFEL geometry files, and making them of detectors that came from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from xfelproc.io.atomic import write_atomic
from xfelproc.io.exchange.geom_model import BadRegion, GeomFile, GeomPanel, PhotonSource, Quantity
from xfelproc.io.sources.masks import slab_shape
from xfelproc.models.conventions import FLIP_XZ, HC
from xfelproc.models.experiment import Detector, DetectorGroup, Experiment, Panel, Vector3, as_vector

Named = tuple[tuple[str, tuple[str, ...]], ...]


def write_geom(geom: GeomFile | Experiment, path: str | Path) -> None:
    """Write a CrystFEL geometry at full precision; the file appears whole.

    An Experiment is written by `geom_of`.
    """
    content = geom if isinstance(geom, GeomFile) else geom_of(geom)
    write_atomic(Path(path), format_geom(content).encode())


def format_geom(geom: GeomFile) -> str:
    """Return the text of a geometry file."""
    lines = list(_head(geom))
    for name, members in geom.groups:
        lines.append(f"rigid_group_{name} = {','.join(members)}")
    for name, members in geom.collections:
        lines.append(f"rigid_group_collection_{name} = {','.join(members)}")
    for name, members in geom.nested:
        lines.append(f"group_{name} = {','.join(members)}")
    for region in geom.bad:
        keys = ("min_fs", "max_fs", "min_ss", "max_ss") if region.kind == "fsss" else ("min_x", "max_x", "min_y", "max_y")
        lines += [""] + [f"{region.name}/{key} = {_text(value)}" for key, value in zip(keys, region.limits, strict=True)]
        lines += [f"{region.name}/panel = {region.panel}"] if region.panel else []
    for panel in geom.panels:
        lines += ["", *(f"{panel.name}/{key} = {value}" for key, value in _panel_lines(panel))]
    return "\n".join(lines) + "\n"


def _head(geom: GeomFile) -> Iterator[str]:
    if geom.photons is not None:
        yield f"{geom.photons.kind} = {_quantity(geom.photons.quantity)}"
    if geom.bandwidth:
        yield f"bandwidth = {geom.bandwidth!r}"
    for name, shift in zip(("x", "y"), geom.shift, strict=True):
        if shift is not None:
            yield f"detector_shift_{name} = {_quantity(shift)}"
    if geom.peak_list:
        yield f"peak_list = {geom.peak_list}"
    if geom.peak_list_type:
        yield f"peak_list_type = {geom.peak_list_type}"


def _text(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _quantity(quantity: Quantity) -> str:
    number = quantity.path if quantity.path else repr(quantity.value)
    return f"{number} {quantity.unit}".strip()


def _direction(vector: Vector3) -> str:
    """Return such as '+0.1x -0.9y +0.0z', without exponents, which CrystFEL does not read here."""
    return " ".join(f"{value:+.17f}{axis}" for value, axis in zip(vector, "xyz", strict=True))


def _panel_lines(panel: GeomPanel) -> Iterator[tuple[str, str]]:
    if panel.data:
        yield "data", panel.data
    for number, dim in enumerate(panel.dims):
        yield f"dim{number}", dim
    for key in ("min_fs", "max_fs", "min_ss", "max_ss"):
        yield key, str(getattr(panel, key))
    yield "corner_x", repr(panel.corner[0])
    yield "corner_y", repr(panel.corner[1])
    yield "fs", _direction(panel.fs)
    yield "ss", _direction(panel.ss)
    yield "res", repr(panel.res)
    if panel.clen is not None:
        yield "clen", _quantity(panel.clen)
    yield "coffset", repr(panel.coffset)
    for key, value in (("adu_per_photon", panel.adu_per_photon), ("adu_per_eV", panel.adu_per_ev), ("max_adu", panel.max_adu)):
        if value is not None:
            yield key, repr(value)
    for number, mask in enumerate(panel.masks):
        yield f"mask{number}_data", mask.data
        if mask.file:
            yield f"mask{number}_file", mask.file
        yield f"mask{number}_goodbits", hex(mask.good_bits)
        yield f"mask{number}_badbits", hex(mask.bad_bits)
    for kind, value in panel.flags:
        yield f"flag_{kind}", _text(value)
    if panel.mask_edge_pixels:
        yield "mask_edge_pixels", str(panel.mask_edge_pixels)
    if panel.no_index:
        yield "no_index", "1"
    if panel.saturation_map:
        yield "saturation_map", panel.saturation_map
    if panel.saturation_map_file:
        yield "saturation_map_file", panel.saturation_map_file


def geom_of(experiment: Experiment, data: str = "/data/data") -> GeomFile:
    """Return a CrystFEL geometry of a detector and beam.

    The panels lie in one slab where their ``raw_image_offset`` say so, else each on its own along the axis after the frames'.
    The sensor's thickness has no place in a geometry file: positions on its surface are kept.
    """
    detector, wavelength = experiment.detector, experiment.beam.wavelength
    names = unique_names([p.name for p in detector.panels])
    clen = -float(np.mean([p.origin[2] for p in detector.panels]))
    slab = in_slab(detector)
    panels = tuple(_panel(p, names[i], i, clen, data, slab, len(detector)) for i, p in enumerate(detector.panels))
    bad = tuple(
        BadRegion(f"bad_{names[i]}_{k}", "fsss", (f0 + q.min_fs, f1 - 1 + q.min_fs, s0 + q.min_ss, s1 - 1 + q.min_ss), names[i])
        for i, (p, q) in enumerate(zip(detector.panels, panels, strict=True))
        for k, (f0, s0, f1, s1) in enumerate(p.mask)
    )
    groups, collections = _rigid_groups(detector.hierarchy, names) if detector.hierarchy is not None else ((), ())
    photons = PhotonSource("photon_energy", Quantity(HC / wavelength, unit="eV")) if np.isfinite(wavelength) else None
    return GeomFile(panels, photons, experiment.beam.bandwidth, bad, groups, collections)


def in_slab(detector: Detector) -> bool:
    """Return whether the panels lie in one array (slow, fast) at their ``raw_image_offset``, none upon another."""
    if len({p.raw_image_offset for p in detector.panels}) < len(detector):
        return False
    taken = np.zeros(slab_shape(detector), dtype=np.bool_)
    for p in detector.panels:
        (f, s), (nf, ns) = p.raw_image_offset, p.image_size
        view = taken[s : s + ns, f : f + nf]
        if view.any():
            return False
        view[...] = True
    return True


def _panel(panel: Panel, name: str, number: int, clen: float, data: str, slab: bool, count: int) -> GeomPanel:
    unit = panel.pixel_size[0]
    x, y, z = FLIP_XZ @ np.asarray(panel.origin)
    fast, slow = panel.raw_image_offset if slab else (0, 0)
    low, high = panel.trusted_range
    return GeomPanel(
        name=name,
        min_fs=fast,
        max_fs=fast + panel.image_size[0] - 1,
        min_ss=slow,
        max_ss=slow + panel.image_size[1] - 1,
        corner=(float(x / unit), float(y / unit)),
        fs=as_vector(FLIP_XZ @ np.asarray(panel.fast_axis)),
        ss=as_vector(FLIP_XZ @ np.asarray(panel.slow_axis) * (panel.pixel_size[1] / unit)),
        res=1000.0 / unit,
        clen=Quantity(clen / 1000.0, unit="m", factor=1000.0),
        coffset=float(z - clen) / 1000.0,
        data=data,
        dims=("%", "ss", "fs") if slab or count == 1 else ("%", str(number), "ss", "fs"),
        adu_per_photon=panel.gain,
        max_adu=high if np.isfinite(high) else None,
        flags=(("lessthan", low),) if np.isfinite(low) else (),
    )


def unique_names(names: list[str]) -> list[str]:
    """Return names that a geometry file and HDF5 can hold: no special characters, none of CrystFEL's own, each once."""
    found: list[str] = []
    for name in names:
        clean = re.sub(r"[^A-Za-z0-9_.-]", "_", name.strip()) or "p"
        if re.match(r"(bad|rigid_group|group|mask|dim)", clean):
            clean = f"p_{clean}"
        number, trial = 0, clean
        while trial in found:
            number += 1
            trial = f"{clean}_{number}"
        found.append(trial)
    return found


def _rigid_groups(tree: DetectorGroup, names: list[str]) -> tuple[Named, Named]:
    """Return the rigid groups of a tree, and a collection for each of its levels."""
    levels: list[list[DetectorGroup]] = []
    row = [c for c in tree.children if isinstance(c, DetectorGroup)]
    while row:
        levels.append(row)
        row = [c for g in row for c in g.children if isinstance(c, DetectorGroup)]
    flat = [g for level in levels for g in level]
    group_names = iter(unique_names([g.name for g in flat]))
    groups, collections = [], []
    for depth, level in enumerate(levels):
        members = []
        for group in level:
            name = next(group_names)
            members.append(name)
            groups.append((name, tuple(names[i] for i in group.panels())))
        collections.append((f"level{depth}", tuple(members)))
    return tuple(groups), tuple(collections)

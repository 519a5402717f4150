"""Frames of CBF files: full imgCIF headers, and miniCBF ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.sources import imgcif
from xfelproc.io.sources.buffers import POOL
from xfelproc.io.sources.cbf import WIDER, BinarySection, CbfHeader, read_header, read_sections
from xfelproc.io.sources.header import Header, with_sensor
from xfelproc.io.sources.image import ImageSource, frame_number
from xfelproc.io.sources.minicbf import parse_comments, read_comments, trusted_range
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.experiment import Beam, Detector, Experiment, Scan

_STEP = 0.005

# sensors of detectors whose files do not state them: CSPAD (Hart et al. 2012, Proc. SPIE 8504, 85040C)
_KNOWN_SENSORS = {"cs pad": ("Si", 0.5), "cspad": ("Si", 0.5)}


@dataclass
class _Opened:
    """Text and sections of the file; ``block`` is None for a miniCBF."""

    header: CbfHeader
    block: gemmi.cif.Block | None
    frames: dict[str, tuple[imgcif.ArrayUse, ...]]


class CbfSource(ImageSource):
    """A CBF file: byte-offset, packed or plain, of one array or many, of one frame or several."""

    def __init__(self, path: str | Path, settings: SourceSettings) -> None:
        super().__init__(path, settings)
        self._opened: _Opened | None = None
        self.n_frames = len(self._open().frames) or 1

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_opened": None}

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels."""
        stored = self._open().header.sections[0].dtype
        return np.dtype(WIDER.get(stored, stored))

    def _open(self) -> _Opened:
        if self._opened is None:
            self._opened = _open(Path(self.path))
        return self._opened

    def read_header(self) -> Header:
        """Return the models of the header: the tables where there are any, else the comment lines."""
        opened = self._open()
        if opened.block is None:
            section = opened.header.sections[0]
            return read_comments(opened.header.text, (section.shape[2], section.shape[1]), frame_number(Path(self.path)))
        return self._imgcif(opened, opened.block, next(iter(opened.frames)))

    def _imgcif(self, opened: _Opened, block: gemmi.cif.Block, frame: str) -> Header:
        path = Path(self.path)
        tree = imgcif.read_axes(block, frame, path)
        uses = opened.frames[frame]
        detector = imgcif.read_detector(block, tree, tuple(use.array_id for use in uses), path)
        beam, notes = imgcif.read_beam(block, tree)
        goniometer, width = imgcif.read_goniometer(block, tree)
        number = frame_number(path) if self.n_frames == 1 else 1 + list(opened.frames).index(frame)
        scan = imgcif.read_scan(block, goniometer, width, number)
        if scan is None:
            notes.append("no oscillation: a still")
        comments = parse_comments(opened.header.text)
        kind = imgcif.detector_type(block) or comments.detector
        detector, more = _complete(detector, comments_range=trusted_range(comments), mini=bool(comments.values))
        material, thickness, assumed = comments.material, comments.thickness, ""
        if not material and kind.lower() in _KNOWN_SENSORS:
            material, thickness = _KNOWN_SENSORS[kind.lower()]
            assumed = f"sensor not stated: {thickness:g} mm {material} of a {kind} assumed"
        if not material:
            assumed = "sensor not stated: no parallax (set sensor_material and sensor_thickness)"
        stated = comments.number("Polarization")
        if stated is not None and abs(stated - beam.polarization_fraction) > 0.005:
            notes.append(f"the comment lines state a polarisation of {stated:g} instead")
        notes += [*more, *([assumed] if assumed else [])]
        low = detector.panels[0].trusted_range[0]
        mask = f"pixel values below {low:g} are undefined; no mask is stored" if np.isfinite(low) else "no bad pixels are marked"
        return Header(
            f"imgCIF ({kind})" if kind else "imgCIF",
            Experiment(beam, with_sensor(detector, _sensor_wavelength(beam, scan), material, thickness), goniometer, scan),
            mask,
            tuple(notes),
            () if beam.wavelength > 0 else ("wavelength",),
        )

    def header_experiment(self, index: int, header: Header) -> Experiment:
        """Return the models of frame ``index``: its own goniometer setting where the file holds several."""
        opened = self._open()
        if opened.block is None or self.n_frames == 1:
            return header.experiment
        return self._imgcif(opened, opened.block, list(opened.frames)[index]).experiment

    def read_pixels(self, index: int) -> NDArray[Any]:
        """Return the pixels of frame ``index`` as a slab: its arrays one below another."""
        opened = self._open()
        sections = self._sections(opened, index)
        widths = {section.shape[2] for section in sections}
        types = {section.dtype for section in sections}
        if len(widths) > 1 or len(types) > 1:
            raise DataError(
                f"its arrays differ in width {sorted(widths)} or type {sorted(types)}: convert it to one array", self.path
            )
        heights = [section.shape[0] * section.shape[1] for section in sections]
        shape, dtype = (sum(heights), widths.pop()), self.dtype
        slab = POOL.take(shape, dtype)
        tops = np.concatenate([[0], np.cumsum(heights)])
        parts = [slab[tops[i] : tops[i + 1]].reshape(section.shape) for i, section in enumerate(sections)]
        read_sections(Path(self.path), sections, parts)
        return slab

    def _sections(self, opened: _Opened, index: int) -> list[BinarySection]:
        if opened.block is None:
            return [opened.header.sections[0]]
        if not opened.header.complete:
            return list(opened.header.sections)
        place = _places(opened)
        found = []
        for use in list(opened.frames.values())[index]:
            section = place.get((use.array_id, use.binary_id), place.get((use.array_id, 0)))
            if section is None:
                raise DataError(
                    f"array {use.array_id!r} (binary id {use.binary_id}) is not in the file: it is cut short", self.path
                )
            found.append(section)
        return found


def _sensor_wavelength(beam: Beam, scan: Scan | None) -> float:
    """Return the wavelength at which the sensor's μ is taken.

    The shots of an XFEL differ by some 0.1 %; so that they share one detector, and all that is worked out for it, stills take the
    middle of a step of 0.5 %. That changes μ by at most 0.8 %, and positions by 0.01 pixels at most.
    """
    if scan is not None or beam.wavelength <= 0:
        return beam.wavelength
    return float(np.exp(_STEP * (np.floor(np.log(beam.wavelength) / _STEP) + 0.5)))


def _open(path: Path) -> _Opened:
    header = read_header(path)
    if "_axis." not in header.text and "header_convention" in header.text:
        return _Opened(header, None, {})
    block = header.block()
    frames = imgcif.frames(block) if imgcif.has_geometry(block) else {}
    if sum(len(uses) for uses in frames.values()) != 1:
        header = read_header(path, whole=True)
        block = header.block()
        frames = imgcif.frames(block) if imgcif.has_geometry(block) else {}
    return _Opened(header, block if frames else None, frames)


def _places(opened: _Opened) -> dict[tuple[str, int], BinarySection]:
    """Return the sections by array id and binary id; (array id, 0) is the first of the array."""
    places: dict[tuple[str, int], BinarySection] = {}
    rows = imgcif.rows(opened.block, "array_data") if opened.block is not None else []
    for row, section in zip(rows, opened.header.sections, strict=False):
        array_id = row.get("array_id", "")
        places[(array_id, int(imgcif.number(row, "binary_id", section.binary_id)))] = section
        places.setdefault((array_id, 0), section)
    return places


def _complete(detector: Detector, comments_range: tuple[float, float], mini: bool) -> tuple[Detector, list[str]]:
    """Return the detector with the comment lines' trusted range where the tables have none, and a note."""
    if not mini or any(np.isfinite(p.trusted_range).any() for p in detector.panels):
        return detector, []
    panels = tuple(replace(p, trusted_range=comments_range) for p in detector.panels)
    return Detector(panels, detector.hierarchy), ["trusted range from the comment lines"]

"""HDF5 frames described by a CrystFEL geometry (CXI, Cheetah, any multi-event file)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError, DataError
from xfelproc.io.exchange.geom_model import GeomFile, MaskSpec
from xfelproc.io.sources.hdf5_file import Hdf5Pool, numbers_of
from xfelproc.io.sources.hdf5_layout import Part, expand_events, slot_of_geom
from xfelproc.io.sources.hdf5_source import Description, Mask
from xfelproc.io.sources.masks import build_mask, describe_mask
from xfelproc.io.sources.overrides import apply_settings, describe_overrides, override_beam
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.conventions import MaskBit
from xfelproc.models.experiment import Beam, Detector, Experiment


@dataclass
class GeomDescription(Description):
    """Models, masks and words of frames that a CrystFEL geometry describes."""

    path: str
    geom: GeomFile
    settings: SourceSettings
    part: Part
    format: str = "HDF5 with a CrystFEL geometry"
    _arrays: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    _detectors: dict[tuple[float, ...], Detector] = field(default_factory=dict)
    _first_frame: tuple[dict[str, float], Beam] | None = None
    _per_frame: list[tuple[int, MaskSpec]] | None = None

    def experiment(self, index: int, pool: Hdf5Pool) -> Experiment:
        """Return the models of a frame."""
        values = {name: self._value(name, index, pool) for name in self.geom.paths()}
        beam = override_beam(self._beam(values, index), self.settings)
        return Experiment(beam, self._detector(values, pool), image=(self.path, index))

    def _beam(self, values: dict[str, float], index: int) -> Beam:
        wavelength = self.settings.wavelength or self.geom.wavelength(values)
        if wavelength is None:
            raise ConfigError(
                f"{self.geom.path} does not give the photon energy, nor does the job: set input.wavelength, "
                "or photon_energy in the geometry"
            )
        if not 0 < wavelength < 1000:
            raise DataError(
                f"the wavelength {wavelength:g} Å is not possible: check the geometry's photon_energy and its unit",
                self.path,
                index,
            )
        return Beam(wavelength=wavelength, bandwidth=self.geom.bandwidth)

    def _detector(self, values: dict[str, float], pool: Hdf5Pool) -> Detector:
        """Return the detector at a frame's values: one object as long as it does not move.

        What goes by the wavelength (gains, attenuation) is that of the first frame that has one, whichever frame is read first.
        """
        lengths = {q.path for p in self.geom.panels if (q := p.clen) is not None} | {
            q.path for q in self.geom.shift if q is not None
        }
        key = tuple(value for name, value in values.items() if name in lengths)
        if key not in self._detectors:
            moved = {name: value for name, value in values.items() if name in lengths}
            first, beam = self._first(pool)
            full = apply_settings(Experiment(beam, self.geom.detector({**first, **moved})), self.settings)
            self._check(full)
            self._detectors[key] = full.detector
        return self._detectors[key]

    def _first(self, pool: Hdf5Pool) -> tuple[dict[str, float], Beam]:
        """Return the values and the beam of the first frame that has them all."""
        if self._first_frame is None:
            for index in range(self.part.ends[-1]):
                try:
                    values = {name: self._value(name, index, pool) for name in self.geom.paths()}
                    self._first_frame = values, self._beam(values, index)
                    break
                except DataError:
                    if index == self.part.ends[-1] - 1:
                        raise
        assert self._first_frame is not None
        return self._first_frame

    def incomplete(self, pool: Hdf5Pool) -> Experiment:
        """Return what is known of the first frame."""
        values = {name: self._value(name, 0, pool) for name in self.geom.paths()}
        return Experiment(self.geom.beam(values), self.geom.detector(values), image=(self.path, 0))

    def _check(self, experiment: Experiment) -> None:
        """Raise an error if the distance is missing, or not possible."""
        if self.settings.distance is not None:
            return
        if any(p.clen is None for p in self.geom.panels):
            raise ConfigError(f"{self.geom.path} gives no camera length (clen), nor does the job: set input.distance in mm")
        z = [p.origin[2] for p in experiment.detector.panels]
        distance = -sum(z) / len(z)
        if distance <= 0:
            raise DataError(
                f"the camera length is {distance:g} mm: it must be positive; check clen, its unit and coffset in {self.geom.path}",
                self.path,
            )

    def _value(self, name: str, index: int, pool: Hdf5Pool) -> float:
        """Return the number at an HDF5 path for one frame: of an array of one number a frame, the frame's."""
        segment, number = self.part.locate(index)
        where = name
        if "%" in name:
            for word in segment.event.split("/"):
                where = where.replace("%", word, 1)
        if where not in self._arrays:
            self._arrays[where] = numbers_of(pool.dataset(self.path, where, index), self.path)
        array = self._arrays[where]
        if array.size == 0:
            raise DataError(f"{where} is empty: give the value in the geometry instead", self.path, index)
        if array.size == 1:
            return float(array[0])
        position = index if array.size == self.part.ends[-1] else number
        if position >= array.size:
            raise DataError(f"{where} holds {array.size} numbers, the file {self.part.ends[-1]} frames", self.path, index)
        value = float(array[position])
        if not np.isfinite(value):
            raise DataError(
                f"{where} is {value} for this frame: leave the frame out, or give the value in the geometry", self.path, index
            )
        return value

    def static_mask(self, pool: Hdf5Pool) -> Mask:
        """Return the mask common to all frames."""
        detector = self._detector(self._first(pool)[0], pool)
        own = self.geom.region_mask(detector)
        per_frame = self._per_frame_masks(pool)
        self._add_masks(own, [x for x in self._masks() if x not in per_frame], None, pool)
        return build_mask(detector, self.settings, own)

    def frame_mask(self, index: int, static: Mask, pool: Hdf5Pool) -> Mask:
        """Return the mask with what the frame's own mask adds, where the file has one for each frame."""
        masks = self._per_frame_masks(pool)
        if not masks:
            return static
        mask = static.copy()
        self._add_masks(mask, masks, index, pool)
        return mask

    def _masks(self) -> list[tuple[int, MaskSpec]]:
        """Return (panel, mask) of all masks that mean anything."""
        return [(n, spec) for n, p in enumerate(self.geom.panels) for spec in p.masks if spec.good_bits or spec.bad_bits]

    def _per_frame_masks(self, pool: Hdf5Pool) -> list[tuple[int, MaskSpec]]:
        if self._per_frame is None:
            self._per_frame = [(n, spec) for n, spec in self._masks() if self._is_per_frame(spec, n, pool)]
        return self._per_frame

    def _add_masks(self, mask: Mask, masks: list[tuple[int, MaskSpec]], index: int | None, pool: Hdf5Pool) -> None:
        """Mark what ``masks`` call bad; each dataset is read once."""
        planes: dict[tuple[MaskSpec, tuple[str, ...]], NDArray[Any]] = {}
        for number, spec in masks:
            key = (spec, tuple("%" if d == "%" else "x" for d in self.geom.panels[number].dims))
            if key not in planes:
                planes[key] = self._mask_plane(spec, number, index, pool)
            values = self._cut(planes[key], spec, number)
            mask[number, : values.shape[0], : values.shape[1]] |= np.where(spec.is_bad(values), np.uint8(MaskBit.BAD), np.uint8(0))

    def _mask_file(self, spec: MaskSpec) -> str:
        if not spec.file:
            return self.path
        folders = [Path(self.geom.path).parent, Path(self.path).parent, Path()]
        for folder in folders:
            if (folder / spec.file).is_file():
                return str(folder / spec.file)
        raise DataError(
            f"mask file {spec.file} of the geometry is neither beside the geometry nor beside the frames: copy it there",
            self.geom.path,
        )

    def _is_per_frame(self, spec: MaskSpec, number: int, pool: Hdf5Pool) -> bool:
        if "%" in spec.data:
            return True
        dataset = pool.dataset(self._mask_file(spec), spec.data)
        dims = self.geom.panels[number].dims
        return "%" in dims and len(dataset.shape) == len(dims) and dataset.shape[dims.index("%")] == self.part.ends[-1] > 1

    def _mask_plane(self, spec: MaskSpec, number: int, index: int | None, pool: Hdf5Pool) -> NDArray[Any]:
        """Return the values of a mask for a frame (None: for all frames), with the axis of frames taken out."""
        file = self._mask_file(spec)
        name, frame = spec.data, 0
        if index is not None:
            segment, frame = self.part.locate(index)
            events = expand_events(pool.file(file), spec.data, file)
            name = next((p for p, event in events if event == segment.event), events[0][0] if events else spec.data)
        dataset = pool.dataset(file, name, index)
        dims = self.geom.panels[number].dims
        selection: list[Any] = [slice(None)] * len(dataset.shape)
        if "%" in dims and len(dataset.shape) == len(dims):
            selection[dims.index("%")] = frame if dataset.shape[dims.index("%")] > 1 else 0
        try:
            values: NDArray[Any] = np.asarray(dataset[tuple(selection)])
        except (OSError, ValueError) as error:
            raise DataError(f"mask {name} cannot be read ({str(error)[:120]}): the file is damaged", file, index) from error
        if values.dtype.kind not in "iub":
            raise DataError(f"mask {name} holds {values.dtype}: whole numbers are needed", file)
        return values.astype(np.uint8) if values.dtype.kind == "b" else values

    def _cut(self, plane: NDArray[Any], spec: MaskSpec, number: int) -> NDArray[Any]:
        """Return the panel's part (slow, fast) of a mask."""
        panel = self.geom.panels[number]
        slot = slot_of_geom(number, panel)
        fits = len(plane.shape) == len(slot.region)
        values = slot.cut(plane) if fits else plane
        if not fits or values.shape != panel.size[::-1]:
            raise DataError(
                f"mask {spec.data} has frames of shape {plane.shape}: panel {panel.name!r} of {panel.size[::-1]} does not fit",
                self._mask_file(spec),
            )
        return values

    def marked(self) -> tuple[tuple[int, str, float], ...]:
        """Return the values that mark bad pixels (flag_equal, flag_morethan)."""
        return tuple((n, kind, value) for n, p in enumerate(self.geom.panels) for kind, value in p.flags if kind != "lessthan")

    def mask_words(self) -> str:
        """Say where the mask comes from and what its values mean."""
        specs = dict.fromkeys(spec for p in self.geom.panels for spec in p.masks)
        words = [spec.describe() for spec in specs]
        if self.geom.bad:
            words.append(f"{len(self.geom.bad)} bad region(s) of the geometry")
        unused = sum(p.no_index for p in self.geom.panels)
        if unused:
            words.append(f"{unused} panel(s) not to be indexed (no_index)")
        own = describe_mask(self.settings)
        return "; ".join([*words, *([own] if own else [])]) or "no mask"

    def notes(self) -> tuple[str, ...]:
        """Return what is missing, assumed or odd."""
        found = list(self.geom.notes)
        if (
            all(p.adu_per_photon is None and p.adu_per_ev is None for p in self.geom.panels)
            and self.settings.adu_per_photon is None
        ):
            found.append("the geometry gives no adu_per_photon: 1 is assumed")
        if any(p.saturation_map for p in self.geom.panels):
            found.append("saturation_map is not used")
        return (*found, *describe_overrides(self.settings))

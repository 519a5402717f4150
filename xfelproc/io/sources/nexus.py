"""HDF5 frames described by NeXus (NXmx) or a Dectris master."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from xfelproc.errors import ConfigError, DataError
from xfelproc.io.exchange.nexus_axes import text
from xfelproc.io.exchange.nexus_fields import find
from xfelproc.io.exchange.nexus_read import Module, NexusFile
from xfelproc.io.sources.hdf5_file import Hdf5Pool, broken_link, get_dataset
from xfelproc.io.sources.hdf5_layout import (
    Layout,
    Part,
    Segment,
    Slot,
    check_slots,
    chunk_frames,
    segments_of,
    slots_of_detector,
    stored_as,
    whole_dataset,
)
from xfelproc.io.sources.hdf5_source import Description, Mask
from xfelproc.io.sources.masks import build_mask, describe_mask
from xfelproc.io.sources.overrides import apply_settings, describe_overrides, load_reference, override_beam
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.conventions import MaskBit
from xfelproc.models.experiment import Detector, Experiment


@dataclass
class NexusDescription(Description):
    """Models, mask and words of frames that a NeXus or Dectris master describes."""

    path: str
    nexus: NexusFile
    settings: SourceSettings
    slots: tuple[Slot, ...]
    frame_shape: tuple[int, ...]
    format: str = "NXmx"
    extra_notes: tuple[str, ...] = ()
    reference: Experiment | None = None
    _detectors: dict[tuple[float, ...], Detector] = field(default_factory=dict)

    def _detector(self, index: int) -> Detector:
        key = self.nexus.geometry_key(index)
        if key not in self._detectors:
            header = self.nexus.experiment(index)
            wavelength = self.settings.wavelength or self.nexus.reference_wavelength()
            header = replace(header, beam=replace(header.beam, wavelength=wavelength))
            self._detectors[key] = apply_settings(header, self.settings, self.reference).detector
        return self._detectors[key]

    def experiment(self, index: int, pool: Hdf5Pool) -> Experiment:
        """Return the models of a frame."""
        detector = self._detector(index)
        wavelength = self.nexus.wavelength(index)
        base = replace(self.nexus.beam, wavelength=wavelength)
        if self.reference is not None:
            given = self.reference.beam
            base = given if given.wavelength > 0 else replace(given, wavelength=wavelength)
        beam = override_beam(base, self.settings)
        if not self.nexus.wavelengths and not 0 < beam.wavelength < 1000:
            raise ConfigError(f"{self.path}: the file gives no wavelength, nor does the job: set input.wavelength")
        if not 0 < beam.wavelength < 1000:
            raise DataError(f"the file gives the wavelength {wavelength} Å: set input.wavelength", self.path, index)
        return Experiment(beam, detector, self.nexus.goniometer, self.nexus.scan, image=(self.path, index))

    def incomplete(self, pool: Hdf5Pool) -> Experiment:
        """Return what is known of the first frame."""
        return self.nexus.experiment(0)

    def static_mask(self, pool: Hdf5Pool) -> Mask:
        """Return the mask common to all frames."""
        detector = self._detector(0)
        own = None
        if self.nexus.pixel_mask:
            values = self._pixel_mask(pool)
            own = np.zeros(detector.stack_shape, dtype=np.uint8)
            for slot in self.slots:
                bad = slot.cut(values) != 0
                own[slot.panel, : bad.shape[0], : bad.shape[1]] = np.where(bad, np.uint8(MaskBit.BAD), np.uint8(0))
        return build_mask(detector, self.settings, own)

    def _pixel_mask(self, pool: Hdf5Pool) -> Any:
        dataset = pool.dataset(self.path, self.nexus.pixel_mask)
        try:
            values = np.asarray(dataset[()])
        except OSError as error:
            raise DataError(f"{self.nexus.pixel_mask} cannot be read ({error}): the file is damaged", self.path) from error
        if values.shape != self.frame_shape and values.size == int(np.prod(self.frame_shape)):
            values = values.reshape(self.frame_shape)
        if values.shape != self.frame_shape:
            raise DataError(f"{self.nexus.pixel_mask} has shape {values.shape}, frames have {self.frame_shape}", self.path)
        return values

    def mask_words(self) -> str:
        """Say where the mask comes from and what its values mean."""
        own = f"{self.nexus.pixel_mask}: 0 is good, any bit is bad (1 gap, 2 dead, 4 under- and 8 over-responding, 16 noisy)"
        words = [own if self.nexus.pixel_mask else "no pixel_mask in the file"]
        user = describe_mask(self.settings)
        return "; ".join([*words, user] if user else words)

    def notes(self) -> tuple[str, ...]:
        """Return what is missing, assumed or odd."""
        return (*self.nexus.notes, *self.extra_notes, *describe_overrides(self.settings))


def describe_nexus(path: str, nexus: NexusFile, settings: SourceSettings, pool: Hdf5Pool) -> tuple[Layout, NexusDescription]:
    """Return where the frames are and what is known of them.

    Raises
    ------
    DataError
        If the file has no frames, or they do not fit its geometry.
    """
    segments, shape, dtype, chunk, frame_axis, notes, dataset = _frames(path, nexus, settings, pool)
    modules, odd = _fit_modules(nexus.modules, shape)
    nexus = replace(nexus, modules=modules)
    reference = load_reference(settings)
    if reference is not None:
        detector = reference.detector
        slots = slots_of_detector(detector, shape, path)
    else:
        detector = nexus.detector()
        slots = tuple(_slot(i, m) for i, m in enumerate(modules))
    check_slots(slots, shape, [p.name for p in detector.panels], "the frames' dataset", path)
    part = Part(tuple(segments), slots, frame_axis, shape)
    whole = "" if dataset is None else whole_dataset(dataset, path, (part,))
    layout = Layout((part,), dtype, detector.stack_shape, chunk, dataset=whole)
    n = layout.n_frames
    for name, found in (("wavelengths", len(nexus.wavelengths)), ("angles", nexus.scan.image_range[1] if nexus.scan else 1)):
        if found not in (0, 1, n):
            raise DataError(f"the file has {n} frames and {found} {name}: it was not written to its end, or is damaged", path)
    return layout, NexusDescription(path, nexus, settings, slots, shape, nexus.format, (*odd, *notes), reference)


def _slot(number: int, module: Module) -> Slot:
    region: list[int | tuple[int, int]] = [int(o) for o in module.origin[:-2]]
    region += [(o, o + s) for o, s in zip(module.origin[-2:], module.size[-2:], strict=True)]
    return Slot(number, tuple(region))


def _fit_modules(modules: tuple[Module, ...], shape: tuple[int, ...]) -> tuple[tuple[Module, ...], tuple[str, ...]]:
    """Return the modules with regions that fit the frames: sizes that are missing or in the wrong order are set right."""
    if len(modules) == 1 and len(shape) >= 2:
        size = modules[0].size
        plain = shape[-2:]
        if 0 in size:
            return (replace(modules[0], size=plain, origin=(0, 0)),), ()
        if size != plain and size == plain[::-1]:
            return (replace(modules[0], size=plain, origin=(0, 0)),), (f"data_size {size} is (fast, slow): frames are {plain}",)
    fitted = []
    for module in modules:
        origin, size = module.origin, module.size
        while len(origin) > len(shape) and size[0] == 1:
            origin, size = origin[1:], size[1:]
        while len(origin) < len(shape):
            origin, size = (0, *origin), (1, *size)
        fitted.append(replace(module, origin=origin, size=size))
    return tuple(fitted), ()


_Frames = tuple[list[Segment], tuple[int, ...], np.dtype[Any], int, int | None, tuple[str, ...], Any]


def _frames(path: str, nexus: NexusFile, settings: SourceSettings, pool: Hdf5Pool) -> _Frames:
    """Return segments, shape and type of a frame, frames a chunk, the frame axis, notes, and the dataset if it is one."""
    file = pool.file(path)
    if settings.data_path is not None:
        return _of_dataset(get_dataset(file, settings.data_path, path), path, nexus, pool)
    groups = find(file[nexus.entry], "NXdata", "data")
    for group in groups:
        signal = text(group.attrs.get("signal", "data"))
        for name in dict.fromkeys((signal, "data")):
            dataset = _opened(group, name)
            if dataset is not None and len(dataset.shape) >= 2:
                return _of_dataset(dataset, path, nexus, pool)
    for group in groups:
        names = sorted(n for n in group if n.startswith("data_") and n[5:].isdigit())
        if names:
            return _of_links(group, names, path, nexus)
    dataset = _opened(file[nexus.detector_path], "data")
    if dataset is not None and len(dataset.shape) >= 2:
        return _of_dataset(dataset, path, nexus, pool)
    link = next((x for g in groups for x in (broken_link(file, f"{g.name}/data"),) if x), None)
    if link is not None:
        raise DataError(f"the frames are in {link}, which cannot be opened: copy that file beside this one", path)
    raise DataError(f"there are no frames below {nexus.entry}/data: name their dataset in input.data_path", path)


def _opened(group: Any, name: str) -> Any:
    try:
        found = group.get(name)
    except (KeyError, OSError, RuntimeError):
        return None
    return found if isinstance(found, h5py.Dataset) else None


def _of_dataset(dataset: Any, path: str, nexus: NexusFile, pool: Hdf5Pool) -> _Frames:
    lengths = {len(m.origin) for m in nexus.modules}
    axes = len(dataset.shape)
    frame_axis = None if axes == 2 or (axes == 3 and lengths == {3} and len(nexus.modules) == dataset.shape[0] > 1) else 0
    segments = segments_of(dataset, path, frame_axis)
    shape = tuple(int(s) for a, s in enumerate(dataset.shape) if a != frame_axis)
    dtype, chunk = stored_as(dataset, segments, frame_axis, pool)
    missing = sorted({s.file for s in segments if not Path(s.file).is_file()})
    notes = [f"{Path(m).name} is missing: its frames cannot be read" for m in missing]
    for segment in segments:
        link = broken_link(pool.file(path), segment.dataset) if segment.file == path else None
        if link is not None and not (Path(path).parent / link.split(":")[0]).is_file():
            notes.append(f"{link.split(':')[0]} is missing: its {segment.count} frames cannot be read")
    return segments, shape, dtype, chunk, frame_axis, tuple(dict.fromkeys(notes)), dataset


def _of_links(group: Any, names: list[str], path: str, nexus: NexusFile) -> _Frames:
    """Return the frames of a Dectris master: data_000001, data_000002, ..., of which files may be missing."""
    found: list[tuple[str, str, int | None]] = []
    first: Any = None
    for name in names:
        dataset = _opened(group, name)
        if dataset is not None:
            found.append((str(dataset.file.filename), str(dataset.name), int(dataset.shape[0])))
            first = dataset if first is None else first
            continue
        link = group.get(name, getlink=True)
        target = link.filename if isinstance(link, h5py.ExternalLink) else path
        found.append((str(Path(path).parent / target), str(getattr(link, "path", name)), None))
    if first is None:
        raise DataError(
            f"none of the files with the frames is there ({Path(found[0][0]).name}, ...): copy them beside the master", path
        )
    usual = max(count for _, _, count in found if count is not None)
    segments, notes, total = [], [], 0
    for file, dataset_path, count in found:
        if count is None:
            left = nexus.images_expected - total
            count = min(usual, left) if nexus.images_expected and left > 0 else usual
            notes.append(f"{Path(file).name} is missing: its {count} frames cannot be read")
        segments.append(Segment(file, dataset_path, 0, count))
        total += count
    if nexus.images_expected and total != nexus.images_expected:
        notes.append(f"the header states {nexus.images_expected} images, the files hold {total}")
    return segments, tuple(int(s) for s in first.shape[1:]), first.dtype, chunk_frames(first, 0), 0, tuple(notes), None

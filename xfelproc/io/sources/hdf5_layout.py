"""Where the pixels of a frame are: datasets, frame numbers, and the region of each panel."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.exchange.geom_model import GeomFile, GeomPanel
from xfelproc.io.sources.hdf5_file import Hdf5Pool, open_file
from xfelproc.io.sources.masks import slab_shape
from xfelproc.models.experiment import Detector

Array = NDArray[Any]


@dataclass(frozen=True)
class Segment:
    """``count`` frames of one dataset from its frame ``start`` on; ``event`` is what fills the placeholders of its path."""

    file: str
    dataset: str
    start: int
    count: int
    event: str = ""


@dataclass(frozen=True)
class Slot:
    """The region of panel ``panel`` in a frame's array: numbers and slices, one an axis; ``swap``: fast comes before slow."""

    panel: int
    region: tuple[int | tuple[int, int], ...]
    swap: bool = False

    def cut(self, array: Array) -> Array:
        """Return the panel's pixels (slow, fast) as a view."""
        view = array[tuple(r if isinstance(r, int) else slice(*r) for r in self.region)]
        return view.T if self.swap else view


@dataclass(frozen=True)
class Part:
    """Panels that lie in the same datasets. ``frame_axis`` is the axis that counts frames (None: each dataset is one frame)."""

    segments: tuple[Segment, ...]
    slots: tuple[Slot, ...]
    frame_axis: int | None
    frame_shape: tuple[int, ...]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Number of frames up to the end of each segment."""
        return tuple(accumulate(s.count for s in self.segments))

    def locate(self, index: int) -> tuple[Segment, int]:
        """Return the segment of a frame and the frame's number in its dataset."""
        number = bisect_right(self.ends, index)
        segment = self.segments[number]
        return segment, segment.start + index - (self.ends[number] - segment.count)


@dataclass(frozen=True)
class Layout:
    """All parts of a frame, the dtype stored, and whether the frame's array is the panel stack as it stands."""

    parts: tuple[Part, ...]
    dtype: np.dtype[Any]
    stack_shape: tuple[int, int, int]
    chunk_frames: int = 1
    notes: tuple[str, ...] = field(default=())
    dataset: str = ""
    """Path of the one dataset of the file that counts all frames on its first axis; empty where there is none such."""

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return self.parts[0].ends[-1] if self.parts[0].ends else 0

    @cached_property
    def is_direct(self) -> bool:
        """True if the frame's array, reshaped, is the panel stack: no gathering is needed."""
        if len(self.parts) != 1:
            return False
        part = self.parts[0]
        if int(np.prod(part.frame_shape)) != int(np.prod(self.stack_shape)):
            return False
        # the gather plan moves nothing if it takes each element to its own place
        n, n_slow, n_fast = self.stack_shape
        rows = np.arange(n * n_slow, dtype=np.int64)
        if part.frame_shape[-1] != n_fast:
            return False
        row_numbers = rows.reshape(part.frame_shape[:-1])[..., None]
        for slot in part.slots:
            if slot.swap or slot.region[-1] != (0, n_fast):
                return False
            found = row_numbers[(*(r if isinstance(r, int) else slice(*r) for r in slot.region[:-1]), 0)]
            if not np.array_equal(found, rows[slot.panel * n_slow : (slot.panel + 1) * n_slow]):
                return False
        return True

    def gather(self, arrays: Sequence[Array], out: Array) -> None:
        """Copy the panels from the frame's arrays (one a part) into the stack ``out``; padding is left as it is."""
        for part, array in zip(self.parts, arrays, strict=True):
            for slot in part.slots:
                pixels = slot.cut(array)
                out[slot.panel, : pixels.shape[0], : pixels.shape[1]] = pixels


def slot_of_geom(number: int, panel: GeomPanel) -> Slot:
    """Return the region of a CrystFEL panel in a frame's array (placeholder axes taken out)."""
    region: list[int | tuple[int, int]] = []
    for dim in panel.dims:
        if dim == "ss":
            region.append((panel.min_ss, panel.max_ss + 1))
        elif dim == "fs":
            region.append((panel.min_fs, panel.max_fs + 1))
        elif dim != "%":
            region.append(int(dim))
    return Slot(number, tuple(region), panel.dims.index("fs") < panel.dims.index("ss"))


def slots_of_detector(detector: Detector, shape: tuple[int, ...], path: str) -> tuple[Slot, ...]:
    """Return the panels' regions in a frame's array: the stack, panels one below another, or a slab cut at ``raw_image_offset``.

    Raises
    ------
    DataError
        If the array has none of these shapes.
    """
    n, n_slow, n_fast = detector.stack_shape
    squeezed = tuple(s for s in shape if s != 1) or (1,)
    lead: tuple[int | tuple[int, int], ...] = ()
    if shape == (n, n_slow, n_fast):
        return tuple(Slot(i, (i, (0, p.image_size[1]), (0, p.image_size[0]))) for i, p in enumerate(detector.panels))
    if len(shape) == 3 and shape[0] == 1 and len(squeezed) == 2:
        lead, shape = (0,), shape[1:]
    offsets = {p.raw_image_offset for p in detector.panels}
    if len(offsets) == n and shape == slab_shape(detector):
        return tuple(
            Slot(i, (*lead, (p.raw_image_offset[1], p.raw_image_offset[1] + p.image_size[1]),
                     (p.raw_image_offset[0], p.raw_image_offset[0] + p.image_size[0])))
            for i, p in enumerate(detector.panels)
        )  # fmt: skip
    if shape == (n * n_slow, n_fast) and len({p.image_size for p in detector.panels}) == 1:
        return tuple(Slot(i, (*lead, (i * n_slow, (i + 1) * n_slow), (0, n_fast))) for i in range(n))
    raise DataError(
        f"frames have shape {shape}, the geometry has {n} panel(s) of up to {n_fast} x {n_slow} pixels: "
        "give the geometry of this detector",
        path,
    )


def check_slots(slots: Sequence[Slot], shape: tuple[int, ...], names: Sequence[str], dataset: str, path: str) -> None:
    """Raise a DataError if a panel's region leaves the frame's array."""
    for slot in slots:
        if len(slot.region) != len(shape):
            raise DataError(
                f"{dataset} has {len(shape)} axes a frame, panel {names[slot.panel]!r} of the geometry describes "
                f"{len(slot.region)}: correct dim0, dim1, ... in the geometry",
                path,
            )
        for region, size in zip(slot.region, shape, strict=True):
            last = region if isinstance(region, int) else region[1] - 1
            if last >= size:
                raise DataError(
                    f"{dataset} has frames of shape {shape}, panel {names[slot.panel]!r} of the geometry reaches index {last} "
                    f"where the array has {size}: the geometry belongs to another detector or layout",
                    path,
                )


def expand_events(group: Any, path: str, where: str) -> list[tuple[str, str]]:
    """Return (dataset path, event) for each way to fill the placeholders of ``path``, sorted by name."""
    head, placeholder, tail = path.partition("%")
    if not placeholder:
        return [(path, "")]
    folder, _, prefix = head.rpartition("/")
    suffix, slash, rest = tail.partition("/")
    try:
        names = list(group[folder or "/"])
    except (KeyError, OSError, RuntimeError) as error:
        raise DataError(
            f"there is no group {folder or '/'} for the placeholder of {path}: correct the geometry's data path", where
        ) from error
    found: list[tuple[str, str]] = []
    for name in sorted(names, key=_natural):
        if name.startswith(prefix) and name.endswith(suffix) and len(name) > len(prefix) + len(suffix):
            value = name[len(prefix) : len(name) - len(suffix)]
            below = f"{folder}/{name}{slash}{rest}"
            if "%" in rest or below in group:
                found += [(p, f"{value}/{e}" if e else value) for p, e in expand_events(group, below, where)]
    return found


def _natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts numbers inside names by value."""
    pieces: list[tuple[int, int, str]] = []
    word = ""
    for char in text + "\0":
        if word and char.isdigit() != word[-1].isdigit():
            pieces.append((0, int(word), "") if word.isdigit() else (1, 0, word))
            word = ""
        word += char
    return tuple(pieces)


def segments_of(dataset: Any, path: str, frame_axis: int | None, event: str = "") -> list[Segment]:
    """Return where the frames of an open dataset really are: a virtual dataset of whole frames is followed to its source files."""
    name = str(dataset.name)
    owner = str(dataset.file.filename)
    if frame_axis is None:
        return [Segment(owner, name, 0, 1, event)]
    count = int(dataset.shape[frame_axis])
    if dataset.is_virtual and frame_axis == 0:
        segments = _virtual_segments(dataset, owner)
        if segments is not None:
            return segments
    return [Segment(owner, name, 0, count, event)]


def _virtual_segments(dataset: Any, owner: str) -> list[Segment] | None:
    """Return the sources of a virtual dataset if each is a run of whole frames and together they fill it, else None."""
    shape = dataset.shape
    found: list[tuple[int, Segment]] = []
    for source in dataset.virtual_sources():
        if not source.vspace.is_regular_hyperslab() and source.vspace.get_select_npoints() != np.prod(shape):
            return None
        low, high = source.vspace.get_select_bounds()
        if low[1:] != (0,) * (len(shape) - 1) or tuple(h + 1 for h in high[1:]) != tuple(shape[1:]) or "%" in source.file_name:
            return None
        count = int(high[0] - low[0] + 1)
        if source.vspace.get_select_npoints() != count * int(np.prod(shape[1:])):
            return None
        # a source selected as a whole has no bounds of its own; its first frame is 0
        start = 0
        if source.src_space.get_select_type() == 2:
            start = int(source.src_space.get_select_bounds()[0][0])
        file = owner if source.file_name == "." else str(Path(owner).parent / source.file_name)
        found.append((int(low[0]), Segment(file, source.dset_name, start, count)))
    found.sort(key=lambda item: item[0])
    expected = 0
    for first, segment in found:
        if first != expected:
            return None
        expected += segment.count
    return [segment for _, segment in found] if expected == shape[0] else None


def chunk_frames(dataset: Any, frame_axis: int | None) -> int:
    """Return how many frames share a storage chunk."""
    if frame_axis is None or dataset.chunks is None:
        return 1
    return max(1, int(dataset.chunks[frame_axis]))


def stored_as(dataset: Any, segments: list[Segment], frame_axis: int | None, pool: Hdf5Pool) -> tuple[np.dtype[Any], int]:
    """Return type and frames a chunk as stored: a virtual dataset may state a wider type than its sources have."""
    if dataset.is_virtual:
        for segment in segments:
            try:
                source = pool.dataset(segment.file, segment.dataset)
            except DataError:
                continue
            return source.dtype, chunk_frames(source, frame_axis)
    return dataset.dtype, chunk_frames(dataset, frame_axis)


def layout_of_geom(path: str, geom: GeomFile, detector: Detector, pool: Hdf5Pool, data_path: str | None = None) -> Layout:
    """Return where a file's frames are, by a CrystFEL geometry.

    Raises
    ------
    DataError
        If the file does not hold what the geometry describes.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for number, panel in enumerate(geom.panels):
        axes = tuple("%" if d == "%" else "x" for d in panel.dims)
        groups.setdefault((data_path or panel.data or find_frames(path, pool), axes), []).append(number)
    parts: list[Part] = []
    dtype: np.dtype[Any] | None = None
    chunk = 1
    for (name, axes), numbers in groups.items():
        if axes.count("%") > 1:
            raise DataError(f"dims {geom.panels[numbers[0]].dims} hold more than one %: one axis of frames is supported", path)
        slots = tuple(slot_of_geom(n, geom.panels[n]) for n in numbers)
        part, dataset = _part(path, name, axes.index("%") if "%" in axes else None, slots, pool)
        check_slots(slots, part.frame_shape, [p.name for p in geom.panels], name, path)
        if dtype is not None and dataset.dtype != dtype:
            raise DataError(f"{name} holds {dataset.dtype}, other panels {dtype}: panels of one detector must share a type", path)
        dtype = dataset.dtype
        chunk = max(chunk, stored_as(dataset, list(part.segments), part.frame_axis, pool)[1])
        parts.append(part)
    lengths = {p.ends[-1] for p in parts}
    if len(lengths) > 1:
        raise DataError(f"the panels' datasets hold different numbers of frames: {sorted(lengths)}", path)
    assert dtype is not None
    return Layout(tuple(parts), dtype, detector.stack_shape, chunk, dataset=whole_dataset(dataset, path, parts))


def whole_dataset(dataset: Any, path: str, parts: Sequence[Part]) -> str:
    """Return the path of a dataset if it is in this file and holds all frames on its first axis, else an empty string."""
    alone = len(parts) == 1 and parts[0].frame_axis == 0 and parts[0].ends[-1] == dataset.shape[0]
    return str(dataset.name) if alone and str(dataset.file.filename) == path else ""


def _part(path: str, name: str, frame_axis: int | None, slots: tuple[Slot, ...], pool: Hdf5Pool) -> tuple[Part, Any]:
    events = expand_events(pool.file(path), name, path)
    if not events:
        raise DataError(f"nothing in the file matches the data path {name}: correct the geometry's 'data'", path)
    first = pool.dataset(path, events[0][0])
    axes = len(first.shape)
    if frame_axis is not None and frame_axis >= axes:
        raise DataError(
            f"{events[0][0]} has {axes} axes, the geometry counts frames on axis {frame_axis}: correct dim0, dim1, ...", path
        )
    shape = tuple(int(s) for a, s in enumerate(first.shape) if a != frame_axis)
    segments: list[Segment] = []
    for dataset_path, event in events:
        segments += segments_of(pool.dataset(path, dataset_path), path, frame_axis, event)
    return Part(tuple(segments), slots, frame_axis, shape), first


def find_frames(path: str, pool: Hdf5Pool) -> str:
    """Return the path of the only dataset that looks like frames (numbers, at least two axes of 64 or more).

    Raises
    ------
    DataError
        If there is none, or more than one.
    """
    found = _frame_like(path, pool)
    if len(found) == 1:
        return next(iter(found))
    raise DataError(f"{what_looks_like_frames(path, pool)}; name the one to use in input.data_path", path)


def what_looks_like_frames(path: str, pool: Hdf5Pool) -> str:
    """Say which datasets of a file look like frames."""
    found = [f"{name} {shape}" for name, shape in _frame_like(path, pool).items()]
    if len(found) == 1:
        return f"{found[0]} looks like frames"
    return "no dataset looks like frames" if not found else f"several datasets look like frames: {', '.join(found[:8])}"


def _frame_like(path: str, pool: Hdf5Pool) -> dict[str, tuple[int, ...]]:
    """Return paths and shapes of the datasets of numbers with at least two axes of 64 or more."""
    found: dict[str, tuple[int, ...]] = {}

    def visit(name: str, item: Any) -> None:
        shape = getattr(item, "shape", None)
        if shape is not None and len(shape) >= 2 and min(shape[-2:]) >= 64 and item.dtype.kind in "iuf":
            found["/" + name] = tuple(map(int, shape))

    pool.file(path).visititems(visit)
    return found


def probe(path: str) -> None:
    """Raise a DataError if the file cannot be opened as HDF5."""
    open_file(path).close()

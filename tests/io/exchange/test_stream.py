from __future__ import annotations

import lzma
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xfelproc.errors import DataError
from xfelproc.geometry.cells import b_matrix, rotation_matrix
from xfelproc.io.exchange.stream import (
    StreamChunk,
    StreamCrystal,
    StreamHeader,
    camera_length,
    lattice_description,
    stream_text,
)
from xfelproc.io.exchange.stream_read import ReadChunk, read_stream
from xfelproc.models.conventions import HC
from xfelproc.models.experiment import Beam, Crystal, Detector, Panel, as_matrix
from xfelproc.models.tables import ReflectionTable, SpotTable

CELL = (61.4, 122.6, 168.0, 90.0, 90.0, 90.0)


def make_detector() -> Detector:
    first = Panel("p0", (1, 0, 0), (0, -1, 0), (-10, 10, -100), (0.1, 0.1), (100, 200))
    return Detector((first, replace(first, name="p1", origin=(0.5, 10, -100), raw_image_offset=(0, 200))))


def make_chunk() -> StreamChunk:
    a = rotation_matrix([0.3, -0.8, 1.1]) @ b_matrix(CELL)
    spots = SpotTable(None, panel=[0, 1], fast=[10.5, 20.25], slow=[3.0, 4.5], intensity=[100.0, 200.5], d=[5.0, 4.0])
    reflections = ReflectionTable(
        None,
        hkl=[[1, -2, 3], [4, 5, -6], [7, 8, 9]],
        panel=[0, 1, 1],
        fast=[10.0, 20.0, 30.0],
        slow=[1.0, 2.0, 3.0],
        intensity=[10.0, -20.0, 1e5],
        sigma=[3.0, 4.0, 5.0],
        peak=[6.0, 7.0, 8.0],
        background=[1.0, 2.0, 3.0],
        flags=[1, 1, 2],
    )
    crystal = StreamCrystal(Crystal(as_matrix(a), "C 2 2 21", 1250.0), reflections, (0.02, -0.01, 0.0), 2.5)
    return StreamChunk("data/run.h5", "//12", 13, True, Beam(1.3051, bandwidth=2e-3), make_detector(), spots, (crystal,))


def written(tmp_path: Path, chunks: list[StreamChunk], geometry: str = "res = 10000\n") -> Path:
    path = tmp_path / "x.stream"
    path.write_text("".join(stream_text(StreamHeader(geometry, cell=CELL, space_group="C 2 2 21"), chunks)))
    return path


def test_round_trip(tmp_path: Path) -> None:
    chunk = make_chunk()
    stream = read_stream(written(tmp_path, [chunk, replace(chunk, crystals=(), hit=False, event="", serial=14)]))
    assert stream.geometry == "res = 10000\n"
    assert stream.cell["lattice_type"] == "orthorhombic"
    assert stream.cell["centering"] == "C"
    one, two = stream.chunks
    assert one.entries["Image filename"] == "data/run.h5"
    assert one.entries["Event"] == "//12"
    assert one.entries["Image serial number"] == "13"
    assert float(one.entries["photon_energy_eV"]) == pytest.approx(HC / 1.3051, abs=1e-5)
    assert one.entries["average_camera_length"] == "0.100000 m"
    assert one.peaks[1] == pytest.approx([20.25, 204.5, 2.5, 200.5])
    assert one.peak_panels == ("p0", "p1")
    crystal = one.crystals[0]
    assert crystal.a_matrix == pytest.approx(chunk.crystals[0].crystal.a_matrix, abs=1e-8)
    assert crystal.cell == pytest.approx(CELL, abs=1e-3)
    assert crystal.hkl.tolist() == [[1, -2, 3], [4, 5, -6]], "an overloaded reflection has no intensity"
    assert crystal.values[1] == pytest.approx([-20, 4, 7, 2, 20, 202])
    assert crystal.entries["num_saturated_reflections"] == "1"
    assert crystal.entries["predict_refine/det_shift x"] == "-0.020 y = -0.010 mm"
    assert crystal.entries["diffraction_resolution_limit"] == "4.00 nm^-1 or 2.50 A"
    assert crystal.entries["profile_radius"] == "0.00800 nm^-1"
    assert two.entries["indexed_by"] == "none"
    assert "Event" not in two.entries
    assert not two.crystals


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("P 1", ("triclinic", "P", "?")),
        ("C 1 2 1", ("monoclinic", "C", "b")),
        ("P 1 1 21", ("monoclinic", "P", "c")),
        ("P 43 21 2", ("tetragonal", "P", "c")),
        ("P 61 2 2", ("hexagonal", "P", "c")),
        ("P 31", ("hexagonal", "P", "c")),
        ("R 3 2:H", ("hexagonal", "H", "c")),
        ("R 3:R", ("rhombohedral", "R", "?")),
        ("F 4 3 2", ("cubic", "F", "?")),
    ],
)
def test_lattices_have_crystfels_names(group: str, expected: tuple[str, str, str]) -> None:
    assert lattice_description(group) == expected


def test_damaged_streams_say_so(tmp_path: Path) -> None:
    path = written(tmp_path, [make_chunk()])
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match="chunk 1"):
        read_stream(path)
    path.write_text("hello\n")
    with pytest.raises(DataError, match="first line"):
        read_stream(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_stream(tmp_path / "none.stream")


def as_chunk(chunk: ReadChunk, names: list[str]) -> StreamChunk:
    """Return what was read as what is written; positions are whole-array ones, so panels have no offset here."""
    number = {name: i for i, name in enumerate(names)}
    q = chunk.peaks[:, 2]
    clen = float(chunk.entries["average_camera_length"].split()[0])
    panel = Panel("", (1, 0, 0), (0, 1, 0), (0, 0, -1000 * clen), (0.1, 0.1), (10, 10))
    detector = Detector(tuple(replace(panel, name=name) for name in names))
    spots = SpotTable(
        None,
        panel=[number[p] for p in chunk.peak_panels],
        fast=chunk.peaks[:, 0],
        slow=chunk.peaks[:, 1],
        intensity=chunk.peaks[:, 3],
        d=10 / q,
    )
    crystals = []
    for crystal in chunk.crystals:
        v = crystal.values
        columns = dict(zip(("intensity", "sigma", "peak", "background", "fast", "slow"), v.T, strict=True))
        rows = ReflectionTable(None, hkl=crystal.hkl, panel=[number[p] for p in crystal.panels], flags=np.ones(len(v)), **columns)
        x, _, y, _ = crystal.entries["predict_refine/det_shift x"].replace("y = ", "y ").split()
        found = Crystal(as_matrix(crystal.a_matrix), "C 2 2 2", 10.0 / float(crystal.entries["profile_radius"].split()[0]))
        d_min = 10.0 / float(crystal.entries["diffraction_resolution_limit"].split()[0])
        crystals.append(StreamCrystal(found, rows, (-float(x), float(y), 0.0), d_min))
    beam = Beam(HC / float(chunk.entries["photon_energy_eV"]), bandwidth=1e-8)
    entries = chunk.entries
    return StreamChunk(
        entries["Image filename"],
        "",
        int(entries["Image serial number"]),
        entries["hit"] == "1",
        beam,
        detector,
        spots,
        tuple(crystals),
    )


@pytest.mark.peer
def test_a_real_stream_is_written_as_it_was_read(shared_data: Path, tmp_path: Path) -> None:
    """Read CrystFEL's own stream, write it, and compare line by line what both hold."""
    path = shared_data / "stream_5ht2b" / "test.stream.xz"
    stream = read_stream(path)
    assert len(stream.chunks) == 70
    assert sum(len(c.crystals) for c in stream.chunks) == 32
    names = sorted({p for c in stream.chunks for p in (*c.peak_panels, *(q for x in c.crystals for q in x.panels))})
    ours = written(tmp_path, [as_chunk(c, names) for c in stream.chunks], stream.geometry).read_text()
    with lzma.open(path, "rt") as file:
        theirs = file.read()

    def shared_lines(text: str) -> list[str]:
        body = text[text.index("----- Begin chunk -----") :]
        skip = (
            r"indexed_by|n_indexing_tries|hdf5/|predict_refine/final|peak_resolution|Cell parameters|num_saturated|num_implausible"
        )
        return [line for line in body.splitlines() if not re.match(skip, line)]

    mine, original = shared_lines(ours), shared_lines(theirs)
    assert len(mine) == len(original)
    different = [(a, b) for a, b in zip(mine, original, strict=True) if a != b]
    values = [(re.findall(r"[-+]?\d+\.?\d*(?:e[-+]\d+)?", a), re.findall(r"[-+]?\d+\.?\d*(?:e[-+]\d+)?", b)) for a, b in different]
    assert len(different) < 0.01 * len(mine)
    assert all(np.allclose(np.array(a, float), np.array(b, float), rtol=2e-3, atol=2e-2) for a, b in values), different[:5]
    assert camera_length(make_detector()) == pytest.approx(0.1)

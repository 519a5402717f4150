from __future__ import annotations

import lzma
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xfelproc.geometry.cells import b_matrix, rotation_matrix
from xfelproc.io.exchange.geom import parse_geom
from xfelproc.io.exchange.geom_model import GeomFile
from xfelproc.io.exchange.geom_write import geom_of
from xfelproc.io.exchange.stream import StreamChunk, StreamCrystal, StreamHeader, camera_length, lattice_description, stream_text
from xfelproc.io.exchange.stream_reader import StreamChunk as ReadChunk
from xfelproc.io.exchange.stream_reader import panel_positions, read_stream, read_stream_header
from xfelproc.models.experiment import Beam, Crystal, Detector, Experiment, Panel, as_matrix
from xfelproc.models.tables import ReflectionTable, SpotTable

CELL = (61.4, 122.6, 168.0, 90.0, 90.0, 90.0)
BEAM = Beam(1.3051, bandwidth=2e-3)


def make_detector() -> Detector:
    first = Panel("p0", (1, 0, 0), (0, -1, 0), (-10, 10, -100), (0.1, 0.1), (100, 200))
    return Detector((first, replace(first, name="p1", origin=(0.5, 10, -100), raw_image_offset=(0, 200))))


GEOMETRY = geom_of(Experiment(BEAM, make_detector()))


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
    return StreamChunk("data/run.h5", "//12", 13, True, BEAM, camera_length(make_detector()), spots, (crystal,))


def written(tmp_path: Path, chunks: list[StreamChunk], geometry: GeomFile = GEOMETRY) -> Path:
    path = tmp_path / "x.stream"
    path.write_text("".join(stream_text(StreamHeader(geometry, cell=CELL, space_group="C 2 2 21"), chunks)))
    return path


def test_round_trip(tmp_path: Path) -> None:
    chunk = make_chunk()
    path = written(tmp_path, [chunk, replace(chunk, crystals=(), hit=False, event="", serial=14)])
    header = read_stream_header(path)
    assert header.version == "2.3"
    assert parse_geom(header.geometry).panels == GEOMETRY.panels
    assert "lattice_type = orthorhombic" in header.cell
    assert "centering = C" in header.cell
    one, two = read_stream(path)
    assert (one.image, one.event, one.hit) == ("data/run.h5", "//12", True)
    assert one.values["Image serial number"] == "13"
    assert one.wavelength == pytest.approx(1.3051, rel=1e-9)
    assert one.camera_length == pytest.approx(100.0)
    assert one.peaks.slow.tolist() == [3.0, 204.5], "positions count in the array of all panels"
    assert one.peaks.panel == ("p0", "p1")
    crystal = one.crystals[0]
    assert crystal.crystal.a_matrix == pytest.approx(chunk.crystals[0].crystal.a_matrix, abs=1e-8)
    assert crystal.crystal.cell == pytest.approx(CELL, abs=1e-2)
    assert crystal.values["profile_radius"] == "0.00800 nm^-1"
    assert crystal.values["num_saturated_reflections"] == "1"
    assert crystal.shift == (-0.020, -0.010)
    assert crystal.d_min == pytest.approx(2.5)
    assert (crystal.lattice_type, crystal.centering, crystal.unique_axis) == ("orthorhombic", "C", "?")
    found = crystal.reflections
    assert found.hkl.tolist() == [[1, -2, 3], [4, 5, -6]], "an overloaded reflection has no intensity"
    assert (found.intensity[1], found.sigma[1], found.peak[1], found.background[1]) == (-20, 4, 7, 2)
    assert (found.fast[1], found.slow[1]) == (20, 202)
    assert two.indexed_by == "none"
    assert two.event == ""
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


def as_chunk(chunk: ReadChunk, geometry: GeomFile) -> StreamChunk:
    """Return what was read as what is written."""
    corners = {p.name: (i, float(p.min_fs), float(p.min_ss)) for i, p in enumerate(geometry.panels)}
    panel, fast, slow = panel_positions(chunk.peaks, corners)
    spots = SpotTable(None, panel=panel, fast=fast, slow=slow, intensity=chunk.peaks.intensity)
    crystals = []
    for item in chunk.crystals:
        v = item.reflections
        panel, fast, slow = panel_positions(v, corners)
        columns = {"intensity": v.intensity, "sigma": v.sigma, "peak": v.peak, "background": v.background}
        rows = ReflectionTable(None, hkl=v.hkl, panel=panel, fast=fast, slow=slow, flags=np.ones(len(v)), **columns)
        radius = float(item.values["profile_radius"].split()[0])
        crystal = Crystal(item.crystal.A, "C 2 2 2", 10.0 / radius)
        crystals.append(StreamCrystal(crystal, rows, (-item.shift[0], item.shift[1], 0.0), item.d_min))
    beam = Beam(chunk.wavelength, bandwidth=1e-8)
    number = int(chunk.values["Image serial number"])
    return StreamChunk(chunk.image, "", number, chunk.hit, beam, chunk.camera_length / 1e3, spots, tuple(crystals))


@pytest.mark.peer
def test_a_real_stream_is_written_as_it_was_read(shared_data: Path, tmp_path: Path) -> None:
    """Read CrystFEL's own stream, write it, and compare line by line what both hold."""
    path = shared_data / "stream_5ht2b" / "test.stream.xz"
    geometry = parse_geom(read_stream_header(path).geometry)
    chunks = [as_chunk(chunk, geometry) for chunk in read_stream(path)]
    assert len(chunks) == 70
    assert sum(len(chunk.crystals) for chunk in chunks) == 32
    ours = written(tmp_path, chunks, geometry).read_text()
    with lzma.open(path, "rt") as file:
        theirs = file.read()

    def shared_lines(text: str) -> list[str]:
        body = text[text.index("----- Begin chunk -----") :]
        # program's own words, header values of its files, cells (recomputed from the rounded axes), and 1/d of peaks (not read)
        skip = (
            "indexed_by|n_indexing_tries|hdf5/|predict_refine/final|peak_resolution|Cell parameters|num_saturated|num_implausible"
        )
        lines = [line for line in body.splitlines() if not re.match(skip, line)]
        peak = re.compile(r"^( *[\d.]+ +[\d.]+) +[\d.]+( +-?[\d.]+   q\da\d+)$")
        return [peak.sub(r"\1\2", line) for line in lines]

    mine, original = shared_lines(ours), shared_lines(theirs)
    assert len(mine) == len(original)
    different = [(a, b) for a, b in zip(mine, original, strict=True) if a != b]
    assert len(different) < 0.01 * len(mine)
    number = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]\d+)?")
    for a, b in different:  # the last digit, after single precision
        assert number.sub("", a) == number.sub("", b)
        assert [float(x) for x in number.findall(a)] == pytest.approx([float(x) for x in number.findall(b)], rel=2e-3, abs=0.011)

from __future__ import annotations

import lzma
from pathlib import Path

import msgpack
import numpy as np
import pytest

from xfelproc.errors import DataError
from xfelproc.geometry.detector import pixel_to_q
from xfelproc.io.exchange.dials_refl import (
    COLUMN_KINDS,
    DialsFlag,
    LatticeReflections,
    RawColumn,
    integrated_table,
    read_refl,
    refl_bytes,
)
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.experiment import Beam, Crystal, Detector, Experiment, Panel
from xfelproc.models.tables import ReflectionTable

QUARTZ = ("strong", "indexed", "refined", "integrated", "scaled")


def experiment(identifier: str, image: tuple[str, int]) -> Experiment:
    panel = Panel("p", (1, 0, 0), (0, -1, 0), (-50, 50, -100), (0.1, 0.1), (1000, 1000), thickness=0.5, mu=3.0)
    crystal = Crystal(((0.1, 0, 0), (0, 0.1, 0), (0, 0, 0.1)))
    return Experiment(Beam(1.2), Detector((panel,)), crystal=crystal, identifier=identifier, image=image)


def reflections() -> ReflectionTable:
    return ReflectionTable(
        None,
        hkl=[[1, 2, 3], [-4, 5, 6]],
        fast=[400.25, 700.5],
        slow=[300.5, 800.75],
        intensity=[100.0, -3.0],
        sigma=[12.0, 5.0],
        background=[2.0, 3.0],
        n_pixels=[29, 29],
        d=[4.0, 3.0],
        delta_psi=[0.1, -0.2],
        partiality=[0.5, 0.25],
        flags=[int(ReflectionFlag.INTEGRATED | ReflectionFlag.OBSERVED), int(ReflectionFlag.OVERLOADED)],
    )


def test_columns_have_dials_units(tmp_path: Path) -> None:
    one = LatticeReflections(experiment("a", ("x.h5", 0)), reflections(), np.array([[0, 400.5, 300.0, 0.04, 0.09]]))
    two = LatticeReflections(experiment("b", ("x.h5", 0)), reflections())
    path = tmp_path / "x.refl"
    path.write_bytes(refl_bytes(integrated_table([one, two])))
    table = read_refl(path)
    assert table.n_rows == 4
    assert table.identifiers == {0: "a", 1: "b"}
    assert set(table.columns) == {*COLUMN_KINDS, "imageset_id"}
    assert table.array("id").tolist() == [0, 0, 1, 1]
    assert table.array("imageset_id").tolist() == [0, 0, 0, 0], "two lattices of one image share an imageset"
    assert table.array("miller_index")[1].tolist() == [-4, 5, 6]
    assert table.array("intensity.sum.variance")[0] == 144.0
    assert table.array("delpsical.rad")[0] == pytest.approx(np.radians(0.1))
    assert table.array("xyzobs.px.value")[0] == pytest.approx([400.5, 300.0, 0.5])
    assert table.array("xyzobs.px.variance")[0] == pytest.approx([0.04, 0.09, 0.0])
    assert table.array("xyzobs.mm.variance")[0] == pytest.approx([0.0004, 0.0009, 0.0])
    assert table.array("xyzcal.px")[0] == pytest.approx([400.25, 300.5, 0.0])
    millimetres = table.array("xyzcal.mm")[1]
    assert 0 < 70.05 - millimetres[0] < 0.2, "less the parallax of the sensor"
    e = one.experiment
    q = pixel_to_q(e.detector, e.beam, [0, 0], [400.25, 700.5], [300.5, 800.75])
    assert table.array("s1")[:2] - e.beam.s0 == pytest.approx(q)
    assert np.linalg.norm(table.array("s1"), axis=1) == pytest.approx(1 / 1.2)
    first = DialsFlag(int(table.array("flags")[0]))
    assert first == DialsFlag.PREDICTED | DialsFlag.INTEGRATED_SUM | DialsFlag.OBSERVED | DialsFlag.STRONG | DialsFlag.INDEXED
    assert DialsFlag(int(table.array("flags")[1])) == DialsFlag.PREDICTED | DialsFlag.OVERLOADED
    box = table.array("bbox")[0]
    assert box[0] <= 397
    assert box[1] > 403
    assert box[4:].tolist() == [0, 1]


def test_none_is_a_table_too(tmp_path: Path) -> None:
    path = tmp_path / "x.refl"
    path.write_bytes(refl_bytes(integrated_table([])))
    assert read_refl(path).n_rows == 0


def test_wrong_files(tmp_path: Path) -> None:
    path = tmp_path / "x.refl"
    with pytest.raises(DataError, match="cannot be read"):
        read_refl(path)
    path.write_bytes(b"\x93\x01\x02")
    with pytest.raises(DataError, match="cannot be read"):
        read_refl(path)
    path.write_bytes(msgpack.packb(["other", 1, {"identifiers": {}, "nrows": 0, "data": {}}]))
    with pytest.raises(DataError, match="other"):
        read_refl(path)
    body = {"identifiers": {}, "nrows": 2, "data": {"d": ["double", [2, b"\0" * 9]]}}
    path.write_bytes(msgpack.packb(["dials::af::reflection_table", 1, body]))
    with pytest.raises(DataError, match="damaged"):
        read_refl(path)


@pytest.mark.peer
@pytest.mark.parametrize("name", QUARTZ)
def test_dials_tables_are_written_as_read(shared_data: Path, name: str) -> None:
    path = shared_data / "dials_quartz" / f"{name}.refl.xz"
    table = read_refl(path)
    assert refl_bytes(table) == lzma.decompress(path.read_bytes())
    unknown = {n for n, c in table.columns.items() if isinstance(c, RawColumn)}
    assert unknown <= {"shoebox"}


@pytest.mark.peer
def test_our_columns_have_the_types_of_dials(shared_data: Path) -> None:
    theirs = read_refl(shared_data / "dials_quartz" / "integrated.refl.xz").kinds
    ours = integrated_table([]).kinds
    assert {k: v for k, v in ours.items() if k in theirs} == {k: v for k, v in theirs.items() if k in ours}
    assert set(ours) - set(theirs) == {"delpsical.rad"}, "a column of stills alone"

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from xfelproc.errors import ConfigError
from xfelproc.io.exchange.dials_expt import parse_expt, read_expt
from xfelproc.io.exchange.dials_pieces import SECTIONS, expt_pieces, item_text, refl_pieces
from xfelproc.io.exchange.dials_refl import (
    INDEXED_KINDS,
    DialsFlag,
    LatticeReflections,
    RawColumn,
    ReflectionFile,
    indexed_columns,
    read_refl,
    refl_bytes,
)
from xfelproc.models.tables import IndexedTable, ReflectionTable, SpotTable


def pieces_of(table: ReflectionFile, size: int) -> bytes:
    names = [name for name, column in table.columns.items() if not isinstance(column, RawColumn)]

    def column(name: str) -> Iterator[bytes]:
        content = table.array(name).tobytes()
        yield from (content[i : i + size] for i in range(0, len(content), size))

    kinds = {name: table.kinds[name] for name in names}
    return b"".join(refl_pieces(table.identifiers.values(), len(table.identifiers), kinds, table.n_rows, column))


def small(n: int) -> ReflectionFile:
    columns: dict[str, Any] = {"d": np.linspace(1, 2, n), "id": np.zeros(n, np.int32), "panel": np.arange(n, dtype=np.uint64)}
    return ReflectionFile({0: "a", 1: "é"}, n, columns, {"d": "double", "id": "int", "panel": "std::size_t"})


@pytest.mark.parametrize("n", [0, 1, 31, 32, 8191, 8192, 20000])
def test_a_table_in_pieces_is_the_table(n: int) -> None:
    assert pieces_of(small(n), 1000) == refl_bytes(small(n))


def test_what_does_not_fit() -> None:
    kinds = {"s1": "vec3<double>"}
    with pytest.raises(ConfigError, match=r"200000000 reflections are more than one \.refl file can hold.*batch_size"):
        list(refl_pieces((), 0, kinds, 200_000_000, lambda name: ()))
    with pytest.raises(ValueError, match="'s1' has 8 bytes, not 24"):
        list(refl_pieces((), 0, kinds, 1, lambda name: (b"\0" * 8,)))
    with pytest.raises(ValueError, match="1 identifiers, not 2"):
        list(refl_pieces(("a",), 2, kinds, 0, lambda name: ()))


def rewritten(content: dict[str, Any], size: int) -> dict[str, Any]:
    def section(name: str) -> Iterable[str]:
        items = content.get(name, [])
        return [item_text(items[i : i + size]) for i in range(0, len(items), size)]

    found: dict[str, Any] = json.loads(b"".join(expt_pieces(section)))
    return found


def test_empty_pieces_leave_no_holes() -> None:
    texts = {"beam": ["", item_text([{"a": 1}]), "", item_text([{"b": [2, 3]}, {"c": None}]), ""]}
    found = json.loads(b"".join(expt_pieces(lambda name: texts.get(name, ()))))
    assert found["beam"] == [{"a": 1}, {"b": [2, 3]}, {"c": None}]
    assert list(found) == ["__id__", *SECTIONS]
    assert all(found[name] == [] for name in SECTIONS if name != "beam")


@pytest.mark.peer
@pytest.mark.parametrize("name", ["strong", "indexed", "refined", "integrated", "scaled"])
def test_dials_tables_in_pieces(shared_data: Path, name: str) -> None:
    table = read_refl(shared_data / "dials_quartz" / f"{name}.refl.xz")
    plain = {n: c for n, c in table.columns.items() if not isinstance(c, RawColumn)}
    expected = ReflectionFile(table.identifiers, table.n_rows, plain, {n: table.kinds[n] for n in plain})
    assert pieces_of(table, 4096) == refl_bytes(expected)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["dials_quartz/integrated.expt.xz", "metrology_cspad/experiments.expt.xz"])
def test_dials_experiments_in_pieces(shared_data: Path, name: str) -> None:
    content = json.loads(lzma.decompress((shared_data / name).read_bytes()))
    found = rewritten(content, 7)
    assert {k: v for k, v in found.items() if v} == {k: v for k, v in content.items() if v}
    assert [e.crystal for e in parse_expt(found)] == [e.crystal for e in parse_expt(content)]


@pytest.mark.peer
def test_indexed_columns_have_the_types_of_dials(shared_data: Path) -> None:
    theirs = read_refl(shared_data / "dials_quartz" / "refined.refl.xz").kinds
    assert {k: v for k, v in INDEXED_KINDS.items() if k in theirs} == {k: v for k, v in theirs.items() if k in INDEXED_KINDS}
    assert set(theirs) - set(INDEXED_KINDS) == {"shoebox", "imageset_id"}
    assert set(INDEXED_KINDS) - set(theirs) == {"d", "delpsical.rad"}, "columns of stills"


@pytest.mark.peer
def test_indexed_spots_of_dials_field_by_field(shared_data: Path) -> None:
    folder = shared_data / "metrology_cspad"
    with h5py.File(folder / "indexed.h5") as file:
        theirs = {name: file[name][()] for name in file}
    experiments = read_expt(folder / "experiments.expt.xz")
    for number in (0, 150, 299):
        rows = np.flatnonzero(theirs["id"] == number)
        px, variance = theirs["xyzobs.px.value"][rows], theirs["xyzobs.px.variance"][rows]
        n, used = len(rows), theirs["flags"][rows] & int(DialsFlag.CENTROID_OUTLIER) == 0
        spots = SpotTable(
            n, panel=theirs["panel"][rows], fast=px[:, 0], slow=px[:, 1], var_fast=variance[:, 0], var_slow=variance[:, 1]
        )
        indexed = IndexedTable(n, hkl=theirs["miller_index"][rows], fast_calc=px[:, 0], slow_calc=px[:, 1], used=used)
        item = LatticeReflections(experiments[number], ReflectionTable(0), indexed=indexed, spots=spots)
        ours = indexed_columns(number, item)
        assert np.array_equal(ours["flags"][used], theirs["flags"][rows][used])
        assert (ours["flags"][~used] & np.uint64(int(DialsFlag.CENTROID_OUTLIER))).all()
        for name in ("id", "miller_index", "panel"):
            assert np.array_equal(ours[name], theirs[name][rows]), name
        for name, tolerance in (("px.value", 1e-9), ("px.variance", 1e-6), ("mm.variance", 1e-9)):
            assert np.allclose(ours[f"xyzobs.{name}"], theirs[f"xyzobs.{name}"][rows], rtol=1e-6, atol=tolerance), name
        # DIALS had them from the geometry before this one, whose rays came in at angles a little different
        parallax = theirs["xyzobs.mm.value"][rows, :2] - 0.10992 * px[:, :2]
        off = ours["xyzobs.mm.value"][:, :2] - theirs["xyzobs.mm.value"][rows, :2]
        assert np.sqrt(np.mean(off**2)) < 0.02 * np.sqrt(np.mean(parallax**2))
        hkl = np.linalg.solve(experiments[number].crystal.a_matrix, ours["rlp"].T).T  # type: ignore[union-attr]
        assert np.abs(hkl - theirs["miller_index"][rows]).max() < 0.4

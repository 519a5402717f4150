from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xfelproc.errors import DataError
from xfelproc.io.manifest import (
    UNSEEN,
    Manifest,
    Sources,
    SourceTable,
    cut_units,
    default_unit_size,
    file_state,
    read_manifest,
    write_manifest,
)
from xfelproc.io.manifest_reader import ManifestReader
from xfelproc.io.names import FileNames


def make_manifest(
    folders: list[str],
    folder_of: list[int],
    names: list[str],
    n_frames: list[int],
    sizes: list[int],
    unit_size: int = 3,
    errors: dict[int, str] | None = None,
) -> Manifest:
    table = SourceTable(None, size=sizes, mtime=sizes, n_frames=n_frames, chunk_frames=[1] * len(names))
    source = np.repeat(np.arange(len(names), dtype=np.int32), n_frames)
    index = np.concatenate([np.arange(n) for n in n_frames])
    offsets = cut_units(source, index, table["chunk_frames"], unit_size)
    return Manifest(Sources(FileNames.of(folders, folder_of, names), table, errors or {}), source, index, offsets)


@pytest.mark.parametrize(("n", "size"), [(1, 8), (60, 8), (1024, 8), (12800, 100), (10**6, 500)])
def test_unit_size_is_of_the_input_alone(n: int, size: int) -> None:
    assert default_unit_size(n) == size


def test_units_keep_chunks_whole() -> None:
    source = np.repeat(np.arange(3, dtype=np.int32), [10, 7, 5])
    index = np.concatenate([np.arange(10), np.arange(7), np.arange(5)])
    chunks = np.array([4, 1, 5], dtype=np.int32)
    offsets = cut_units(source, index, chunks, 3)
    assert offsets[0] == 0
    assert offsets[-1] == 22
    assert np.all(np.diff(offsets) >= 1)
    for edge in offsets[1:-1]:
        same = source[edge] == source[edge - 1] and index[edge] // chunks[source[edge]] == index[edge - 1] // chunks[source[edge]]
        assert not same
    assert cut_units(source[:0], index[:0], chunks, 3).tolist() == [0]
    assert cut_units(source, index, np.ones(3, np.int32), 8).tolist() == [0, 8, 16, 22]


def small() -> Manifest:
    return make_manifest(["/a", "/b"], [0, 1, 1], ["x.h5", "y.h5", "z.h5"], [3, 2, 1], [5, 6, 7], errors={2: "é is cut short"})


def test_round_trip(tmp_path: Path) -> None:
    manifest = small()
    write_manifest(tmp_path / "m.h5", manifest)
    again = read_manifest(tmp_path / "m.h5")
    assert again.stamp == manifest.stamp
    assert again.unit(1) == manifest.unit(1)
    assert again.sources.errors == {2: "é is cut short"}
    assert [again.sources.path(n) for n in range(3)] == ["/a/x.h5", "/b/y.h5", "/b/z.h5"]
    assert again.sources.name(2) == "z.h5"


def test_fingerprints_are_of_names_sizes_and_times_not_of_folders() -> None:
    manifest = small()
    moved = make_manifest(["/c", "/b"], [0, 1, 1], ["x.h5", "y.h5", "z.h5"], [3, 2, 1], [5, 6, 7], errors={2: "é is cut short"})
    changed = make_manifest(["/a", "/b"], [0, 1, 1], ["x.h5", "y.h5", "z.h5"], [3, 2, 1], [5, 9, 7])
    renamed = make_manifest(["/a", "/b"], [0, 1, 1], ["w.h5", "y.h5", "z.h5"], [3, 2, 1], [5, 6, 7])
    assert moved.stamp == manifest.stamp
    assert [moved.unit_fingerprint(u) for u in (0, 1)] == [manifest.unit_fingerprint(u) for u in (0, 1)]
    assert changed.unit_fingerprint(0) == manifest.unit_fingerprint(0)
    assert changed.unit_fingerprint(1) != manifest.unit_fingerprint(1)
    assert renamed.unit_fingerprint(0) != manifest.unit_fingerprint(0)
    readable = make_manifest(["/a", "/b"], [0, 1, 1], ["x.h5", "y.h5", "z.h5"], [3, 2, 1], [5, 6, 7])  # permission was given
    assert [readable.unit_fingerprint(u) == manifest.unit_fingerprint(u) for u in (0, 1)] == [True, False]
    assert len({manifest.stamp, changed.stamp, renamed.stamp}) == 3


file_names = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=12)
numbered = st.builds(
    "{}{}{}".format, st.sampled_from(["run_", "a", ""]), st.integers(0, 999), st.sampled_from([".cbf", ".cbf.bz2", ""])
)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), names=st.lists(st.one_of(file_names, numbered), min_size=1, max_size=80, unique=True))
def test_a_unit_read_alone_is_the_unit_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, names: list[str]
) -> None:
    n = len(names)
    n_frames = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n).filter(any))
    sizes = data.draw(st.lists(st.sampled_from([UNSEEN, 100, 2**40]), min_size=n, max_size=n))
    errors = {number: f"no {number}" for number in data.draw(st.sets(st.integers(0, n - 1), max_size=3))}
    folder_of = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    manifest = make_manifest(["/a", "/b/ü", "/"], folder_of, names, n_frames, sizes, data.draw(st.integers(1, 9)), errors)
    rows = np.array(data.draw(st.permutations(range(manifest.n_frames))), dtype=np.int64)[: 1 + manifest.n_frames // 2]
    path = tmp_path_factory.mktemp("manifest") / "m.h5"
    for whole in (manifest, manifest.with_frames(rows, 4)):
        write_manifest(path, whole)
        assert read_manifest(path).stamp == whole.stamp
        reader = ManifestReader(path)
        for unit in range(whole.n_units):
            alone, expected = reader.unit_input(unit), whole.unit_input(unit)
            assert alone.unit == expected.unit == whole.unit(unit)
            assert alone.fingerprint == expected.fingerprint == whole.unit_fingerprint(unit)
            assert alone.sources.errors == expected.sources.errors
            assert alone.unseen.tolist() == expected.unseen.tolist()
            for number in whole.frame_source[whole.offsets[unit] : whole.offsets[unit + 1]]:
                path_of = os.path.join(["/a", "/b/ü", "/"][folder_of[number]], names[number])  # noqa: PTH118
                assert alone.sources.path(alone.row(number)) == path_of == whole.sources.path(int(number))
        reader.close()


def test_a_million_frames_take_few_bytes(tmp_path: Path) -> None:
    n = 200_000
    names = [f"lysozyme_run12_{i:06d}.cbf.gz" for i in range(n)]
    single = make_manifest(["/data/run12"], [0] * n, names, [1] * n, [UNSEEN] * n, 500)
    multi = make_manifest(["/d"], [0] * 200, [f"r{i}.h5" for i in range(200)], [1000] * 200, [9] * 200, 500)
    for manifest, limit in ((single, 64 + 6), (multi, 64)):
        write_manifest(tmp_path / "m.h5", manifest)
        assert (tmp_path / "m.h5").stat().st_size <= limit * n
        texts = [manifest.sources.names.middles, manifest.sources.names.beginnings]
        arrays = [manifest.frame_source, manifest.frame_index, manifest.offsets, manifest.sources.names.template]
        arrays += [array for text in texts for array in (text.ends, text.text)]
        arrays += [manifest.sources.table[column.name] for column in SourceTable.SCHEMA]
        assert sum(array.nbytes for array in arrays) <= limit * n
    assert len(single.sources.names.template_folder) == 1


def test_a_damaged_manifest_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with pytest.raises(DataError, match="run the same command again"):
        ManifestReader(path)
    write_manifest(path, small())
    with h5py.File(path, "r+") as file:
        del file["names/template"]
    with pytest.raises(DataError, match="run the same command again"):
        ManifestReader(path).unit_input(0)
    with pytest.raises(DataError):
        read_manifest(path)


def test_state_of_files(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert file_state(path) == (-2, -2)
    path.write_bytes(b"abc")
    os.utime(path, ns=(5, 7))
    assert file_state(path) == (3, 7)

from __future__ import annotations

import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xfelproc.io.names import SHARED_BY, FileNames, Texts

# whatever a file system takes: any bytes but these two, also what is no UTF-8
raw_names = st.binary(min_size=1, max_size=20).filter(lambda name: b"/" not in name and b"\0" not in name).map(os.fsdecode)
serial_names = st.builds(
    "{}{:04d}{}".format, st.sampled_from(["run1_", "7x", ""]), st.integers(0, 99), st.sampled_from([".cbf", ".img.bz2"])
)


@given(st.lists(st.tuples(st.integers(0, 2), st.one_of(raw_names, serial_names)), max_size=60))
def test_any_name_comes_back(files: list[tuple[int, str]]) -> None:
    folders = ["/data/a", "/", "/données\udcff"]
    names = FileNames.of(folders, [folder for folder, _ in files], [name for _, name in files])
    assert [names.path(i) for i in range(len(files))] == [os.path.join(folders[f], name) for f, name in files]  # noqa: PTH118
    assert [names.name(i) for i in range(len(names))] == [name for _, name in files]
    some = np.arange(len(files))[::-2].astype(np.int64)
    assert [names.select(some).path(i) for i in range(len(some))] == [names.path(int(n)) for n in some]


def test_what_names_share_is_kept_once() -> None:
    serial = [f"run12_{i:05d}.cbf.bz2" for i in range(100)]
    names = FileNames.of(["/a"], [0] * 101, [*serial, "run12_extra.cbf"])
    assert names.beginnings[0] == b"run12_"
    assert names.endings[0] == b".cbf.bz2"
    assert names.middles[7] == b"00007"
    assert names.middles[100] == b"run12_extra.cbf"
    assert len(names.template_folder) == 2


def test_names_of_few_make_no_template() -> None:
    names = FileNames.of(["/a"], [0] * 40, [f"a{i}_b{i % 3}_c.cbf" for i in range(40)])
    assert len(names.template_folder) == 1
    few = SHARED_BY - 1
    assert FileNames.of(["/a"], [0] * few, [f"x{i}.cbf" for i in range(few)]).middles[3] == b"x3.cbf"


@given(st.lists(st.binary(max_size=5)))
def test_texts(strings: list[bytes]) -> None:
    texts = Texts.of(strings)
    assert [texts[i] for i in range(len(texts))] == strings

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xfelproc.errors import DataError
from xfelproc.io.nodes import find_node, node_path, read_node, write_node

ARRAYS = {"a": np.arange(5000.0), "empty": np.zeros((0, 3), np.float32), "one": np.array(3), "yes": np.array([True, False])}


def test_arrays_come_back(tmp_path: Path) -> None:
    path = node_path(tmp_path / "gather" / "x" / "0", 4, 12)
    assert path.name == "4-0012.h5"
    write_node(path, "this", ARRAYS)
    lineage, arrays = read_node(path)
    assert lineage == "this"
    assert arrays.keys() == ARRAYS.keys()
    for name, values in ARRAYS.items():
        assert np.array_equal(arrays[name], values)
        assert (arrays[name].dtype, arrays[name].shape) == (values.dtype, values.shape)
    assert read_node(path, ["one"])[1] == {"one": np.array(3)}
    assert find_node(path, "that") is None
    assert find_node(path.with_name("none.h5"), "this") is None


def test_damage_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    write_node(path, "this", {"a": np.arange(100), "b": np.arange(100) + 7})
    content = bytearray(path.read_bytes())
    content[content.index((np.arange(100) + 7).tobytes()) + 8] ^= 1
    path.write_bytes(bytes(content))
    assert len(read_node(path, ["a"])[1]["a"]) == 100
    with pytest.raises(DataError, match="checksum"):
        read_node(path, ["b"])
    assert find_node(path, "this") is None

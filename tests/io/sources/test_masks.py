from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from xfelproc.errors import ConfigError
from xfelproc.io.sources.masks import build_mask, describe_mask, geometry_mask, stack_shapes, to_stack
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.conventions import MaskBit
from xfelproc.models.experiment import Detector, Panel

A = Panel("a", (1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -100.0), (0.1, 0.1), (6, 4))
ONE = Detector((A,))
TWO = Detector((A, replace(A, name="b", image_size=(5, 3), raw_image_offset=(7, 1), mask=((-1, 1, 2, 99),))))


def test_slab_is_cut_at_the_offsets() -> None:
    slab = np.arange(4 * 12).reshape(4, 12)
    assert stack_shapes(TWO) == ((2, 4, 6), (4, 12))
    stack = to_stack(slab, TWO)
    assert np.array_equal(stack[0], slab[:, :6])
    assert np.array_equal(stack[1, :3, :5], slab[1:4, 7:12])
    out = np.full((2, 4, 6), -1)
    assert to_stack(slab, TWO, out) is out
    assert out[1, 3, 5] == -1


def test_equal_panels_below_one_another_are_a_view() -> None:
    detector = Detector((A, replace(A, name="b")))
    flat = np.arange(48).reshape(8, 6)
    assert np.shares_memory(to_stack(flat, detector), flat)
    with pytest.raises(ValueError, match=r"\(7, 6\).*\(2, 4, 6\) or \(8, 6\)"):
        to_stack(flat[:7], detector)


def test_geometry_mask_marks_padding_and_rectangles() -> None:
    mask = geometry_mask(TWO)
    assert not mask[0].any()
    assert (mask[1, 3:] == MaskBit.PADDING).all()
    assert (mask[1, :, 5:] == MaskBit.PADDING).all()
    assert (mask[1, 1:3, :2] == MaskBit.REGION).all()
    assert np.count_nonzero(mask & MaskBit.REGION) == 4
    assert np.count_nonzero(mask[1] == 0) == 15 - 4


def _save(folder: Path, values: np.ndarray) -> list[str]:
    np.save(folder / "m.npy", values)
    np.savez(folder / "m.npz", mask=values)
    with h5py.File(folder / "m.h5", "w") as file:
        file["/a/mask"] = values
    import fabio.edfimage

    fabio.edfimage.EdfImage(data=values.astype(np.int32)).write(str(folder / "m.edf"))
    return [str(folder / "m.npy"), str(folder / "m.npz"), f"{folder / 'm.h5'}:/a/mask", str(folder / "m.edf")]


def test_mask_files_of_every_kind(tmp_path: Path) -> None:
    values = np.zeros((4, 6), dtype=np.uint8)
    values[1, 2] = 3
    for spec in _save(tmp_path, values):
        mask = build_mask(ONE, SourceSettings(mask=spec))
        assert np.flatnonzero(mask).tolist() == [8]
        assert mask[0, 1, 2] == MaskBit.BAD
        assert not mask.flags.writeable
        assert np.count_nonzero(build_mask(ONE, SourceSettings(mask=spec, mask_good=3)) == MaskBit.BAD) == 23
    assert "0 is good" in describe_mask(SourceSettings(mask="m.npy"))
    assert describe_mask(SourceSettings()) == ""


def test_wrong_masks_name_both_shapes_and_files(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.zeros((6, 4)))
    with pytest.raises(ConfigError, match=r"\(6, 4\).*\(4, 6\)"):
        build_mask(ONE, SourceSettings(mask=str(tmp_path / "m.npy")))
    with pytest.raises(ConfigError, match=r"\(6, 4\).*\(2, 4, 6\)"):
        build_mask(TWO, SourceSettings(mask=str(tmp_path / "m.npy")))
    with pytest.raises(ConfigError, match="no such file"):
        build_mask(ONE, SourceSettings(mask=str(tmp_path / "absent.npy")))
    (tmp_path / "bad.npy").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="cannot be read"):
        build_mask(ONE, SourceSettings(mask=str(tmp_path / "bad.npy")))
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["/a/mask"] = np.zeros((4, 6))
    with pytest.raises(ConfigError, match="name the dataset"):
        build_mask(ONE, SourceSettings(mask=str(tmp_path / "m.h5")))
    with pytest.raises(ConfigError, match="no dataset"):
        build_mask(ONE, SourceSettings(mask=f"{tmp_path / 'm.h5'}:/b"))
    with pytest.raises(ConfigError, match="mask_good = 1 without"):
        build_mask(ONE, SourceSettings(mask_good=1))
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    with pytest.raises(ConfigError, match="a, b"):
        build_mask(ONE, SourceSettings(mask=str(tmp_path / "two.npz")))

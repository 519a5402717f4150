from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from xfelproc.errors import DataError
from xfelproc.io.calibration_file import read_calibration, write_calibration
from xfelproc.models.calibration import DetectorConstants, StageCoding, merged
from xfelproc.models.conventions import PixelMask

SHAPE = (2, 5, 7)


def full(**changes: Any) -> DetectorConstants:
    rng = np.random.default_rng(3)
    arrays = {name: rng.uniform(1, 2, (3, *SHAPE)).astype(np.float32) for name in ("pedestal", "noise", "gain")}
    mask = rng.choice(np.array([0, PixelMask.DEAD, PixelMask.VIRTUAL], dtype=np.uint32), SHAPE)
    thresholds = rng.uniform(1, 2, (2, *SHAPE)).astype(np.float32)
    coding = StageCoding("array", np.array([[0, 1, 2], [0, 1, -1]], dtype=np.int8), 0, thresholds, 12.5)
    given = DetectorConstants(**arrays, gain_unit="ADU/keV", mask=mask, coding=coding, provenance={"dark_frames_0": "100"})
    return replace(given, **changes)


def same(a: Any, b: Any) -> bool:
    return (a is None and b is None) or (np.array_equal(a, b, equal_nan=True) and a.dtype == b.dtype)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, given = tmp_path / "constants.h5", full()
    write_calibration(path, given)
    first = path.read_bytes()
    found = read_calibration(path)
    assert all(same(getattr(found, name), getattr(given, name)) for name in ("pedestal", "noise", "gain", "mask"))
    assert given.coding is not None
    assert found.coding is not None
    assert same(found.coding.stages, given.coding.stages)
    assert same(found.coding.thresholds, given.coding.thresholds)
    assert (found.coding.source, found.coding.saturated, found.gain_unit) == ("array", 12.5, "ADU/keV")
    assert found.provenance == given.provenance
    write_calibration(path, found)
    assert path.read_bytes() == first  # no time, no path
    assert [p.name for p in tmp_path.iterdir()] == ["constants.h5"]


def test_darks_alone_and_gains_alone(tmp_path: Path) -> None:
    path = tmp_path / "constants.h5"
    for given in (
        DetectorConstants(pedestal=np.ones((1, *SHAPE), np.float32)),
        DetectorConstants(gain=np.ones((1, 2), np.float32)),
    ):
        write_calibration(path, replace(given, saturation=16000.0))
        found = read_calibration(path)
        assert same(found.pedestal, given.pedestal)
        assert same(found.gain, given.gain)
        assert (found.saturation, found.coding, found.n_stages) == (16000.0, None, 1)


def test_a_file_by_another_program_needs_datasets_only(tmp_path: Path) -> None:
    path = tmp_path / "constants.h5"
    with h5py.File(path, "w") as file:
        file["pedestal"] = np.full((1, *SHAPE), 100, dtype=np.int16)
        file["gain"] = np.full((1, *SHAPE), 30.0)
        file["gain"].attrs["unit"] = "ADU/photon"
    found = read_calibration(path)
    assert found.pedestal is not None
    assert found.pedestal.dtype == np.float32
    assert found.mask is None


def wrong(path: Path, **arrays: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, values in {"pedestal": np.ones((1, *SHAPE)), **arrays}.items():
            if name.startswith("attr_"):
                file.attrs[name[5:]] = values
            else:
                file[name] = values
        if "gain" in file:
            file["gain"].attrs["unit"] = arrays.get("attr_unit", "ADU/photon")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pedestal": np.ones(SHAPE)}, r"pedestal has shape \(2, 5, 7\): \(stage, panel, slow, fast\) is needed"),
        ({"noise": np.ones((1, 2, 5, 8))}, r"noise has panels of shape \(2, 5, 8\), other arrays have \(2, 5, 7\)"),
        ({"noise": np.ones((2, *SHAPE))}, r"pedestal and noise have \[1, 2\] gain stages"),
        ({"mask": np.zeros(SHAPE)}, "mask is of type float64: bits in whole numbers"),
        ({"mask": "text"}, "/mask is no array of numbers"),
        ({"gain": np.array([[1.0, 0.0]])}, "gain of stage 0, panel 1 is 0 ADU/photon: it must be a number, and not 0"),
        ({"gain": np.array([[np.nan, 1.0]])}, "gain of stage 0, panel 0 is nan"),
        ({"gain": np.array([[1.0, 1.0, 1.0]])}, "gain has 3 panels, other arrays have 2"),
        ({"gain": np.zeros((1, *SHAPE))}, "gain of stage 0 is 0 or as useless in every pixel"),
        ({"gain": np.full((1, *SHAPE), np.nan)}, "gain of stage 0 is nan or as useless in every pixel"),
        ({"gain": np.ones((1, 2)), "attr_unit": "ADU/eV"}, "gain has the unit 'ADU/eV'"),
        ({"attr_n_stages": 3}, "the file says 3 gain stages and has constants of 1: a stage is missing"),
        ({"attr_format": 99}, "a newer xfelproc wrote it"),
        ({"stages/stage_of_code": np.array([0, 1])}, "/stages has source ''"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "constants.h5"
    wrong(path, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        read_calibration(path)
    assert str(path) in str(caught.value)


def test_missing_stages_and_no_such_file(tmp_path: Path) -> None:
    given = full()
    assert given.pedestal is not None
    missing = given.pedestal.copy()
    missing[1] = np.nan
    with pytest.raises(DataError, match="pedestal has no gain stage 1 of the 3 that raw values tell"):
        write_calibration(tmp_path / "a.h5", replace(given, pedestal=missing))
    with pytest.raises(DataError, match="gain has no gain stage 2"):
        write_calibration(tmp_path / "a.h5", replace(given, gain=np.ones((2, *SHAPE), np.float32)))
    unknown = given.gain.copy() if given.gain is not None else None
    assert unknown is not None
    unknown[2] = np.nan  # a gain nobody knows yet: such pixels are left out
    write_calibration(tmp_path / "a.h5", replace(given, gain=unknown))
    with pytest.raises(DataError, match="there is no such constants file"):
        read_calibration(tmp_path / "none.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(DataError, match="this is no constants file"):
        read_calibration(tmp_path / "b.h5")
    (tmp_path / "c.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:900])
    with pytest.raises(DataError, match="truncated or damaged"):
        read_calibration(tmp_path / "c.h5")


def test_stages_of_several_runs_are_merged() -> None:
    def one(stage: int, value: float) -> DetectorConstants:
        pedestal = np.full((stage + 1, *SHAPE), np.nan, dtype=np.float32)
        pedestal[stage] = value
        mask = np.zeros(SHAPE, np.uint32)
        mask[0, 0, stage] = 1 << stage
        return DetectorConstants(pedestal, pedestal, mask=mask, provenance={f"frames_{stage}": "1"})

    both = merged(merged(one(1, 5.0), one(0, 3.0)), DetectorConstants(gain=np.ones((2, 2), np.float32)))
    assert both.pedestal is not None
    assert both.mask is not None
    assert both.pedestal[:, 0, 0, 0].tolist() == [3.0, 5.0]
    assert both.mask[0, 0, :2].tolist() == [1, 2]
    assert both.gain is not None
    assert merged(both, one(1, 7.0)).pedestal[1, 0, 0, 0] == 7.0  # type: ignore[index]
    assert sorted(both.provenance) == ["frames_0", "frames_1"]
    with pytest.raises(DataError, match="constants of two detectors are mixed"):
        merged(both, DetectorConstants(pedestal=np.ones((1, 2, 5, 8), np.float32)))

"""The constants file: pedestal, noise, gain and bad pixels of a detector in plain HDF5 that others read, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.atomic import write_atomic
from xfelproc.io.store import opened
from xfelproc.models.calibration import GAIN_UNITS, DetectorConstants, StageCoding

FORMAT = 1
ARRAYS = {"pedestal": np.float32, "noise": np.float32, "gain": np.float32, "mask": np.uint32}


def write_calibration(path: Path, constants: DetectorConstants) -> None:
    """Publish a constants file; a reader sees the old one or the new one.

    Arrays are neither chunked nor compressed: a worker reads them at the disk's speed, and any program can.

    Raises
    ------
    DataError
        If the constants make no sense.
    OutputError
        If it cannot be written.
    """
    constants.check(path)
    with h5py.File("image", "w", driver="core", backing_store=False) as file:
        file.attrs["format"] = FORMAT
        file.attrs["n_stages"] = constants.n_stages
        if constants.saturation is not None:
            file.attrs["saturation"] = constants.saturation
        for key, value in sorted(constants.provenance.items()):
            file.attrs[f"provenance_{key}"] = value
        for name, dtype in ARRAYS.items():
            array = getattr(constants, name)
            if array is not None:
                file.create_dataset(name, data=np.asarray(array, dtype=dtype))
        for name in ("pedestal", "noise"):
            if name in file:
                file[name].attrs["unit"] = "ADU"
        if constants.gain is not None:
            file["gain"].attrs["unit"] = constants.gain_unit
        if constants.coding is not None:
            _put_coding(file, constants.coding)
        file.flush()
        content = bytes(file.id.get_file_image())
    write_atomic(path, content)


def _put_coding(file: Any, coding: StageCoding) -> None:
    group = file.create_group("stages")
    group.attrs["source"] = coding.source
    group.attrs["shift"] = coding.shift
    group.create_dataset("stage_of_code", data=coding.stages.astype(np.int8))
    if coding.saturated is not None:
        group.attrs["saturated"] = coding.saturated
    if coding.thresholds is not None:
        group.create_dataset("thresholds", data=coding.thresholds.astype(np.float32))


def read_calibration(path: Path) -> DetectorConstants:
    """Return the constants of a file, checked.

    Raises
    ------
    DataError
        If it cannot be read, or a shape, gain or stage in it is impossible; says which, and what to do.
    """
    if not path.is_file():
        raise DataError("there is no such constants file: correct [input] calibration, or make it with xfelproc calibrate", path)
    with opened(path) as file:
        if "format" not in file.attrs and not any(name in file for name in ARRAYS):
            raise DataError(
                f"this is no constants file: it has none of the datasets {', '.join('/' + name for name in ARRAYS)}; "
                "arrays of your own go to [input] dark, gain and mask",
                path,
            )
        if int(file.attrs.get("format", FORMAT)) > FORMAT:
            raise DataError(f"constants file of format {file.attrs['format']}: a newer xfelproc wrote it; use that one", path)
        arrays = {name: _array(file, name, dtype, path) for name, dtype in ARRAYS.items()}
        unit = "ADU/photon" if arrays["gain"] is None else str(file["gain"].attrs.get("unit", ""))
        known = next((u for u in GAIN_UNITS if u == unit), None)
        if known is None:
            raise DataError(f"gain has the unit {unit!r}: give its attribute unit as {' or '.join(GAIN_UNITS)}", path)
        saturation = file.attrs.get("saturation")
        constants = DetectorConstants(
            pedestal=arrays["pedestal"],
            noise=arrays["noise"],
            gain=arrays["gain"],
            gain_unit=known,
            mask=arrays["mask"],
            coding=_coding(file, path),
            saturation=None if saturation is None else float(saturation),
            provenance={
                k.removeprefix("provenance_"): str(v) for k, v in sorted(file.attrs.items()) if k.startswith("provenance_")
            },
        )
        stated = int(file.attrs.get("n_stages", constants.n_stages))
    if stated != constants.n_stages:
        raise DataError(f"the file says {stated} gain stages and has constants of {constants.n_stages}: a stage is missing", path)
    constants.check(path)
    return constants


def _array(file: Any, name: str, dtype: Any, path: Path) -> NDArray[Any] | None:
    found = file.get(name)
    if found is None:
        return None
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "iufb":
        raise DataError(f"/{name} is no array of numbers: write it with xfelproc calibrate, or as the format's page says", path)
    array = np.asarray(found[()])
    if name == "mask" and array.dtype.kind not in "iub":
        raise DataError(f"/mask is of type {array.dtype}: bits in whole numbers are needed", path)
    return array.astype(dtype)


def _coding(file: Any, path: Path) -> StageCoding | None:
    group = file.get("stages")
    if group is None:
        return None
    source = str(group.attrs.get("source", ""))
    if source not in ("bits", "array") or "stage_of_code" not in group:
        raise DataError(
            f"/stages has source {source!r}: 'bits' or 'array' is needed, and a dataset stage_of_code (panel, code)", path
        )
    stages = np.asarray(group["stage_of_code"][()], dtype=np.int8)
    thresholds = group.get("thresholds")
    saturated = group.attrs.get("saturated")
    return StageCoding(
        source="bits" if source == "bits" else "array",
        stages=np.atleast_2d(stages),
        shift=int(group.attrs.get("shift", 14)),
        thresholds=None if thresholds is None else np.asarray(thresholds[()], dtype=np.float32),
        saturated=None if saturated is None else float(saturated),
    )

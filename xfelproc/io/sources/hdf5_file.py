"""HDF5 files opened lazily, once per process and file, with errors that a user can act on."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the compression filters)
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError

MAX_OPEN = 16

_INHERITED: list[object] = []


def open_file(path: str | Path) -> Any:
    """Open an HDF5 file for reading, without locks.

    Raises
    ------
    DataError
        If it is missing, empty, not HDF5, or cut short.
    """
    where = Path(path)
    if not where.is_file():
        raise DataError("no such file: check the path, and whether the data have been moved or are still being copied", path)
    try:
        if where.stat().st_size == 0:
            raise DataError("the file is empty (0 bytes): copy it again", path)
        return h5py.File(where, "r", locking=False)
    except OSError as error:
        reason = "it is cut short: copy it again" if "truncated" in str(error) else "it is not HDF5, is damaged, or may not be read"
        raise DataError(f"cannot open as HDF5; {reason} ({str(error)[:200]})", path) from error


class Hdf5Pool:
    """Open files and datasets of one process: at most `MAX_OPEN` files, none inherited across a fork, none pickled."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._files: OrderedDict[str, Any] = OrderedDict()
        self._datasets: dict[tuple[str, str], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._reset()

    def file(self, path: str) -> Any:
        """Return the open file."""
        if self._pid != os.getpid():
            # handles of the parent must neither be used nor closed here: they are kept, so that nothing closes them
            _INHERITED.append((self._files, self._datasets))
            self._reset()
        found = self._files.get(path)
        if found is None:
            found = self._files[path] = open_file(path)
            while len(self._files) > MAX_OPEN:
                self._drop(next(iter(self._files)))
        else:
            self._files.move_to_end(path)
        return found

    def _drop(self, path: str) -> None:
        self._files.pop(path).close()
        for key in [k for k in self._datasets if k[0] == path]:
            del self._datasets[key]

    def dataset(self, path: str, name: str, frame: int | None = None) -> Any:
        """Return an open dataset.

        Raises
        ------
        DataError
            If the file does not open or does not hold it.
        """
        key = (path, name)
        file = self.file(path)
        if key not in self._datasets:
            self._datasets[key] = get_dataset(file, name, path, frame)
        return self._datasets[key]

    def close(self) -> None:
        """Close all files."""
        if self._pid == os.getpid():
            for path in list(self._files):
                self._drop(path)
        self._reset()


def get_dataset(file: Any, name: str, path: str, frame: int | None = None) -> Any:
    """Return dataset ``name`` of an open file, or say why it is not there."""
    try:
        found = file[name]
    except (KeyError, OSError, RuntimeError) as error:
        link = broken_link(file, name)
        if link is not None:
            raise DataError(
                f"{name} is a link to {link}, which cannot be opened: copy that file beside this one", path, frame
            ) from error
        near = nearest_group(file, name)
        raise DataError(
            f"there is no dataset {name}; {near}: correct the geometry's data path or input.data_path", path, frame
        ) from error
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"{name} is a group, not a dataset ({nearest_group(file, name)})", path, frame)
    return found


def broken_link(file: Any, name: str) -> str | None:
    """Return the target of the first external link on the way to ``name``, or None."""
    parts = [p for p in name.split("/") if p]
    for stop in range(1, len(parts) + 1):
        where = "/" + "/".join(parts[:stop])
        try:
            link = file.get(where, getlink=True)
        except (KeyError, OSError, RuntimeError):
            return None
        if isinstance(link, h5py.ExternalLink):
            return f"{link.filename}:{link.path}"
    return None


def nearest_group(file: Any, name: str) -> str:
    """Say what the deepest existing group on the way to ``name`` holds."""
    where, group = "/", file
    for part in (p for p in name.split("/") if p):
        try:
            below = group[part]
        except (KeyError, OSError, RuntimeError):
            break
        if not isinstance(below, h5py.Group):
            break
        where, group = below.name, below
    names = list(group)
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"{where} holds {shown or 'nothing'}"


def text_of(value: object) -> str:
    """Return bytes, str or an array of one of them as str."""
    item = value[()] if isinstance(value, h5py.Dataset) else value
    if isinstance(item, np.ndarray):
        item = item.reshape(-1)[0] if item.size else ""
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)


def numbers_of(dataset: Any, path: str) -> NDArray[np.float64]:
    """Return a dataset of numbers, flattened, as float64.

    Raises
    ------
    DataError
        If it does not hold numbers.
    """
    try:
        return np.asarray(dataset[()], dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OSError) as error:
        raise DataError(f"{dataset.name} cannot be read as numbers ({error})", path) from error

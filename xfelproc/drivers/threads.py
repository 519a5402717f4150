"""One thread a process for BLAS, OpenMP and numba: the bits of a result must not depend on how sums are split."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from xfelproc.errors import ConfigError

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)
_SET = tuple(f"{prefix}openblas_set_num_threads{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", ""))


def pin_threads() -> None:
    """Set the environment to one thread, whatever the caller's says; call before numpy is imported.

    Where an OpenBLAS is already loaded it is told directly.
    """
    os.environ.update(dict.fromkeys(VARIABLES, "1"))
    if "numpy" in sys.modules:
        for library in _loaded_openblas():
            for name in _SET:
                if hasattr(library, name):
                    getattr(library, name)(1)


def check_threads() -> None:
    """Verify that this process computes on one thread.

    Raises
    ------
    ConfigError
        If a BLAS was started with more.
    """
    for library in _loaded_openblas():
        for name in _SET:
            getter = name.replace("_set_", "_get_")
            if hasattr(library, getter) and (n := int(getattr(library, getter)())) != 1:
                raise ConfigError(
                    f"BLAS runs on {n} threads: results would depend on the machine; start through the xfelproc command, "
                    "or set OPENBLAS_NUM_THREADS=1 before numpy is imported"
                )


def _loaded_openblas() -> list[ctypes.CDLL]:
    """Return the OpenBLAS libraries mapped into this process (none where /proc does not tell)."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "openblas" in line}
    return [ctypes.CDLL(path) for path in sorted(paths)]

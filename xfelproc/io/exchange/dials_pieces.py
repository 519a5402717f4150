"""DIALS files in pieces, never in memory as a whole. See `dials_expt` and `dials_refl` for the formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgpack
import numpy as np

from xfelproc.errors import ConfigError
from xfelproc.io.exchange.dials_refl import MAGIC, TYPES, VERSION

LARGEST_COLUMN = (1 << 32) - 1
"""Bytes that msgpack can say of one piece of binary data."""
SECTIONS = ("experiment", "imageset", "beam", "detector", "goniometer", "scan", "crystal", "profile", "scaling_model")
"""Lists of an experiment file, in DIALS's order."""
SEPARATOR = ",\n"


def item_text(items: Iterable[Mapping[str, Any]]) -> str:
    """Return items of one list of an experiment file as text that `expt_pieces` takes."""
    return SEPARATOR.join(json.dumps(item, allow_nan=False) for item in items)


def expt_pieces(section: Callable[[str], Iterable[str]]) -> Iterator[bytes]:
    """Yield an experiment file.

    Parameters
    ----------
    section
        Called with the name of each of `SECTIONS`, in order; gives the texts that `item_text` made of its items.
    """
    yield b'{"__id__": "ExperimentList"'
    for name in SECTIONS:
        yield f',\n"{name}": ['.encode()
        begun = False
        for text in section(name):
            if text:
                yield (SEPARATOR + text if begun else "\n" + text).encode()
                begun = True
        yield b"]"
    yield b"}\n"


def refl_pieces(
    identifiers: Iterable[str], n_identifiers: int, kinds: Mapping[str, str], n_rows: int, column: Callable[[str], Iterable[bytes]]
) -> Iterator[bytes]:
    """Yield a reflection file.

    Parameters
    ----------
    identifiers, n_identifiers
        Of the experiments, in the order of the column ``id``, and how many they are.
    kinds
        Type of each column, as `dials_refl.TYPES` knows it.
    n_rows
        Number of reflections.
    column
        Called with the name of each column, in alphabetical order; gives its bytes, little-endian.

    Raises
    ------
    ConfigError
        If a column is longer than the format can say.
    ValueError
        If the bytes of a column are not those of ``n_rows`` rows, or the identifiers not ``n_identifiers``.
    """
    packer = msgpack.Packer(use_bin_type=True)
    sizes = {name: n_rows * np.dtype(dtype).itemsize * width for name, (dtype, width) in ((n, TYPES[k]) for n, k in kinds.items())}
    if max(sizes.values(), default=0) > LARGEST_COLUMN:
        raise ConfigError(
            f"{n_rows} reflections are more than one .refl file can hold (a column of 2^32 bytes): set combine.batch_size, or "
            "write indexed spots alone (combine.reflections = 'indexed')"
        )
    yield packer.pack_array_header(3) + packer.pack(MAGIC) + packer.pack(VERSION) + packer.pack_map_header(3)
    yield packer.pack("identifiers") + packer.pack_map_header(n_identifiers)
    count = 0
    for number, identifier in enumerate(identifiers):
        yield packer.pack(number) + packer.pack(identifier)
        count += 1
    if count != n_identifiers:
        raise ValueError(f"{count} identifiers, not {n_identifiers}")
    yield packer.pack("nrows") + packer.pack(n_rows) + packer.pack("data") + packer.pack_map_header(len(kinds))
    for name in sorted(kinds):
        yield packer.pack(name) + packer.pack_array_header(2) + packer.pack(kinds[name])
        yield packer.pack_array_header(2) + packer.pack(n_rows) + _binary_header(sizes[name])
        written = 0
        for piece in column(name):
            written += len(piece)
            yield piece
        if written != sizes[name]:
            raise ValueError(f"column {name!r} has {written} bytes, not {sizes[name]}")


def _binary_header(size: int) -> bytes:
    """Return what msgpack puts before binary data of a size."""
    if size < 1 << 8:
        return b"\xc4" + size.to_bytes(1, "big")
    if size < 1 << 16:
        return b"\xc5" + size.to_bytes(2, "big")
    return b"\xc6" + size.to_bytes(4, "big")

"""Names of very many files: what they have in common is kept once, and of each the few bytes that are its own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_CHARACTERS = 256
SHARED_BY = 16
"""A template of fewer names is not worth its own bytes: these keep their whole names."""

# what comes before the last number, the number, and what follows it; numbers in suffixes do not count
_PARTS = re.compile(r"(.*?)([0-9]+)([^0-9]*(?:\.(?:h5|hdf5|mar[0-9]+))?(?:\.bz2)?)", re.DOTALL)


@dataclass(frozen=True)
class Texts:
    """Byte strings of any length, end to end. ``ends`` (n,) is where each ends in ``text``."""

    ends: NDArray[np.int64]
    text: NDArray[np.uint8]

    @classmethod
    def of(cls, strings: Iterable[bytes]) -> Texts:
        """Put strings together."""
        text, ends = bytearray(), []
        for string in strings:
            text += string
            ends.append(len(text))
        return cls(np.array(ends, dtype=np.int64), np.frombuffer(bytes(text), dtype=np.uint8))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> bytes:
        start = self.ends[number - 1] if number else 0
        return self.text[start : self.ends[number]].tobytes()


@dataclass(frozen=True)
class FileNames:
    """Paths of files. A template is a folder, what a name begins with and what it ends with; a file has a template and a middle.

    Names are bytes, as the file system has them.
    """

    folders: Texts
    template_folder: NDArray[np.int32]
    beginnings: Texts
    endings: Texts
    template: NDArray[np.int32]
    middles: Texts

    @classmethod
    def of(cls, folders: Sequence[str], folder_of: Sequence[int], names: Sequence[str]) -> FileNames:
        """Find the templates of names.

        Parameters
        ----------
        folders
            Folders, each once.
        folder_of
            Number of the folder of each name.
        names
            Names of files.
        """
        shapes: dict[tuple[int, str, str], int] = {}
        shape, spans = np.empty(len(names), dtype=np.int32), np.empty((len(names), 2), dtype=np.uint8)
        for i, (folder, name) in enumerate(zip(folder_of, names, strict=True)):
            found = _PARTS.fullmatch(name) if len(name) < MOST_CHARACTERS else None
            key, spans[i] = ((folder, "", ""), (0, 0)) if found is None else ((folder, found[1], found[3]), found.span(2))
            shape[i] = shapes.setdefault(key, len(shapes))
        shared = np.bincount(shape, minlength=len(shapes)) >= SHARED_BY
        return cls._of_shapes(folders, names, list(shapes), shape, spans, shared)

    @classmethod
    def _of_shapes(
        cls,
        folders: Sequence[str],
        names: Sequence[str],
        shapes: Sequence[tuple[int, str, str]],
        shape: NDArray[np.int32],
        spans: NDArray[np.uint8],
        shared: NDArray[np.bool_],
    ) -> FileNames:
        """Keep the middles of names whose shape (folder, beginning, ending) is shared by enough of them, else the whole names."""
        numbers: dict[tuple[int, str, str], int] = {}
        of_shape = [numbers.setdefault(s if shared[i] else (s[0], "", ""), len(numbers)) for i, s in enumerate(shapes)]
        starts, stops = spans[:, 0].tolist(), spans[:, 1].tolist()
        ends, text = np.empty(len(names), dtype=np.int64), bytearray()
        parted = shared & np.array([bool(beginning or ending) for _, beginning, ending in shapes], dtype=np.bool_)
        for i, (name, own) in enumerate(zip(names, parted[shape].tolist(), strict=True)):
            text += os.fsencode(name[starts[i] : stops[i]] if own else name)
            ends[i] = len(text)
        return cls(
            folders=Texts.of(map(os.fsencode, folders)),
            template_folder=np.array([folder for folder, _, _ in numbers], dtype=np.int32),
            beginnings=Texts.of(os.fsencode(beginning) for _, beginning, _ in numbers),
            endings=Texts.of(os.fsencode(ending) for _, _, ending in numbers),
            template=np.array(of_shape, dtype=np.int32)[shape],
            middles=Texts(ends, np.frombuffer(bytes(text), dtype=np.uint8)),
        )

    def __len__(self) -> int:
        return len(self.template)

    def bare(self, number: int) -> bytes:
        """Return the name of a file without its folder."""
        template = int(self.template[number])
        return self.beginnings[template] + self.middles[number] + self.endings[template]

    def name(self, number: int) -> str:
        """Return the name of a file without its folder."""
        return os.fsdecode(self.bare(number))

    def path(self, number: int) -> str:
        """Return the path of a file."""
        folder = os.fsdecode(self.folders[int(self.template_folder[self.template[number]])])
        return os.path.join(folder, self.name(number))  # noqa: PTH118  (a million of them)

    def select(self, numbers: NDArray[np.int64]) -> FileNames:
        """Return some of the files, with all templates."""
        middles = Texts.of(self.middles[int(n)] for n in numbers)
        return FileNames(self.folders, self.template_folder, self.beginnings, self.endings, self.template[numbers], middles)

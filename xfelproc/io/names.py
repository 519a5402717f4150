"""Names of very many files: what they have in common is kept once, and of each the few bytes that are its own."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
        uses: Counter[tuple[int, str, str]] = Counter()
        for folder, name in zip(folder_of, names, strict=True):
            found = _PARTS.fullmatch(name)
            if found is not None:
                uses[folder, found[1], found[3]] += 1
        numbers: dict[tuple[int, str, str], int] = {}
        template = np.empty(len(names), dtype=np.int32)
        ends, text = np.empty(len(names), dtype=np.int64), bytearray()
        for i, (folder, name) in enumerate(zip(folder_of, names, strict=True)):
            found = _PARTS.fullmatch(name)
            key, middle = (folder, "", ""), name
            if found is not None and uses[folder, found[1], found[3]] >= SHARED_BY:
                key, middle = (folder, found[1], found[3]), found[2]
            template[i] = numbers.setdefault(key, len(numbers))
            text += os.fsencode(middle)
            ends[i] = len(text)
        return cls(
            folders=Texts.of(map(os.fsencode, folders)),
            template_folder=np.array([folder for folder, _, _ in numbers], dtype=np.int32),
            beginnings=Texts.of(os.fsencode(beginning) for _, beginning, _ in numbers),
            endings=Texts.of(os.fsencode(ending) for _, _, ending in numbers),
            template=template,
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

"""Paths and classes of very many files, in little memory."""

import array
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

# Files that are looked up at once.
_BLOCK = 1 << 16


class FileTable:
    """Folder, name and class of each file, in the order in which they were added.

    Names are kept in one buffer and each folder once, which takes about 40 bytes a file
    where a list of paths takes 350.

    Attributes:
      folders: their paths, each encoded and with a slash at its end.
    """

    def __init__(self) -> None:
        self.folders: list[bytes] = []
        self._names = bytearray()
        self._ends = array.array("q", [0])  # name i is _names[_ends[i]:_ends[i + 1]]
        self._folder_of = array.array("i")
        self._classes = array.array("i")

    def __len__(self) -> int:
        """Returns the number of files."""
        return len(self._classes)

    def add(
        self, folder: os.PathLike, names: Sequence[str], classes: Iterable[int]
    ) -> None:
        """Adds files of a folder, each with the index of its class."""
        encoded = os.fsencode("/".join(names)).split(b"/") if names else []
        ends = itertools.accumulate(map(len, encoded), initial=len(self._names))
        self._ends.extend(itertools.islice(ends, 1, None))
        self._names += b"".join(encoded)
        self._folder_of.extend(itertools.repeat(len(self.folders), len(encoded)))
        self._classes.extend(classes)
        self.folders.append(os.fsencode(os.path.join(folder, "")))

    def classes(self) -> np.ndarray:
        """Returns the class index of each file, (files,) int32."""
        return np.asarray(self._classes, np.int32)

    def blocks(self, indices: np.ndarray) -> Iterator[tuple[list[int], list[bytes]]]:
        """Yields indices of folders, and encoded names, of some files, many at once."""
        names = bytes(self._names)
        ends = np.frombuffer(self._ends, np.int64)
        folder_of = np.frombuffer(self._folder_of, np.int32)
        for first in range(0, len(indices), _BLOCK):
            block = indices[first : first + _BLOCK]
            bounds = zip(ends[block].tolist(), ends[block + 1].tolist(), strict=True)
            yield folder_of[block].tolist(), [names[start:end] for start, end in bounds]

    def path(self, index: int) -> str:
        """Returns the path of a file."""
        name = self._names[self._ends[index] : self._ends[index + 1]]
        return os.fsdecode(self.folders[self._folder_of[index]] + name)

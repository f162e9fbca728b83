"""What a source of examples is, and one that keeps them in memory."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from vt_flax.data.orientation import UPRIGHT
from vt_flax.errors import UserError

# Of some examples: records, classes where these are not in the records, orientations.
Records = tuple[list[bytes], list[int], list[int]]


@dataclasses.dataclass(frozen=True)
class Example:
    """One stored example.

    Attributes:
      image: the encoded file.
      label: class index from 0; or the encoded file of a mask of them.
      orientation: by which the stored image is to be turned; 1: it is used as stored.
    """

    image: bytes
    label: int | bytes
    orientation: int = UPRIGHT


class Source(abc.ABC):
    """One split of a dataset.

    Attributes:
      name: dataset and split, for messages.
      class_names: a name for each class index.
      mirrored: the class that each becomes in a mirrored image, as a left arm becomes a
        right one; empty: all stay what they are.
      notes: what a user should know of it before a run starts.
    """

    name: str
    class_names: Sequence[str]
    mirrored: Sequence[int] = ()
    notes: Sequence[str] = ()

    @abc.abstractmethod
    def __len__(self) -> int:
        """Returns the number of examples."""

    def identity(self) -> dict[str, Any]:
        """Returns what makes the split the one it is, as JSON can write it.

        By this processes see whether they read the same, and a run that goes on whether
        it still does.
        """
        return {
            "examples": len(self),
            "classes": {str(i): name for i, name in enumerate(self.class_names)},
            "mirrored": [int(other) for other in self.mirrored],
        }

    def class_counts(self) -> np.ndarray | None:
        """Returns the number of examples of each class, or None if it takes reading."""
        return None

    def members(self) -> np.ndarray | None:
        """Returns a number for each example, int64, or None.

        The same example has the same number in other splits of the dataset that this
        process opens.
        """
        return None

    def are_classes(self, labels: np.ndarray) -> np.ndarray:
        """Tells which labels are classes."""
        return (labels >= 0) & (labels < len(self.class_names))

    def check_label(self, label: int, example: str) -> None:
        """Checks that a label is a class.

        Raises:
          UserError: if it is not; names the example.
        """
        if not self.are_classes(np.asarray(label)):
            raise UserError(
                f"{example}: label {label} is outside the {len(self.class_names)} "
                "classes of the dataset"
            )


class RandomAccessSource(Source):
    """A split whose examples are read by their index, in any order."""

    @abc.abstractmethod
    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at some indices, still encoded.

        Raises:
          UserError: for one that cannot be read.
        """

    def describe(self, index: int) -> str:
        """Names an example in a message."""
        return f"{self.name}, example {index}"

    def stored_bytes(self) -> int:
        """Returns about how many bytes the encoded split takes, from a sample."""
        sample = range(0, len(self), max(1, len(self) // 100))
        read = sum(
            len(example.image)
            + (len(example.label) if isinstance(example.label, bytes) else 0)
            for example in self.read(sample)
        )
        return read * len(self) // len(sample)

    # What the pipeline reads by. Records go from the storage to TensorFlow as they are,
    # where that is faster than to take them apart in Python.

    def fetch(self, indices: Sequence[int]) -> Records:
        """Returns records, classes where they are apart, and orientations.

        A source of masks has them in its records, and overrides this and `parse`.
        """
        examples = self.read(indices)
        return (
            [example.image for example in examples],
            [example.label for example in examples],
            [example.orientation for example in examples],
        )

    def parse(self, record: Any, label: Any) -> tuple[Any, Any]:
        """Returns file and label, scalar tensors, of a record and class of `fetch`."""
        return record, label


class StreamSource(Source):
    """A split without random access, which can only be read from its start.

    Attributes:
      place: the split and where its files are, for errors of reading.
    """

    place: str

    @abc.abstractmethod
    def stream(
        self, seed: int | None, part: int, parts: int, buffer: int
    ) -> tuple[Any, int]:
        """Opens a process's share of the split.

        Args:
          seed: of the shuffled order of endless epochs; None: once, in stored order.
          part: which process.
          parts: number of processes.
          buffer: examples among which the next is drawn.

        Returns:
          A `tf.data.Dataset` of (name, file, label), scalar tensors, and the number of
          examples in the share.
        """


def cached(source: Source) -> RandomAccessSource:
    """Returns a source that keeps in memory what has been read of another.

    Raises:
      UserError: if it has no random access, or the free memory would not hold it.
    """
    if not isinstance(source, RandomAccessSource):
        raise UserError(f"data.cache needs random access; {source.notes[0]}")
    return CachedSource(source)


class CachedSource(RandomAccessSource):
    """Keeps what has been read of another source in memory, still encoded.

    Args:
      source: the other source.

    Raises:
      UserError: if the memory that is free would not hold it.
    """

    def __init__(self, source: RandomAccessSource):
        size, free = source.stored_bytes(), psutil.virtual_memory().available
        told = (
            f"{source.name}: data.cache keeps about {size / 2**30:.1f} GiB of encoded "
            f"examples in this host's memory, of which {free / 2**30:.1f} GiB are free"
        )
        if size > free:
            raise UserError(f"{told}: set data.cache to False")
        self.name, self.class_names = source.name, source.class_names
        self.mirrored = source.mirrored
        self.notes = (*source.notes, told)
        self._source = source
        self._kept: dict[int, tuple[bytes, int, int]] = {}

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._source)

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at some indices, still encoded."""
        return self._source.read(indices)

    def describe(self, index: int) -> str:
        """Names an example in a message."""
        return self._source.describe(index)

    def fetch(self, indices: Sequence[int]) -> Records:
        """Returns the records at some indices; reads those that it has not kept."""
        missing = [i for i in indices if i not in self._kept]
        if missing:
            read = zip(*self._source.fetch(missing), strict=True)
            self._kept.update(zip(missing, read, strict=True))
        kept = [self._kept[i] for i in indices]
        return tuple([example[column] for example in kept] for column in range(3))

    def parse(self, record: Any, label: Any) -> tuple[Any, Any]:
        """Returns file and label, scalar tensors, of a record and label of `fetch`."""
        return self._source.parse(record, label)

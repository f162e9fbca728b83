"""Interface of a split of a dataset, read by the indices of its examples."""

import abc
import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vt_flax.data.orientation import UPRIGHT

# Records, classes and orientations of some examples; see `Source.fetch`.
Records = tuple[list[bytes], list[int], list[int]]


@dataclasses.dataclass(frozen=True)
class Example:
    """One stored example."""

    image: bytes  # the encoded file
    label: int | bytes  # class index from 0, or an encoded mask
    orientation: int = UPRIGHT  # EXIF orientation by which the image is to be turned


class Source(abc.ABC):
    """One split of a dataset, whose examples are read by their index, in any order.

    Attributes:
      name: dataset and split, for messages.
      class_names: a name for each class index.
      mirrored: the class of each class in a mirrored image, as a left arm becomes a
        right one; empty if none changes.
      notes: what a user should know before a run starts.
    """

    name: str
    class_names: Sequence[str]
    mirrored: Sequence[int] = ()
    notes: Sequence[str] = ()

    @abc.abstractmethod
    def __len__(self) -> int:
        """Returns the number of examples."""

    @abc.abstractmethod
    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at some indices, still encoded.

        Raises:
          UserError: for one that cannot be read.
        """

    def describe(self, index: int) -> str:
        """Returns a name of an example for messages."""
        return f"{self.name}, example {index}"

    def identity(self) -> dict[str, Any]:
        """Returns what distinguishes the split from others, for JSON.

        Processes compare it, and a resumed run compares it with its first start.
        """
        return {
            "examples": len(self),
            "classes": {str(i): name for i, name in enumerate(self.class_names)},
            "mirrored": [int(other) for other in self.mirrored],
        }

    def class_counts(self) -> np.ndarray | None:
        """Returns the number of examples of each class; None if it is not known."""
        return None

    def members(self) -> np.ndarray:
        """Returns a number for each example, int64; empty if they are not known.

        The same example has the same number in every split of the dataset that this
        process opens.
        """
        return np.empty(0, np.int64)

    def forget(self, index: int) -> None:
        """Lets a stream drop the examples up to an index, which are in batches."""
        del index  # By random access, none is kept.

    # Batches are read by these two: TensorFlow parses records faster than Python.

    def fetch(self, indices: Sequence[int]) -> Records:
        """Returns records of examples for `parse`, their classes and orientations."""
        examples = self.read(indices)
        return (
            [example.image for example in examples],
            [example.label for example in examples],
            [example.orientation for example in examples],
        )

    def parse(self, record: Any, label: Any) -> tuple[Any, Any]:
        """Returns file and label, scalar tensors, of a record and class of `fetch`."""
        return record, label


def cached(source: Source) -> Source:
    """Returns a copy of a source that keeps fetched examples in memory."""
    kept: dict[int, tuple[bytes, int, int]] = {}

    def fetch(indices: Sequence[int]) -> Records:
        missing = [i for i in indices if i not in kept]
        if missing:
            fetched = zip(*source.fetch(missing), strict=True)
            kept.update(zip(missing, fetched, strict=True))
        columns = zip(*(kept[i] for i in indices), strict=True)
        return tuple(map(list, columns))

    result = copy.copy(source)
    result.fetch = fetch
    return result

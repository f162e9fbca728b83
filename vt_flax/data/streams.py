"""TFDS datasets without random access, such as TFRecord, which are read as streams."""

import sys
import threading
from collections.abc import Sequence
from typing import Any

from vt_flax.data.host import as_written
from vt_flax.data.reading import CHUNK
from vt_flax.data.source import Example, Source
from vt_flax.data.storage import UnreachableError, storage_errors
from vt_flax.data.tfds_sources import TFDSSplit, how_to_convert
from vt_flax.errors import UserError


class TFDSStream(TFDSSplit):
    """A split of a TFDS dataset in a format without random access.

    Attributes:
      place: the split and its folder, for errors.
      how_to_convert: how to give it random access, for messages.
    """

    place: str
    how_to_convert: str

    def __init__(self, builder: Any, name: str, split: str, keys: Sequence[str]):
        super().__init__(builder, name, split, keys)
        self.place = f"{self.name}, in {builder.data_path}"
        self.how_to_convert = how_to_convert(builder, name)
        note = (
            f"dataset {name!r} is stored as {builder.info.file_format.value} and read "
            "as a stream: the order of examples depends on the number of processes, "
            "and a restart begins a new stream; for an exact order "
            f"{self.how_to_convert}"
        )
        self.notes = (*self.notes, note)

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns examples of the stored order, read from its start."""
        return self.shard(0, 1).read(indices)

    def shard(
        self, process: int, processes: int, seed: int | None = None, buffer: int = 1
    ) -> "Shard":
        """Opens a process's shard of the split.

        Args:
          process: index of the process.
          processes: their number.
          seed: seed of the shuffled order of endless epochs; None for every example
            once, as it is stored.
          buffer: size of the shuffle buffer, in examples.

        Raises:
          UserError: if the split has fewer examples than there are processes.
        """
        import tensorflow_datasets as tfds

        if len(self) < processes:
            raise UserError(
                f"{self.name} has {len(self)} examples for {processes} processes, of "
                f"which each reads some: {self.how_to_convert}"
            )
        part = tfds.even_splits(self._split, processes)[process]
        image, label = self._keys
        skip = tfds.decode.SkipDecoding()
        data = self._builder.as_dataset(
            part,
            shuffle_files=seed is not None,
            decoders=tfds.decode.PartialDecoding(
                {image: True, label: True}, {image: skip}
            ),
            read_config=tfds.ReadConfig(
                add_tfds_id=True,
                shuffle_seed=seed,
                # Datasets that are stored in order are shuffled in training, too.
                enable_ordering_guard=False,
                try_autocache=False,
                skip_prefetch=True,
            ),
        )
        fields = "tfds_id", image, label
        data = data.map(as_written(lambda example: tuple(example[f] for f in fields)))
        if seed is None:
            return Shard(self, data, self._builder.info.splits[part].num_examples)
        return Shard(self, data.shuffle(buffer, seed).repeat(), sys.maxsize)


class Shard(Source):
    """A stream of one process's examples, whose indices count from its start.

    Args:
      split: the split.
      data: a `tf.data.Dataset` of name, encoded image and class of each example.
      count: examples in it.
    """

    def __init__(self, split: TFDSStream, data: Any, count: int):
        self.name, self.class_names = split.name, split.class_names
        self._place, self._count = split.place, count
        self._stream = data.batch(CHUNK).as_numpy_iterator()
        # The index of the next example in the stream.
        self._next = 0
        # Names and examples that may be needed again: a stream is read only once.
        self._kept: dict[int, tuple[str, Example]] = {}
        # Of the threads that read ahead, and the one that replaces bad examples.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Returns the number of examples."""
        return self._count

    def read(self, indices: Sequence[int]) -> list[Example]:
        """Returns examples that are not forgotten yet; reads on as far as needed."""
        with self._lock:
            while self._next <= max(indices):
                self._advance()
            return [self._kept[index][1] for index in indices]

    def _advance(self) -> None:
        """Reads the next chunk of the stream."""
        try:
            with storage_errors(self._place):
                names, images, labels = next(self._stream)
        except UserError as error:
            # Nothing after it can be read.
            raise UnreachableError(str(error)) from error
        for name, image, label in zip(names, images, labels, strict=True):
            # Such datasets are used as they are stored: upright.
            self._kept[self._next] = name.decode(), Example(image, int(label))
            self._next += 1

    def describe(self, index: int) -> str:
        """Returns the name that TFDS gives to an example that is not forgotten yet."""
        return f"{self.name}, example {self._kept[index][0]}"

    def forget(self, index: int) -> None:
        """Drops the examples up to an index."""
        with self._lock:
            for old in [key for key in self._kept if key <= index]:
                del self._kept[old]

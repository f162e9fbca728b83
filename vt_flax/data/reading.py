"""Reads and decodes one process's examples ahead of the devices, in tf.data."""

import abc
import atexit
import contextlib
import functools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vt_flax.data.decoders import Decoder, Item
from vt_flax.data.host import as_written, tensorflow
from vt_flax.data.order import Order
from vt_flax.data.orientation import UPRIGHT
from vt_flax.data.source import Example, RandomAccessSource, StreamSource
from vt_flax.data.storage import UnreachableError, storage_errors
from vt_flax.errors import UserError

# Records that are read by one call into Python: enough to outweigh its cost.
CHUNK = 32
# Chunks whose examples are looked up at once, which costs as much as for a single one.
BLOCK = 32
# Examples in a row that may be unreadable before single ones are no longer to blame.
MOST_UNREADABLE = 100

# Positions in the run, encoded records, labels, orientations.
Chunk = tuple[list[int], list[bytes], list[int], list[int]]
NO_EXAMPLES: Chunk = ([], [], [], [])


class Reader(abc.ABC):
    """Makes batches of one process's decoded examples.

    Args:
      source: the split.
      config: the section `data`.
      decoder: decodes an example.
      order: which examples this process reads.
      seed: seed of random crops.
    """

    def __init__(
        self, source: Any, config: ConfigDict, decoder: Decoder, order: Order, seed: int
    ):
        self._source, self._config, self._decoder = source, config, decoder
        self._order, self._seed = order, seed
        self._readers = config.readers
        self._workers = config.workers or os.cpu_count() or 1
        # What ended the reading; raised when the examples before it are used up.
        self._error: Exception | None = None
        # The last position of the batches that are complete.
        self._done = order.first * order.batch - 1
        self._block = functools.lru_cache(maxsize=4)(self._locate)

    @abc.abstractmethod
    def _read(self, positions: list[int], indices: list[int]) -> Chunk:
        """Reads the examples at some positions; leaves out those that are unreadable.

        Args:
          positions: in the run.
          indices: of the same examples in the split.

        Raises:
          UserError: if the storage cannot be read at all.
        """

    @abc.abstractmethod
    def _parse(self, record: Any, label: Any) -> tuple[Any, Any]:
        """Returns the file and the label of an example of a chunk, scalar tensors."""

    @abc.abstractmethod
    def _candidates(self, position: int) -> Iterable[int]:
        """Returns keys for `_read_alone`: of an example, then of its replacements."""

    @abc.abstractmethod
    def _read_alone(self, key: int) -> tuple[Example, str]:
        """Reads one example again; returns it and its name, for messages.

        Raises:
          UserError: if it cannot be read.
        """

    def batches(self, *, replace: bool = True) -> Iterator[Item]:
        """Yields the examples of each step.

        Args:
          replace: whether the next readable example replaces a bad one.

        Yields:
          The decoder's fields, (local batch, ...) each; `bad` (local batch,), True
          for unreadable examples; and `mask` (local batch,), False where no example
          is, because it is unreadable or because the split has ended.

        Raises:
          UserError: that names a bad example, unless `config.on_error` is skip.
        """
        # Decoded examples that are in no batch yet. Bad ones are missing.
        rest = self._decoder.zeros(0) | {"position": np.zeros(0, np.int64)}
        with contextlib.closing(_iterate(self._dataset())) as decoded:
            for positions in self._order.steps():
                last = positions[-1]
                while not len(rest["position"]) or rest["position"][-1] < last:
                    piece = next(decoded, None)
                    if piece is None:
                        break
                    rest = _joined(rest, piece)
                count = np.searchsorted(rest["position"], last, "right")
                found = {key: values[:count] for key, values in rest.items()}
                rest = {key: values[count:] for key, values in rest.items()}
                if count == len(positions):
                    mask = np.ones(count, bool)
                    yield found | {"bad": ~mask, "mask": mask}
                else:
                    yield self._completed(found, positions, replace)
                self._done = int(last)

    def _completed(self, found: Item, positions: np.ndarray, replace: bool) -> Item:
        """Returns a batch of which some examples were not decoded."""
        batch = self._decoder.zeros(len(positions))
        mask = np.isin(positions, found["position"])
        bad = self._order.exist(positions) & ~mask
        for key, values in batch.items():
            values[mask] = found[key]
        for i in np.flatnonzero(bad):
            bad[i], item = self._decode_alone(int(positions[i]), replace)
            mask[i] = item is not None
            for key, value in (item or {}).items():
                batch[key][i] = value
        return batch | {"bad": bad, "mask": mask}

    def _decode_alone(self, position: int, replace: bool) -> tuple[bool, Item | None]:
        """Decodes an example that is missing, to name what is wrong, or replaces it.

        Returns:
          Whether it is bad, and its fields or those of its replacement.

        Raises:
          UserError: if it is bad and is neither skipped nor replaced, or if the reading
            has ended.
        """
        if self._error is not None:
            raise self._error
        seed, tries = (self._seed, position), 0
        for key in self._candidates(position):
            try:
                example, name = self._read_alone(key)
                return tries > 0, self._decoder.decode_alone(example, seed, name)
            except UnreachableError:
                raise  # the network is at fault, not the example
            except UserError as error:
                if self._config.on_error == "raise":
                    raise
                if not replace:
                    return True, None
                tries, last = tries + 1, error
        raise UserError(f"{tries} examples in a row are bad; the last: {last}")

    def _dataset(self) -> Any:
        """Returns a `tf.data.Dataset` of decoded examples, up to a batch at a time.

        Each has its `position` in the run. Bad examples are left out.
        """
        tf = tensorflow()

        def read(number: Any) -> Any:
            kinds = (tf.int64, tf.string, tf.int64, tf.int64)
            columns = tf.numpy_function(self._chunk, [number], kinds)
            return tuple(tf.ensure_shape(column, (None,)) for column in columns)

        def decode(position: Any, record: Any, label: Any, orientation: Any) -> Any:
            file, label = self._parse(record, label)
            seed = tf.stack([tf.constant(self._seed, tf.int64), position])
            fields = self._decoder.decode(file, label, orientation, seed)
            return {"position": position, **fields}

        options = tf.data.Options()
        options.autotune.enabled = False
        options.threading.private_threadpool_size = self._workers + self._readers
        return (
            tf.data.Dataset.range(-(-self._order.length // CHUNK))
            .map(as_written(read), num_parallel_calls=self._readers, deterministic=True)
            .take_while(as_written(lambda positions, *_: tf.reduce_all(positions >= 0)))
            .unbatch()
            # More calls than threads: while one takes long, the others go on.
            .map(
                as_written(decode),
                num_parallel_calls=4 * self._workers,
                deterministic=True,
            )
            .ignore_errors()
            .batch(len(self._order.local_indices))
            .prefetch(self._config.prefetch)
            .with_options(options)
        )

    @property
    def _most_steps(self) -> int:
        """The number of steps that may be read ahead.

        More than tf.data holds are read only if examples are bad, and of nothing but
        bad ones no batch would ever come. Then decoding one alone names it.
        """
        examples = CHUNK * (2 * self._readers + 2) + 4 * self._workers
        steps = self._config.prefetch + 4 + examples // len(self._order.local_indices)
        return steps * (5 if self._config.on_error == "skip" else 1)

    def _chunk(self, number: np.ndarray) -> tuple[np.ndarray, ...]:
        """Reads a chunk for tf.data, which a position of -1 ends."""
        block, within = divmod(int(number), BLOCK)
        within_block = np.s_[CHUNK * within : CHUNK * (within + 1)]
        positions, indices = (
            column[within_block].tolist() for column in self._block(block)
        )
        end = [-1], [b""], [0], [UPRIGHT]
        try:
            if not positions:
                chunk = NO_EXAMPLES
            elif positions[0] > self._done + self._order.batch * self._most_steps:
                chunk = end
            else:
                chunk = self._read(positions, indices)
        except Exception as error:
            self._error, chunk = error, end
        kinds = (np.int64, object, np.int64, np.int64)
        return tuple(map(np.asarray, chunk, kinds))

    def _locate(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns positions and indices of the examples in a block of chunks."""
        start = CHUNK * BLOCK * block
        positions = self._order.positions(start, start + CHUNK * BLOCK)
        positions = positions[self._order.exist(positions)]
        return positions, self._order.indices(positions)


class RandomAccessReader(Reader):
    """Reads a source with random access; its keys are indices in the split."""

    _source: RandomAccessSource

    def _read(self, positions: list[int], indices: list[int]) -> Chunk:
        try:
            return positions, *self._source.fetch(indices)
        except UnreachableError:
            raise  # every further attempt would take minutes
        except Exception:
            if len(positions) == 1:
                return NO_EXAMPLES
        # One at a time: only the unreadable ones are left out.
        pairs = zip(positions, indices, strict=True)
        chunks = [self._read([position], [index]) for position, index in pairs]
        return tuple(sum(column, []) for column in zip(*chunks, strict=True))

    def _parse(self, record: Any, label: Any) -> tuple[Any, Any]:
        return self._source.parse(record, label)

    def _candidates(self, position: int) -> Iterable[int]:
        (index,) = self._order.indices(np.asarray([position])).tolist()
        count = len(self._source)
        return [(index + i) % count for i in range(min(count, MOST_UNREADABLE))]

    def _read_alone(self, key: int) -> tuple[Example, str]:
        (example,) = self._source.read([key])
        return example, self._source.describe(key)


class StreamReader(Reader):
    """Reads a stream; its keys are positions.

    Args:
      stream: a dataset from `StreamSource.stream`.
      *arguments: see `Reader`.
    """

    _source: StreamSource

    def __init__(self, stream: Any, *arguments: Any):
        super().__init__(*arguments)
        self._readers = 1
        self._stream = stream.batch(CHUNK).as_numpy_iterator()
        # Examples that may be needed again: a stream cannot be read twice.
        self._kept: dict[int, tuple[bytes, bytes, int]] = {}

    def _read(self, positions: list[int], indices: list[int]) -> Chunk:
        del indices  # it has none
        with storage_errors(self._source.place):
            chunk = next(self._stream, ([], [], []))
        if len(chunk[0]) < len(positions):
            raise UserError(
                f"{self._source.place}: has fewer examples than its metadata counts: "
                "prepare it again"
            )
        names, records, labels = (column.tolist() for column in chunk)
        # In a run's last chunk the stream may have more examples than positions.
        count = len(positions)
        new = zip(positions, zip(names, records, labels, strict=True), strict=False)
        kept = {key: one for key, one in self._kept.items() if key > self._done}
        self._kept = kept | dict(new)
        # Such datasets are used as they are stored.
        return positions, records[:count], labels[:count], [UPRIGHT] * count

    def _parse(self, record: Any, label: Any) -> tuple[Any, Any]:
        return record, label

    def _candidates(self, position: int) -> Iterable[int]:
        return sorted(self._kept, key=lambda other: (other < position, other))

    def _read_alone(self, key: int) -> tuple[Example, str]:
        name, image, label = self._kept[key]
        return Example(image, label), f"{self._source.name}, example {name.decode()}"


def _iterate(data: Any) -> Iterator[Item]:
    """Yields the elements of a dataset, and ends its threads with the iteration.

    A thread that calls Python while the interpreter ends would crash it.
    """
    iterators = [data.as_numpy_iterator()]
    atexit.register(iterators.clear)
    try:
        while (element := next(iterators[0], None)) is not None:
            yield element
    finally:
        atexit.unregister(iterators.clear)
        iterators.clear()


def _joined(first: Item, second: Item) -> Item:
    if not len(first["position"]):
        return second  # without a copy
    return {key: np.concatenate([first[key], second[key]]) for key in first}

"""Reads and decodes one process's examples ahead of the devices, on threads.

The examples of a step are cut into chunks. For each chunk, a thread of one pool reads
the encoded examples and a thread of another decodes and crops them, by one call of a
TensorFlow graph. A batch is put together from its chunks in their order, so that the
number of threads changes nothing.
"""

import collections
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vt_flax.data.decoders import Decoder, Item
from vt_flax.data.host import tensorflow
from vt_flax.data.source import Example, RandomAccessSource, Records, StreamSource
from vt_flax.data.storage import UnreachableError, storage_errors
from vt_flax.errors import UserError

# Examples that are read or decoded by one call: enough to outweigh its cost in Python.
CHUNK = 32
# Examples in a row that may be bad before the dataset as a whole is at fault.
MAX_BAD = 100

# The source of a chunk, indices of its examples there, and their records, or None if
# one of them cannot be read.
Encoded = tuple[RandomAccessSource, Sequence[int], Records | None]


class Reader:
    """Makes batches of one process's examples from a source with random access.

    Args:
      source: the split.
      config: the section `data`.
      decoder: decodes an example.
      seed: seed of random crops.
      replace: whether the next readable example replaces a bad one.
    """

    def __init__(
        self,
        source: RandomAccessSource,
        config: ConfigDict,
        decoder: Decoder,
        seed: int,
        *,
        replace: bool,
    ):
        self._source, self._config, self._decoder = source, config, decoder
        self._seed, self._replace = seed, replace
        self._readers = config.readers
        self._unreachable: UnreachableError | None = None

    def batches(
        self, steps: Iterable[tuple[np.ndarray, np.ndarray]], size: int
    ) -> Iterator[Item]:
        """Yields a batch for each step.

        Args:
          steps: see `order.steps`.
          size: local batch size.

        Yields:
          The decoder's fields, (size, ...) each; `bad` (size,), True for unreadable
          examples; and `mask` (size,), False for padding after the end of the split and
          for unreadable examples that are not replaced.

        Raises:
          UserError: that names a bad example, unless `config.on_error` is skip.
        """
        workers = self._config.workers or os.cpu_count() or 1
        steps, steps_ahead = itertools.tee(steps)
        chunks = (
            (positions[start : start + CHUNK], indices[start : start + CHUNK])
            for positions, indices in steps_ahead
            for start in range(0, len(positions), CHUNK)
        )
        # Those of `prefetch` batches, and enough to keep all threads busy.
        chunks_ahead = self._config.prefetch * -(-size // CHUNK)
        chunks_ahead += 2 * (workers + self._readers)
        decode = self._decode_function()
        with (
            ThreadPoolExecutor(self._readers) as read_pool,
            ThreadPoolExecutor(workers) as decode_pool,
        ):

            def submit(chunk: tuple[np.ndarray, np.ndarray]) -> Future:
                positions, indices = chunk
                encoded = read_pool.submit(self._read, indices.tolist())
                return decode_pool.submit(self._decode, decode, positions, encoded)

            try:
                first = itertools.islice(chunks, chunks_ahead)
                decoded = collections.deque(map(submit, first))
                for positions, _ in steps:
                    batch = self._zeros(size)
                    for start in range(0, len(positions), CHUNK):
                        chunk = decoded.popleft().result()
                        decoded.extend(map(submit, itertools.islice(chunks, 1)))
                        stop = min(start + CHUNK, len(positions))
                        for key, values in batch.items():
                            values[start:stop] = chunk[key]
                    yield batch
            finally:
                for pool in (read_pool, decode_pool):
                    pool.shutdown(wait=False, cancel_futures=True)

    def _zeros(self, count: int) -> Item:
        """Returns a batch without examples."""
        flags = {name: np.zeros(count, bool) for name in ("bad", "mask")}
        return self._decoder.zeros(count) | flags

    def _read(self, indices: list[int]) -> Encoded:
        """Reads a chunk; raises `UserError` if the storage is unreachable."""
        if self._unreachable:
            raise self._unreachable  # another attempt could take a quarter of an hour
        try:
            return self._source, indices, self._source.fetch(indices)
        except UnreachableError as error:
            self._unreachable = error
            raise
        except Exception:
            return self._source, indices, None

    def _parse(self, record: Any, label: Any) -> tuple[Any, Any]:
        """Returns the file and label of a record, scalar tensors."""
        return self._source.parse(record, label)

    def _decode_function(self) -> Callable[..., dict[str, Any]]:
        """Returns a TensorFlow graph that decodes a chunk.

        It takes positions, records, labels and orientations, (examples,) each, and
        returns the decoder's fields.
        """
        tf = tensorflow()

        def decode_one(columns: Any) -> dict[str, Any]:
            position, record, label, orientation = columns
            file, label = self._parse(record, label)
            seed = tf.stack([tf.constant(self._seed, tf.int64), position])
            return self._decoder.decode(file, label, orientation, seed)

        kinds = (tf.int64, tf.string, tf.int64, tf.int64)
        fields = self._decoder.fields.items()
        result = {key: tf.TensorSpec(shape, kind) for key, (shape, kind) in fields}
        # AutoGraph would read and rewrite the decoder's source, half a second long.
        function = tf.function(
            lambda *columns: tf.map_fn(
                decode_one, columns, fn_output_signature=result, parallel_iterations=8
            ),
            input_signature=[tf.TensorSpec((None,), kind) for kind in kinds],
            autograph=False,
        )
        return function.get_concrete_function()

    def _decode(
        self,
        decode: Callable[..., dict[str, Any]],
        positions: np.ndarray,
        encoded: Future,
    ) -> Item:
        """Decodes a chunk; example by example if any of them is bad."""
        tf = tensorflow()
        source, indices, records = encoded.result()
        if records is not None:
            files, labels, orientations = records
            try:
                fields = decode(
                    tf.constant(positions, tf.int64),
                    tf.constant(files, tf.string),
                    tf.constant(labels, tf.int64),
                    tf.constant(orientations, tf.int64),
                )
            except (tf.errors.OpError, ValueError):
                pass  # decoding it alone names the bad example
            else:
                items = {key: np.asarray(value) for key, value in fields.items()}
                return items | {"bad": False, "mask": True}
        items = self._zeros(len(positions))
        for i, (index, position) in enumerate(zip(indices, positions, strict=True)):
            for key, value in self._decode_alone(source, index, int(position)).items():
                items[key][i] = value
        return items

    def _decode_alone(
        self, source: RandomAccessSource, index: int, position: int
    ) -> Item:
        """Decodes an example, or, if it is bad, the next good one.

        Raises:
          UserError: if it is bad and `config.on_error` is not skip.
        """
        tries = min(len(source), MAX_BAD) if self._replace else 1
        for offset in range(tries):
            candidate = (index + offset) % len(source)
            try:
                (example,) = source.read([candidate])
                fields = self._decoder.decode_alone(
                    example, (self._seed, position), source.describe(candidate)
                )
            except UnreachableError:
                raise  # the network is at fault, not the example
            except UserError as error:
                if self._config.on_error == "raise":
                    raise
                last = error
            else:
                return fields | {"bad": offset > 0, "mask": True}
        if self._replace:
            raise UserError(f"{tries} examples in a row are bad; the last: {last}")
        return {"bad": True, "mask": False}


class StreamReader(Reader):
    """Makes batches from a stream, which one thread reads from its start.

    Args:
      stream: a dataset from `StreamSource.stream`.
      *arguments, **options: see `Reader`.
    """

    _source: StreamSource

    def __init__(self, stream: Any, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._readers = 1
        # One example at a time would be slow.
        chunks = stream.batch(CHUNK).as_numpy_iterator()
        self._examples = (
            example for chunk in chunks for example in zip(*chunk, strict=True)
        )

    def _read(self, indices: list[int]) -> Encoded:
        with storage_errors(self._source.place):
            examples = list(itertools.islice(self._examples, len(indices)))
        if len(examples) < len(indices):
            raise UserError(
                f"{self._source.place}: has fewer examples than its metadata counts: "
                "prepare it again"
            )
        chunk = _StreamChunk(self._source.name, examples)
        indices = range(len(examples))
        return chunk, indices, chunk.fetch(indices)

    def _parse(self, record: Any, label: Any) -> tuple[Any, Any]:
        return record, label


class _StreamChunk(RandomAccessSource):
    """Consecutive examples of a stream, which cannot be read twice."""

    def __init__(self, name: str, examples: Sequence[tuple[bytes, bytes, int]]):
        self.name, self._examples = name, examples

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, indices: Sequence[int]) -> list[Example]:
        return [Example(*self._examples[index][1:]) for index in indices]

    def describe(self, index: int) -> str:
        return f"{self.name}, example {self._examples[index][0].decode()}"

"""Reads and decodes one process's examples ahead of the devices, in tf.data."""

import atexit
import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vt_flax.data.decoders import Decoder, Item
from vt_flax.data.host import as_written, tensorflow
from vt_flax.data.order import Order
from vt_flax.data.orientation import UPRIGHT
from vt_flax.data.source import Source
from vt_flax.data.storage import UnreachableError
from vt_flax.errors import UserError

# Records that are read by one call into Python: enough to outweigh its cost.
CHUNK = 32
# Chunks whose examples are looked up at once, which costs as much as for a single one.
BLOCK = 32
# Examples in a row that may be unreadable before single ones are no longer to blame.
MOST_UNREADABLE = 100

# Positions in the run, encoded records, labels, orientations.
Chunk = tuple[list[int], list[bytes], list[int], list[int]]
NOTHING: Chunk = [], [], [], []


class Reader:
    """Makes batches of one process's decoded examples.

    Args:
      source: the split.
      config: the section `data`.
      decoder: decodes an example.
      order: which examples this process reads.
      seed: seed of random crops.
    """

    def __init__(
        self,
        source: Source,
        config: ConfigDict,
        decoder: Decoder,
        order: Order,
        seed: int,
    ):
        self._source, self._config, self._decoder = source, config, decoder
        self._order, self._seed = order, seed
        self._workers = config.workers or os.cpu_count() or 1
        # What ended the reading; raised when the examples before it are used up.
        self._error: Exception | None = None
        # The last position of the batches that are complete.
        self._done = order.first * order.batch - 1
        self._block = functools.lru_cache(maxsize=4)(self._locate)

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
                    more = next(decoded, None)
                    if more is None:
                        break
                    if len(rest["position"]):
                        more = {k: np.concatenate([rest[k], more[k]]) for k in rest}
                    rest = more
                count = np.searchsorted(rest["position"], last, "right")
                found = {key: values[:count] for key, values in rest.items()}
                rest = {key: values[count:] for key, values in rest.items()}
                if count == len(positions):
                    mask = np.ones(count, bool)
                    yield found | {"bad": ~mask, "mask": mask}
                else:
                    yield self._completed(found, positions, replace)
                self._done = int(last)
                self._source.forget(self._done)

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
        (first,) = self._order.indices(np.asarray([position])).tolist()
        count = len(self._source)
        tries = min(count, MOST_UNREADABLE)
        for index in [(first + i) % count for i in range(tries)]:
            try:
                (example,) = self._source.read([index])
                name = self._source.describe(index)
                item = self._decoder.decode_alone(example, (self._seed, position), name)
                return index != first, item
            except UnreachableError:
                raise  # the storage is at fault, not the example
            except UserError as error:
                if self._config.on_error == "raise":
                    raise
                if not replace:
                    return True, None
                last = error
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
            file, label = self._source.parse(record, label)
            seed = tf.stack([tf.constant(self._seed, tf.int64), position])
            fields = self._decoder.decode(file, label, orientation, seed)
            return {"position": position, **fields}

        readers = self._config.readers
        options = tf.data.Options()
        options.autotune.enabled = False
        options.threading.private_threadpool_size = self._workers + readers
        return (
            tf.data.Dataset.range(-(-self._order.length // CHUNK))
            .map(as_written(read), num_parallel_calls=readers, deterministic=True)
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
        examples = CHUNK * (2 * self._config.readers + 2) + 4 * self._workers
        steps = self._config.prefetch + 4 + examples // len(self._order.local_indices)
        return steps * (5 if self._config.on_error == "skip" else 1)

    def _chunk(self, number: np.ndarray) -> tuple[np.ndarray, ...]:
        """Reads a chunk for tf.data, which a position of -1 ends."""
        block, within = divmod(int(number), BLOCK)
        in_block = slice(CHUNK * within, CHUNK * (within + 1))
        positions, indices = self._block(block)[:, in_block]
        end = [-1], [b""], [0], [UPRIGHT]
        try:
            if (positions > self._done + self._order.batch * self._most_steps).any():
                chunk = end
            else:
                chunk = self._read(positions.tolist(), indices.tolist())
        except Exception as error:
            self._error, chunk = error, end
        kinds = (np.int64, object, np.int64, np.int64)
        return tuple(map(np.asarray, chunk, kinds))

    def _read(self, positions: list[int], indices: list[int]) -> Chunk:
        """Reads the examples at some positions; leaves out those that are unreadable.

        Raises:
          UnreachableError: if the storage cannot be read at all.
        """
        if not positions:
            return NOTHING  # beyond the end of an evaluation
        try:
            return positions, *self._source.fetch(indices)
        except UnreachableError:
            raise  # every further attempt would take minutes
        except Exception:
            if len(positions) == 1:
                return NOTHING
        # One at a time: only the unreadable ones are left out.
        pairs = zip(positions, indices, strict=True)
        chunks = [self._read([position], [index]) for position, index in pairs]
        return tuple(sum(column, []) for column in zip(*chunks, strict=True))

    def _locate(self, block: int) -> np.ndarray:
        """Returns positions and indices (2, examples) of a block of chunks."""
        start = CHUNK * BLOCK * block
        positions = self._order.positions(start, start + CHUNK * BLOCK)
        positions = positions[self._order.exist(positions)]
        return np.stack([positions, self._order.indices(positions)])


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

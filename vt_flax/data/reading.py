"""Reads and decodes one process's examples, by random access or as a stream."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vt_flax.data.decoders import Decoder, Item
from vt_flax.data.feed import Chunk, Feed
from vt_flax.data.host import as_written, tensorflow
from vt_flax.data.orientation import UPRIGHT
from vt_flax.data.source import Example, RandomAccessSource, StreamSource
from vt_flax.data.storage import UnreachableError, storage_errors
from vt_flax.data.threads import ordered_map
from vt_flax.errors import UserError

# Records that are handed over at once: enough to outweigh the call's own cost.
CHUNK = 32
# Rows whose examples are looked up at once.
BLOCK = 32 * CHUNK
# Examples in a row that may be unreadable before it is no matter of single ones.
MOST_UNREADABLE = 100


class Reader:
    """Reads and decodes one process's examples, which are known by their rows.

    Args:
      source: where they are.
      config: the section `data`.
      decoder: makes arrays of a file, a label and a seed.
      seed: of what is drawn.
      rows: gives the rows at some places of the process's sequence.
      locate: gives the examples at some rows.
      places: length of the sequence.
    """

    def __init__(
        self,
        source: RandomAccessSource,
        config: ConfigDict,
        decoder: Decoder,
        seed: int,
        rows: Callable[[np.ndarray], np.ndarray],
        locate: Callable[[np.ndarray], np.ndarray],
        places: int,
    ):
        self._source, self._config = source, config
        self._decoder, self._seed = decoder, seed
        self._rows, self._locate, self._places = rows, locate, places
        self._block = functools.lru_cache(maxsize=4)(self._make_block)

    def pieces(self, size: int) -> Iterator[Item]:
        """Returns decoded examples, `size` at a time, by row; bad ones are left out."""
        return _decode(
            self._chunks(),
            self._source.parse,
            self._decoder,
            self._seed,
            size,
            self._config,
        )

    def mend(self, row: int, *, replace: bool = True) -> Item | None:
        """Decodes an example by itself, and puts another in its place if it is bad.

        Args:
          row: of the example.
          replace: whether the next readable example may stand for it.

        Returns:
          The example; None if there is none for it.

        Raises:
          UserError: that names a bad example, unless `config.on_error` is skip.
        """
        index = int(self._locate(np.asarray([row]))[0])
        tries = min(len(self._source), MOST_UNREADABLE) if replace else 1
        for i in range(tries):
            try:
                return self._decode_one((index + i) % len(self._source), row, bad=i > 0)
            except UnreachableError:
                raise  # not an example is bad, but the network
            except UserError as error:
                if self._config.on_error == "raise":
                    raise
                last = error
        if replace:
            raise UserError(f"{tries} examples in a row are bad; the last: {last}")
        return None

    def _decode_one(self, index: int, row: int, bad: bool) -> Item:
        (example,) = self._source.read([index])
        name = self._source.describe(index)
        item = self._decoder.decode_alone(example, self._seed, row, name)
        return {**item, "bad": bad}

    def _chunks(self) -> Iterator[Chunk]:
        """Yields the sequence's records, read by threads some chunks ahead."""
        chunks = range(-(-self._places // CHUNK))
        readers = self._config.readers
        return ordered_map(self._read_chunk, chunks, readers, 2 * readers)

    def _read_chunk(self, chunk: int) -> Chunk:
        block, within = divmod(chunk * CHUNK, BLOCK)
        all_rows, all_indices = self._block(block)
        rows = all_rows[within : within + CHUNK]
        indices = all_indices[within : within + CHUNK].tolist()
        try:
            return rows, *self._source.fetch(indices)
        except UnreachableError:
            raise  # each further try would take minutes
        except Exception:
            # One at a time, to leave out the bad ones alone. `mend` says what is wrong.
            good, found = [], ([], [], [])
            for row, index in zip(rows, indices, strict=True):
                try:
                    one = self._source.fetch([index])
                except UnreachableError:
                    raise
                except Exception:
                    continue
                good.append(row)
                for some, more in zip(found, one, strict=True):
                    some += more
            return np.asarray(good, np.int64), *found

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        first = block * BLOCK
        rows = self._rows(np.arange(first, min(first + BLOCK, self._places)))
        return rows, self._locate(rows)


class StreamReader:
    """Reads and decodes one process's share of a stream; see `Reader`."""

    def __init__(
        self,
        source: StreamSource,
        config: ConfigDict,
        decoder: Decoder,
        seed: int,
        stream: Any,
        rows: Callable[[np.ndarray], np.ndarray],
    ):
        self._source, self._config = source, config
        self._decoder, self._seed = decoder, seed
        self._stream, self._rows = stream, rows
        # What was read and not yet asked for, since a stream cannot be read again.
        self._read: dict[int, list[Any]] = {}

    def pieces(self, size: int) -> Iterator[Item]:
        """Yields decoded examples, `size` at a time, by row; bad ones are left out."""
        pieces = _decode(
            self._chunks(),
            lambda record, label: (record, label),
            self._decoder,
            self._seed,
            size,
            self._config,
        )
        with contextlib.closing(pieces):
            for piece in pieces:
                yield piece
                # Whatever came before this piece has been asked for.
                before = piece["row"][0]
                for row in [row for row in list(self._read) if row < before]:
                    del self._read[row]

    def mend(self, row: int, *, replace: bool = True) -> Item | None:
        """Decodes an example by itself, or the next that was read; see `Reader`."""
        last: UserError | None = None
        for other in [row, *(r for r in sorted(self._read) if r > row)]:
            try:
                name, record, label = self._read[other]
                name = f"{self._source.name}, example {name.decode()}"
                example = Example(record, label)
                item = self._decoder.decode_alone(example, self._seed, row, name)
                return {**item, "bad": other != row}
            except UserError as error:
                if self._config.on_error == "raise":
                    raise
                last = error
            if not replace:
                return None
        raise UserError(f"no example after a bad one: {last}")

    def _chunks(self) -> Iterator[Chunk]:
        """Yields the stream's records, and keeps them until they are asked for."""
        place = 0
        chunks = self._stream.batch(CHUNK).as_numpy_iterator()
        while True:
            with storage_errors(self._source.place):
                chunk = next(chunks, None)
            if chunk is None:
                return
            names, records, labels = (array.tolist() for array in chunk)
            rows = self._rows(np.arange(place, place + len(records)))
            place += len(records)
            chunk = rows.tolist(), names, records, labels
            self._read.update((row, rest) for row, *rest in zip(*chunk, strict=True))
            # Such datasets are used as they are stored.
            yield rows, records, labels, [UPRIGHT] * len(records)


def _decode(
    chunks: Iterator[Chunk],
    parse: Callable[[Any, Any], tuple[Any, Any]],
    decoder: Decoder,
    seed: int,
    size: int,
    config: ConfigDict,
) -> Iterator[Item]:
    """Decodes chunks of records into pieces of `size` examples."""
    tf = tensorflow()
    workers = config.workers or os.cpu_count() or 1

    def one(row: Any, record: Any, label: Any, orientation: Any) -> dict[str, Any]:
        seeds = tf.stack([tf.constant(seed, tf.int64), row])
        file, label = parse(record, label)
        return {"row": row, **decoder.decode(file, label, orientation, seeds)}

    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = workers
    feed = Feed(chunks)
    data = (
        feed.dataset()
        # More calls than threads: while one takes long, the others go on.
        .map(as_written(one), num_parallel_calls=4 * workers, deterministic=True)
        # A bad record must not end the run: its row is missed and then looked into.
        .ignore_errors()
        .batch(size)
        .prefetch(config.prefetch)
        .with_options(options)
    )
    pieces = data.as_numpy_iterator()
    try:
        while (piece := next(pieces, None)) is not None:
            yield piece
        feed.check()
    finally:
        # In this order: left alone, the dataset would ignore a closed queue's errors
        # for ever; its end cancels whatever it waits for.
        del pieces
        feed.close()

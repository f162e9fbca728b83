"""Hands records that Python reads to tf.data, in their order and bounded in number."""

import atexit
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from vt_flax.data.host import as_written, tensorflow

# Rows, and what `RandomAccessSource.fetch` returns.
Chunk = tuple[np.ndarray, list[bytes], list[int], list[int]]
# Chunks that wait to be decoded.
CAPACITY = 4


class Feed:
    """A `tf.data.Dataset` of what an iterator yields, which a thread goes through.

    `Dataset.from_generator` would do the same; a queue between the two costs a quarter
    of it, and lets nothing wait for Python's lock while the interpreter ends.

    Args:
      chunks: what to hand over.
    """

    def __init__(self, chunks: Iterator[Chunk]):
        tf = tensorflow()
        self._chunks = chunks
        self._queue = tf.queue.FIFOQueue(
            CAPACITY, [tf.bool, tf.int64, tf.string, tf.int64, tf.int64]
        )
        self._error: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(
            target=self._run, name="vt_flax-data", daemon=True
        )
        self._thread.start()
        # A thread that is still at it when the interpreter ends could crash it.
        atexit.register(self.close)

    def dataset(self) -> Any:
        """Returns the dataset of (row, record, label, orientation), scalar tensors."""
        tf = tensorflow()

        def next_chunk(_: Any) -> Any:
            more, *chunk = self._queue.dequeue()
            more.set_shape(())
            for tensor in chunk:
                tensor.set_shape((None,))
            return more, *chunk

        return (
            tf.data.Dataset.counter()
            .map(as_written(next_chunk))
            .take_while(as_written(lambda more, *_: more))
            .map(as_written(lambda _, *chunk: tuple(chunk)))
            .unbatch()
        )

    def check(self) -> None:
        """Raises what the iterator raised, if it did."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stops the thread and whoever waits for it."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        # In a thread of its own: the garbage collector may call this amid the tracing
        # of a graph, which would take the operation in, or wait for itself.
        closing = [
            threading.Thread(target=target)
            for target in (self._queue.close, self._make_room)
        ]
        for thread in closing:
            thread.start()
        for thread in (*closing, self._thread):
            thread.join()

    def _make_room(self) -> None:
        """Lets in the chunk that may wait at the full queue, which else cannot close.

        To cancel it would be shorter, but TensorFlow prints a warning of that.
        """
        tf = tensorflow()
        while self._thread.is_alive():
            # Whoever else may take the last chunk: the queue closes then.
            with contextlib.suppress(tf.errors.OutOfRangeError):
                if self._queue.size() > 0:
                    self._queue.dequeue()
            self._thread.join(0.01)

    def _run(self) -> None:
        tf = tensorflow()
        try:
            try:
                for chunk in self._chunks:
                    if self._closed:
                        return
                    self._put(True, *chunk)
            except tf.errors.CancelledError:
                raise
            except Exception as error:
                # It is raised where the examples are waited for.
                self._error = error
            self._put(False, np.zeros(0), [], [], [])
        except tf.errors.CancelledError:
            pass  # closed

    def _put(
        self,
        more: bool,
        rows: np.ndarray,
        records: list[bytes],
        labels: list[int],
        orientations: list[int],
    ) -> None:
        tf = tensorflow()
        self._queue.enqueue(
            (
                tf.constant(more),
                tf.constant(rows, tf.int64),
                tf.constant(records, tf.string, shape=(len(records),)),
                tf.constant(labels, tf.int64, shape=(len(labels),)),
                tf.constant(orientations, tf.int64, shape=(len(orientations),)),
            )
        )

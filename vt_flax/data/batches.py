"""Batches of one process's examples, for training and for evaluation."""

import contextlib
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from vt_flax.data.decoders import ClassDecoder, Decoder
from vt_flax.data.order import Order, local_block
from vt_flax.data.reading import RandomAccessReader, StreamReader
from vt_flax.data.source import Source, StreamSource

Batch = dict[str, np.ndarray]


def train_batches(
    source: Source,
    config: ConfigDict,
    *,
    seed: int,
    batch: int,
    first: int,
    last: int,
    process_index: int = 0,
    process_count: int = 1,
    local_indices: np.ndarray | None = None,
    decoder: Decoder | None = None,
) -> Iterator[Batch]:
    """Yields one process's examples of the training batches.

    Which examples a batch has, and how each is cropped, depends on `seed` and the step
    alone (see `order`): not on the number of processes or threads, nor on restarts. A
    `StreamSource` has only the crops in common.

    Args:
      source: the training split.
      config: the section `data`.
      seed: seed of the order and the crops.
      batch: examples in the global batch.
      first: first step.
      last: step before which to end.
      process_index: this process.
      process_count: number of processes.
      local_indices: (local batch,), examples of each global batch that this process
        reads, ascending; by default a block of neighbors.
      decoder: decodes an example; by default to a crop and its class.

    Yields:
      The decoder's fields, by default `image` (local batch, size, size, 3) uint8 and
      `label` (local batch,) int32; and `bad` (local batch,) bool, True where another
      example replaces an unreadable one.

    Raises:
      UserError: for an example that cannot be read, unless `config.on_error` is skip.
    """
    if local_indices is None:
        local_indices = local_block(batch, process_index, process_count)
    decoder = decoder or ClassDecoder(source, config, train=True)
    order = Order(batch, local_indices, first, last, len(source), seed)
    if isinstance(source, StreamSource):
        # A restart cannot continue within a shuffled stream: it takes another one.
        stream, _ = source.stream(
            seed + first, process_index, process_count, config.shuffle_buffer
        )
        reader = StreamReader(stream, source, config, decoder, order, seed)
    else:
        reader = RandomAccessReader(source, config, decoder, order, seed)
    with contextlib.closing(reader.batches()) as batches:
        for examples in batches:
            yield {key: examples[key] for key in (*decoder.fields, "bad")}


def eval_batches(
    source: Source,
    config: ConfigDict,
    *,
    batch: int,
    process_index: int = 0,
    process_count: int = 1,
    local_indices: np.ndarray | None = None,
    decoder: Decoder | None = None,
) -> Iterator[Batch]:
    """Yields one process's examples of an evaluation: every example exactly once.

    All processes have equally many batches, all of one shape: where the split has no
    more examples, they are padded with zeros.

    Args:
      source: the split.
      config: the section `data`.
      batch: examples in the global batch.
      process_index: this process.
      process_count: number of processes.
      local_indices: see `train_batches`.
      decoder: see `train_batches`.

    Yields:
      The decoder's fields as in training; `mask` (local batch,) bool, False for
      padding and for unreadable examples; and `bad`, True for the latter.

    Raises:
      UserError: for an example that cannot be read, unless `config.on_error` is skip.
    """
    if local_indices is None:
        local_indices = local_block(batch, process_index, process_count)
    decoder = decoder or ClassDecoder(source, config, train=False)
    steps = -(-len(source) // batch)
    if isinstance(source, StreamSource):
        size = len(local_indices)
        stream, count = source.stream(
            None, process_index, process_count, config.shuffle_buffer
        )
        # Each process reads a shard of the split, from its start to its end.
        order = Order(size, np.arange(size), 0, steps, count)
        reader = StreamReader(stream, source, config, decoder, order, 0)
    else:
        order = Order(batch, local_indices, 0, steps, len(source))
        reader = RandomAccessReader(source, config, decoder, order, 0)
    with contextlib.closing(reader.batches(replace=False)) as batches:
        for examples in batches:
            yield {key: examples[key] for key in (*decoder.fields, "mask", "bad")}

"""Batches of one process's examples, for training and for evaluation."""

import contextlib
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from vt_flax.data import order
from vt_flax.data.decoders import ClassDecoder, Decoder
from vt_flax.data.reading import Reader, StreamReader
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
    alone (see `order`), not on the number of processes or threads. Of a `StreamSource`
    this is true of the crops only.

    Args:
      source: the training split.
      config: the section `data`.
      seed: seed of the order and the crops.
      batch: examples in the global batch.
      first: first step.
      last: step before which to end.
      process_index: index of this process.
      process_count: number of processes.
      local_indices: indices in the global batch of the examples that this process
        reads, batch / process_count of them, ascending; by default a contiguous block.
      decoder: decodes an example; by default to a crop and its class.

    Yields:
      The decoder's fields, by default `image` (local, size, size, 3) uint8 and `label`
      (local,) int32; and `bad` (local,) bool, True where another example replaces an
      unreadable one. `local` is batch / process_count.

    Raises:
      UserError: for an example that cannot be read, unless `config.on_error` is skip.
    """
    if local_indices is None:
        local_indices = order.local_block(batch, process_index, process_count)
    decoder = decoder or ClassDecoder(source, config, train=True)
    steps = order.steps(batch, local_indices, first, last, len(source), seed)
    arguments = source, config, decoder, seed
    if isinstance(source, StreamSource):
        # A shuffled stream cannot be entered in its middle: a resumed run shuffles it
        # by another seed.
        stream, _ = source.stream(
            seed + first, process_index, process_count, config.shuffle_buffer
        )
        reader = StreamReader(stream, *arguments, replace=True)
    else:
        reader = Reader(*arguments, replace=True)
    with contextlib.closing(reader.batches(steps, len(local_indices))) as batches:
        for examples in batches:
            del examples["mask"]
            yield examples


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
    """Yields one process's examples of an evaluation, which has every example once.

    All processes have equally many batches of the same shape: beyond the end of the
    split they are padded with zeros.

    Args:
      source: the split.
      config: the section `data`.
      batch: examples in the global batch.
      process_index: index of this process.
      process_count: number of processes.
      local_indices: see `train_batches`.
      decoder: see `train_batches`.

    Yields:
      The decoder's fields as in training; `mask` (local,) bool, False for padding and
      for unreadable examples; and `bad` (local,) bool, True for the latter.

    Raises:
      UserError: for an example that cannot be read, unless `config.on_error` is skip.
    """
    if local_indices is None:
        local_indices = order.local_block(batch, process_index, process_count)
    decoder = decoder or ClassDecoder(source, config, train=False)
    local, last = len(local_indices), -(-len(source) // batch)
    arguments = source, config, decoder, 0
    if isinstance(source, StreamSource):
        # Each process reads a shard of the split, from its start to its end.
        stream, count = source.stream(
            None, process_index, process_count, config.shuffle_buffer
        )
        steps = order.steps(local, np.arange(local), 0, last, count)
        reader = StreamReader(stream, *arguments, replace=False)
    else:
        steps = order.steps(batch, local_indices, 0, last, len(source))
        reader = Reader(*arguments, replace=False)
    with contextlib.closing(reader.batches(steps, local)) as batches:
        yield from batches

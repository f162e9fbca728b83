"""Batches of one process's examples, for training and for evaluation."""

import contextlib
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from vt_flax.data.decoders import ClassDecoder, Decoder
from vt_flax.data.order import Order
from vt_flax.data.reading import Reader
from vt_flax.data.source import Source
from vt_flax.data.streams import TFDSStream

Batch = dict[str, np.ndarray]


def train_batches(
    source: Source,
    config: ConfigDict,
    *,
    seed: int,
    batch: int,
    first: int,
    last: int,
    local_indices: np.ndarray | None = None,
    decoder: Decoder | None = None,
) -> Iterator[Batch]:
    """Yields one process's examples of the training batches.

    Which examples a batch has, and how each is cropped, depends on `seed` and the step
    alone (see `order`): not on the number of processes or threads, nor on restarts. Of
    a `TFDSStream`, it depends on these too.

    Args:
      source: the training split.
      config: the section `data`.
      seed: seed of the order and the crops.
      batch: examples in the global batch.
      first: first step.
      last: step before which to end.
      local_indices: (local batch,), examples of each global batch that this process
        reads, ascending; by default all.
      decoder: decodes an example; by default to a crop and its class.

    Yields:
      The decoder's fields, by default `image` (local batch, size, size, 3) uint8 and
      `label` (local batch,) int32; and `bad` (local batch,) bool, True where another
      example replaces an unreadable one.

    Raises:
      UserError: for an example that cannot be read, unless `config.on_error` is skip.
    """
    if local_indices is None:
        local_indices = np.arange(batch)
    decoder = decoder or ClassDecoder(source, config, train=True)
    if isinstance(source, TFDSStream):
        process, processes = _process(batch, local_indices)
        # A restart begins another stream, with other crops.
        seed += first + process
        source = source.shard(process, processes, seed, config.shuffle_buffer)
        order = _order_of_shard(source, len(local_indices), last - first)
    else:
        order = Order(batch, local_indices, first, last, len(source), seed)
    reader = Reader(source, config, decoder, order, seed)
    with contextlib.closing(reader.batches()) as batches:
        for examples in batches:
            yield {key: examples[key] for key in (*decoder.fields, "bad")}


def eval_batches(
    source: Source,
    config: ConfigDict,
    *,
    batch: int,
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
      local_indices: see `train_batches`.
      decoder: see `train_batches`.

    Yields:
      The decoder's fields as in training; `mask` (local batch,) bool, False for
      padding and for unreadable examples; and `bad`, True for the latter.

    Raises:
      UserError: for an example that cannot be read, unless `config.on_error` is skip.
    """
    if local_indices is None:
        local_indices = np.arange(batch)
    decoder = decoder or ClassDecoder(source, config, train=False)
    steps = -(-len(source) // batch)
    if isinstance(source, TFDSStream):
        source = source.shard(*_process(batch, local_indices))
        order = _order_of_shard(source, len(local_indices), steps)
    else:
        order = Order(batch, local_indices, 0, steps, len(source))
    reader = Reader(source, config, decoder, order, 0)
    with contextlib.closing(reader.batches(replace=False)) as batches:
        for examples in batches:
            yield {key: examples[key] for key in (*decoder.fields, "mask", "bad")}


def _process(batch: int, local_indices: np.ndarray) -> tuple[int, int]:
    """Returns the process's index and the number of processes that read a batch.

    All have equally many examples of it.
    """
    if len(local_indices) == batch:
        return 0, 1
    import jax  # takes a while, and streams of several processes alone need it

    return jax.process_index(), batch // len(local_indices)


def _order_of_shard(shard: Source, size: int, steps: int) -> Order:
    """Returns the order of a shard of a stream, `size` examples a step."""
    return Order(size, np.arange(size), 0, steps, len(shard))

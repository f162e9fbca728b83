"""Batches of one process's examples, for training and for evaluation."""

import contextlib
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from vt_flax.data.decoders import ClassDecoder, Decoder
from vt_flax.data.order import Order, own_part
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
    part: int = 0,
    parts: int = 1,
    own: np.ndarray | None = None,
    decoder: Decoder | None = None,
) -> Iterator[Batch]:
    """Yields one process's share of the training batches.

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
      part: index of the process.
      parts: number of processes.
      own: which examples of each batch this process reads, batch / parts of them,
        ascending; by default its block of neighbors.
      decoder: makes arrays of an example; by default a crop and its class.

    Yields:
      The decoder's fields, by default `image` (batch / parts, size, size, 3) uint8 and
      `label` (batch / parts,) int32; and `bad` (batch / parts,) bool, True where
      another example replaces an unreadable one.

    Raises:
      UserError: for an example that cannot be read, unless `config.on_error` is skip.
    """
    own = own_part(batch, part, parts) if own is None else own
    decoder = decoder or ClassDecoder(source, config, train=True)
    order = Order(batch, own, first, last, len(source), seed)
    if isinstance(source, StreamSource):
        # A restart cannot continue within a shuffled stream: it takes another one.
        stream, _ = source.stream(seed + first, part, parts, config.shuffle_buffer)
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
    part: int = 0,
    parts: int = 1,
    own: np.ndarray | None = None,
    decoder: Decoder | None = None,
) -> Iterator[Batch]:
    """Yields one process's share of an evaluation: every example exactly once.

    All processes have equally many batches, all of one shape: where the split has no
    more examples, they are padded with zeros.

    Args:
      source: the split.
      config: the section `data`.
      batch: examples in the global batch.
      part: index of the process.
      parts: number of processes.
      own: see `train_batches`.
      decoder: see `train_batches`.

    Yields:
      The decoder's fields as in training; `mask` (batch / parts,) bool, False for
      padding and for unreadable examples; and `bad`, True for the latter.

    Raises:
      UserError: for an example that cannot be read, unless `config.on_error` is skip.
    """
    own = own_part(batch, part, parts) if own is None else own
    decoder = decoder or ClassDecoder(source, config, train=False)
    steps = -(-len(source) // batch)
    if isinstance(source, StreamSource):
        stream, count = source.stream(None, part, parts, config.shuffle_buffer)
        # Each process reads a part of the split, from its start to its end.
        order = Order(len(own), np.arange(len(own)), 0, steps, count)
        reader = StreamReader(stream, source, config, decoder, order, 0)
    else:
        order = Order(batch, own, 0, steps, len(source))
        reader = RandomAccessReader(source, config, decoder, order, 0)
    with contextlib.closing(reader.batches(replace=False)) as batches:
        for examples in batches:
            yield {key: examples[key] for key in (*decoder.fields, "mask", "bad")}

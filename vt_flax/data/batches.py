"""Batches of examples, read and decoded by tf.data ahead of the devices."""

import contextlib
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from vt_flax.data import images, order
from vt_flax.data.assembly import assemble
from vt_flax.data.decoders import ClassDecoder, Decoder, Item
from vt_flax.data.reading import Reader, StreamReader
from vt_flax.data.source import Source, StreamSource
from vt_flax.errors import UserError, nearest

ON_ERROR = ("raise", "skip")

Batch = dict[str, np.ndarray]


def check_config(config: ConfigDict) -> None:
    """Checks the section `data` before anything is read or written.

    Raises:
      UserError: for a value that no image can be made with.
    """
    for key, known in (("train_crop", images.TRAIN_CROPS), ("on_error", ON_ERROR)):
        if config[key] not in known:
            raise UserError(
                f"data.{key} {config[key]!r} is not known{nearest(config[key], known)}"
            )
    for key, least in (
        ("image_size", 1),
        ("crop_padding", 0),
        ("workers", 0),
        ("readers", 1),
        ("prefetch", 0),
        ("shuffle_buffer", 1),
    ):
        if config[key] < least:
            raise UserError(f"data.{key} {config[key]}: must be at least {least}")
    if not 0 < config.crop_min_area <= 1:
        raise UserError(
            f"data.crop_min_area {config.crop_min_area}: must be over 0, and at most 1"
        )
    if config.eval_resize and config.eval_resize < config.image_size:
        raise UserError(
            f"data.eval_resize {config.eval_resize} is less than data.image_size "
            f"{config.image_size}: the centre crop would not fit"
        )
    for key in ("mean", "std"):
        if len(config[key]) != 3 or not all(
            isinstance(value, (int, float)) for value in config[key]
        ):
            raise UserError(f"data.{key} {list(config[key])}: write three numbers")
    if min(config.std) <= 0:
        raise UserError(f"data.std {list(config.std)}: must be over 0")


def check_source(source: Source, num_classes: int) -> None:
    """Checks that a source has the classes that the model has.

    Raises:
      UserError: if it has another number.
    """
    if len(source.class_names) != num_classes:
        raise UserError(
            f"{source.name} has {len(source.class_names)} classes, the model "
            f"{num_classes}: set config.model.num_classes to 0 to take the dataset's"
        )


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
    """Yields this process's share of the training batches.

    Global batch k is rows k * batch to (k + 1) * batch of the run: see `order.locate`.
    Every example's crop is drawn from its row in the run, so a batch is the same
    whatever the number of processes or threads, and after a restart; of a
    `StreamSource`, that holds for the crops alone.

    Args:
      source: the training split.
      config: the section `data`.
      seed: of the order and the crops.
      batch: examples in the global batch.
      first: first step.
      last: step before which to end.
      part: which process.
      parts: number of processes.
      own: rows of each batch that this process reads, batch / parts of them in rising
        order; by default its part-th run of rows.
      decoder: what is made of an example; by default a crop and its class.

    Yields:
      The decoder's fields, by default `image` (batch / parts, size, size, 3) uint8 and
      `label` (batch / parts,) int32; and `bad` (batch / parts,) bool, True where an
      example stands for an unreadable one.

    Raises:
      UserError: for an example that cannot be read, unless `config.on_error` is skip.
    """
    own = order.own_part(batch, part, parts) if own is None else own
    share = len(own)
    decoder = decoder or ClassDecoder(source, config, train=True)

    def rows(places: np.ndarray) -> np.ndarray:
        """Returns the rows of the run that stand at some places of this process's."""
        steps, within = np.divmod(places, share)
        return (first + steps) * batch + own[within]

    if isinstance(source, StreamSource):
        # A restart cannot go on within the shuffled stream: it takes another one.
        stream, _ = source.stream(seed + first, part, parts, config.shuffle_buffer)
        reader = StreamReader(source, config, decoder, seed, stream, rows)
    else:
        reader = Reader(
            source,
            config,
            decoder,
            seed,
            rows,
            lambda rows: order.locate(rows, len(source), seed),
            (last - first) * share,
        )
    steps = (step * batch + own for step in range(first, last))
    with contextlib.closing(reader.pieces(share)) as pieces:
        for items in assemble(pieces, steps, decoder, reader.mend):
            yield {key: items[key] for key in (*decoder.fields, "bad")}


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
    """Yields this process's share of an evaluation: every example exactly once.

    The last batch is filled up with zeros, so that all have one shape, and all
    processes have equally many.

    Args:
      source: the split.
      config: the section `data`.
      batch: examples in the global batch.
      part: which process.
      parts: number of processes.
      own: see `train_batches`.
      decoder: see `train_batches`.

    Yields:
      The decoder's fields as in training; `mask` (batch / parts,) bool, False where a
      place was filled up; and `bad`, where it was because an example is unreadable.

    Raises:
      UserError: for an example that cannot be read, unless `config.on_error` is skip.
    """
    own = order.own_part(batch, part, parts) if own is None else own
    share = len(own)
    decoder = decoder or ClassDecoder(source, config, train=False)
    count = len(source)
    if isinstance(source, StreamSource):
        stream, size = source.stream(None, part, parts, config.shuffle_buffer)
        reader = StreamReader(source, config, decoder, 0, stream, lambda places: places)
        steps = (
            np.arange(start, max(start, min(start + share, size)))
            for start in range(0, -(-count // parts), share)
        )
    else:

        def rows(places: np.ndarray) -> np.ndarray:
            steps, within = np.divmod(places, share)
            found = steps * batch + own[within]
            return found[found < count]

        reader = Reader(
            source,
            config,
            decoder,
            0,
            rows,
            lambda rows: rows,
            -(-count // batch) * share,
        )
        steps = (start + own[start + own < count] for start in range(0, count, batch))
    mend = functools.partial(reader.mend, replace=False)
    with contextlib.closing(reader.pieces(share)) as pieces:
        for items in assemble(pieces, steps, decoder, mend):
            yield _filled_up(items, share, (*decoder.fields, "bad"))


def _filled_up(items: Item, size: int, keys: Sequence[str]) -> Batch:
    """Adds a mask to an evaluation's examples, and zeros up to a batch's size."""
    count = len(items["bad"])
    mask = np.arange(size) < count
    mask[:count] &= ~items["bad"]
    batch = {"mask": mask}
    for key in keys:
        value = items[key]
        if count < size:
            value = np.zeros((size, *value.shape[1:]), value.dtype)
            value[:count] = items[key]
        batch[key] = value
    return batch

"""`benchmark input`: how many images per second the host can make."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from vt_flax.data import images
from vt_flax.data.batches import train_batches
from vt_flax.data.host import tensorflow
from vt_flax.data.source import Source
from vt_flax.errors import UserError

BATCH = 64
# Batches that a new pipeline has prefetched before it is measured.
WARM_UP = 4

# Encoded images that variants without storage hold in memory.
JPEGS = 500

# Numbers of images, batch by batch.
Pipeline = Iterator[int]


def report(
    source: Source,
    config: ConfigDict,
    *,
    seconds: float,
    rounds: int,
    other: Source | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measures the input pipeline, and JPEG decoding alone, in turns.

    Args:
      source: the training split.
      config: the section `data`.
      seconds: time to measure each variant in each round.
      rounds: number of rounds, of which the median counts.
      other: a second split to measure, for example of smaller copies.

    Returns:
      A record for each variant, and notes.

    Raises:
      UserError: if there are no JPEGs to measure decoding with.
    """
    jpegs = read_jpegs(source)
    workers = config.workers or os.cpu_count() or 1
    variants = {
        "ours": lambda: ours(source, config),
        "JPEG decoding alone": lambda: _decoding(jpegs, workers),
    }
    if other is not None:
        variants[f"ours, {other.name}"] = lambda: ours(other, config)
    size = sum(map(len, jpegs)) / len(jpegs)
    notes = [
        f"{len(jpegs)} JPEGs of {size / 1e3:.0f} kB on average in memory; {workers} "
        f"threads each; {rounds} rounds of {seconds:g} s",
    ]
    return take_turns(variants, rounds, seconds), notes


def take_turns(
    variants: Mapping[str, Callable[[], Pipeline]], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """Returns a record for each variant; the first is `ours`.

    `ours_ratio` is the median over rounds of our rate relative to the variant's: what
    slows the machine down for a while affects both rates of a round.
    """
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            rates[name].append(_rate(variant, seconds))
    return [
        {
            "variant": name,
            "images_per_second": round(statistics.median(found)),
            "ours_ratio": round(
                statistics.median(
                    own / its for own, its in zip(rates["ours"], found, strict=True)
                ),
                3,
            ),
        }
        for name, found in rates.items()
    ]


def read_jpegs(source: Source) -> list[bytes]:
    """Returns the JPEGs among the first examples of a split.

    Raises:
      UserError: if there are none.
    """
    count = min(JPEGS, len(source))
    files = [example.image for example in source.read(range(count))]
    jpegs = [file for file in files if file.startswith(images.JPEG_START)]
    if not jpegs:
        raise UserError(f"{source.name}: no JPEGs among the first {count} examples")
    return jpegs


def ours(source: Source, config: ConfigDict) -> Pipeline:
    """Runs the package's input pipeline."""
    batches = train_batches(source, config, seed=0, batch=BATCH, first=0, last=10**9)
    with contextlib.closing(batches):
        for batch in batches:
            yield len(batch["image"])


def run_dataset(data: Any, workers: int) -> Pipeline:
    """Runs a `tf.data.Dataset` on a number of threads."""
    tf = tensorflow()
    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    batches = data.batch(BATCH).prefetch(2).with_options(options)
    for batch in batches:
        yield len(batch)


def _decoding(files: list[bytes], workers: int) -> Pipeline:
    tf = tensorflow()
    data = tf.data.Dataset.from_tensor_slices(files).repeat()
    data = data.map(
        lambda encoded: tf.shape(tf.io.decode_jpeg(encoded, 3)),
        num_parallel_calls=workers,
    )
    return run_dataset(data, workers)


def _rate(variant: Callable[[], Pipeline], seconds: float) -> float:
    """Returns a variant's images per second."""
    with contextlib.closing(variant()) as batches:
        for _ in range(WARM_UP):
            next(batches)
        begin, total = time.perf_counter(), 0
        while time.perf_counter() < begin + seconds:
            total += next(batches)
        return total / (time.perf_counter() - begin)

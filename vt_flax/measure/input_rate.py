"""How many images a second the host can make, against references of the same run."""

import contextlib
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from vt_flax.analysis import pillow_loader
from vt_flax.data import images
from vt_flax.data.batches import train_batches
from vt_flax.data.host import tensorflow
from vt_flax.data.source import RandomAccessSource
from vt_flax.errors import UserError

BATCH = 64
# What a new pipeline has decoded before it is measured, and so would seem to make in no
# time.
WARM_UP = 4

Images = Iterator[int]


def rows(
    source: RandomAccessSource,
    config: ConfigDict,
    *,
    seconds: float,
    rounds: int,
    examples: int,
    other: RandomAccessSource | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measures ours and the references, in turns.

    Args:
      source: the training split.
      config: the section `data`.
      seconds: to measure each variant in each round.
      rounds: of which the median counts.
      examples: encoded images that the references hold in memory.
      other: a second split, such as smaller copies, to measure ours on.

    Returns:
      A record for each variant, and lines that tell what was measured.

    Raises:
      UserError: if there are no JPEGs to measure the references with.
    """
    # Ours goes first and alone: that is its memory.
    _rate(lambda: _ours(source, config), seconds)
    alone = _peak()
    count = min(examples, len(source))
    files = [example.image for example in source.read(range(count))]
    jpegs = [file for file in files if file.startswith(images.JPEG_START)]
    if not jpegs:
        raise UserError(f"{source.name}: no JPEGs among the first {count} examples")
    workers = config.workers or os.cpu_count() or 1
    variants: dict[str, Callable[[], Images]] = {
        "ours": lambda: _ours(source, config),
        "bare tf.data, from memory": lambda: _bare(jpegs, config, workers),
        "Pillow in processes, AutoAugment": lambda: _pillow(jpegs, config, workers),
        "JPEG decoding alone": lambda: _decoding(jpegs, workers),
    }
    if other is not None:
        variants[f"ours, {other.name}"] = lambda: _ours(other, config)
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            rates[name].append(_rate(variant, seconds))
    result = []
    for name, found in rates.items():
        # Ratios of one round: what slows the machine down for a while hits both.
        pairs = zip(rates["ours"], found, strict=True)
        result.append(
            {
                "variant": name,
                "images_per_second": round(statistics.median(found)),
                "ours_ratio": round(statistics.median(a / b for a, b in pairs), 3),
            }
        )
    size = sum(map(len, jpegs)) / len(jpegs)
    left_out = len(files) - len(jpegs)
    notes = [
        f"{len(jpegs)} JPEGs of {size / 1e3:.0f} kB on average in memory"
        + (f" ({left_out} examples of other kinds left out)" if left_out else "")
        + f"; {workers} threads or processes each; {rounds} rounds of {seconds:g} s",
        f"peak memory: {alone:.2f} GiB with ours alone, {_peak():.2f} GiB in all "
        "(without the processes of the Pillow loader)",
    ]
    return result, notes


def _rate(variant: Callable[[], Images], seconds: float) -> float:
    """Returns a variant's images a second."""
    with contextlib.closing(variant()) as made:
        for _ in range(WARM_UP):
            next(made)
        begin, total = time.perf_counter(), 0
        while time.perf_counter() < begin + seconds:
            total += next(made)
        return total / (time.perf_counter() - begin)


def _ours(source: RandomAccessSource, config: ConfigDict) -> Images:
    batches = train_batches(source, config, seed=0, batch=BATCH, first=0, last=10**9)
    with contextlib.closing(batches):
        for batch in batches:
            yield len(batch["image"])


def _bare(files: list[bytes], config: ConfigDict, workers: int) -> Images:
    """What one writes in a dozen lines: no order, no seeds, no storage."""
    tf = tensorflow()

    def crop(encoded: Any) -> Any:
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(encoded),
            tf.zeros((1, 0, 4)),
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(config.crop_min_area, 1.0),
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], extent[:2]], 0)
        image = tf.io.decode_and_crop_jpeg(encoded, window, 3)
        size = (config.image_size, config.image_size)
        return tf.cast(tf.image.resize(image, size), tf.uint8)

    data = tf.data.Dataset.from_tensor_slices(files).repeat()
    data = data.map(crop, num_parallel_calls=workers).batch(BATCH).prefetch(2)
    return _run(data, workers)


def _decoding(files: list[bytes], workers: int) -> Images:
    tf = tensorflow()
    data = tf.data.Dataset.from_tensor_slices(files).repeat()
    data = data.map(
        lambda encoded: tf.shape(tf.io.decode_jpeg(encoded, 3)),
        num_parallel_calls=workers,
    )
    return _run(data.batch(BATCH).prefetch(2), workers)


def _run(data: Any, workers: int) -> Images:
    tf = tensorflow()
    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    for batch in data.with_options(options):
        yield len(batch)


def _pillow(files: list[bytes], config: ConfigDict, workers: int) -> Images:
    batches = pillow_loader.batches(files, config.image_size, BATCH, workers)
    with contextlib.closing(batches):
        for batch in batches:
            yield len(batch)


def _peak() -> float:
    """Returns the most memory that this process has held, in GiB."""
    # In bytes on macOS, in KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30

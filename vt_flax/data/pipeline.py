"""Batches of uint8 images, read and decoded by threads ahead of the devices."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from vt_flax.data import images, order
from vt_flax.data.sources import Source
from vt_flax.errors import UserError, nearest

TRAIN_CROPS = ("random_resized", "pad", "centre")
# Examples that one task of a worker decodes: enough to outweigh the task's own cost.
CHUNK = 16

Batch = dict[str, np.ndarray]


def check_config(config: ConfigDict) -> None:
    """Checks the section `data` before anything is read or written.

    Raises:
      UserError: for a value that no image can be made with.
    """
    if config.train_crop not in TRAIN_CROPS:
        raise UserError(
            f"data.train_crop {config.train_crop!r} is not known"
            f"{nearest(config.train_crop, TRAIN_CROPS)}"
        )
    for key, least in (("image_size", 1), ("crop_padding", 0), ("workers", 0)):
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
) -> Iterator[Batch]:
    """Yields this process's share of the training batches.

    Every example's crop is drawn from its row in the run, so a batch is the same
    whatever the number of processes or threads, and after a restart.

    Args:
      source: the training split.
      config: the section `data`.
      seed: of the order and the crops.
      batch: examples in the global batch.
      first: first step.
      last: step before which to end.
      part: which process.
      parts: number of processes.

    Yields:
      `image` (batch / parts, size, size, 3) uint8 and `label` (batch / parts,) int32.

    Raises:
      UserError: for an example that cannot be read.
    """

    def make(rows: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        indices = [order.locate(row, len(source), seed) for row in rows]

        def crop(image: Image.Image, i: int) -> np.ndarray:
            generator = np.random.Generator(np.random.Philox(key=[seed, rows[i]]))
            if config.train_crop == "random_resized":
                return images.random_resized_crop(
                    image, config.image_size, config.crop_min_area, generator
                )
            if config.train_crop == "pad":
                return images.pad_and_crop(
                    image, config.image_size, config.crop_padding, generator
                )
            return images.centre_crop(image, config.image_size, config.image_size)

        return _read(source, indices, crop)

    steps = (
        order.training_rows(step, batch, part, parts) for step in range(first, last)
    )
    for chunk in _parallel(make, steps, config):
        yield _stack(chunk)


def eval_batches(
    source: Source,
    config: ConfigDict,
    *,
    batch: int,
    part: int = 0,
    parts: int = 1,
) -> Iterator[Batch]:
    """Yields this process's share of an evaluation: every example exactly once.

    The last batch is filled up with zeros, so that all have one shape.

    Args:
      source: the split.
      config: the section `data`.
      batch: examples in the global batch.
      part: which process.
      parts: number of processes.

    Yields:
      `image` and `label` as in training, and `mask` (batch / parts,) bool, False where
      a place was filled up.

    Raises:
      UserError: for an example that cannot be read.
    """
    share = batch // parts
    resize = config.eval_resize or config.image_size

    def make(rows: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        return _read(
            source,
            rows,
            lambda image, i: images.centre_crop(image, config.image_size, resize),
        )

    count = len(source)
    shares = [
        range(min(start + part * share, count), min(start + (part + 1) * share, count))
        for start in range(0, count, batch)
    ]
    blank = (np.zeros((config.image_size, config.image_size, 3), np.uint8), 0)
    for examples in _parallel(make, iter(shares), config):
        mask = np.arange(share) < len(examples)
        yield _stack(examples + [blank] * (share - len(examples))) | {"mask": mask}


def _read(
    source: Source,
    indices: Sequence[int],
    crop: Callable[[Image.Image, int], np.ndarray],
) -> list[tuple[np.ndarray, int]]:
    """Reads, decodes and crops examples; `crop` is given each one's place in them."""
    if not len(indices):
        return []
    result = []
    classes = len(source.class_names)
    for i, example in enumerate(source.read(indices)):
        if not 0 <= example.label < classes:
            raise UserError(
                f"{source.describe(indices[i])}: label {example.label} is outside the "
                f"{classes} classes of the dataset"
            )
        try:
            image = crop(images.decode(example.image), i)
        except ValueError as error:
            raise UserError(
                f"{source.describe(indices[i])}: not a readable image ({error}); "
                "mend or remove it"
            ) from error
        result.append((image, example.label))
    return result


def _parallel(
    make: Callable[[Sequence[int]], list], batches: Iterator[range], config: ConfigDict
) -> Iterator[list]:
    """Applies `make` to batches of rows, in threads and some ahead, in their order."""
    workers = config.workers or os.cpu_count() or 1
    pool = concurrent.futures.ThreadPoolExecutor(workers, "vt_flax-data")
    pending: collections.deque = collections.deque()

    def submit() -> None:
        rows = next(batches, None)
        if rows is not None:
            pending.append(
                [
                    pool.submit(make, rows[i : i + CHUNK])
                    for i in range(0, len(rows), CHUNK)
                ]
            )

    try:
        for _ in range(max(0, config.prefetch) + 1):
            submit()
        while pending:
            parts = [future.result() for future in pending.popleft()]
            submit()
            yield [example for part in parts for example in part]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _stack(examples: list[tuple[np.ndarray, int]]) -> Batch:
    return {
        "image": np.stack([image for image, _ in examples]),
        "label": np.asarray([label for _, label in examples], np.int32),
    }

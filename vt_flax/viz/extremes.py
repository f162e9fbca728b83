"""A page of the images of a split with the highest and the lowest mIoU."""

import contextlib
import functools
import heapq
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from vt_flax.data.batches import eval_batches
from vt_flax.data.masks import IGNORE
from vt_flax.parallel.mesh import on_devices_of
from vt_flax.training.evaluation import eval_batch_size
from vt_flax.training.run import Run
from vt_flax.training.tasks.metrics import segmentation_scores
from vt_flax.viz.masks import css_colors, paint
from vt_flax.viz.overlays import shrink
from vt_flax.viz.page import SIDE, Page

# Number of images at each end.
SHOWN = 8


class Segmented(NamedTuple):
    """An image (H, W, 3), uint8, with its labels and its prediction, (H, W).

    `number` is the index of the example in the split, `miou` of this image alone, in
    percent.
    """

    number: int
    miou: float
    image: np.ndarray
    label: np.ndarray
    predicted: np.ndarray


def draw_extremes(path: pathlib.Path, run: Run, variables: Any) -> None:
    """Writes a page with the best and the worst images of the evaluation split.

    Args:
      path: HTML file to write.
      run: see `run.prepare`.
      variables: weights of the network.

    Raises:
      OSError: if it cannot be written.
    """
    best: list[tuple[float, int, Segmented]] = []
    worst: list[tuple[float, int, Segmented]] = []
    for example in _predictions(run, variables):
        for heap, sign in ((best, 1), (worst, -1)):
            # Of equal values the first examples stay.
            heapq.heappush(heap, (sign * example.miou, -example.number, example))
            if len(heap) > SHOWN:
                heapq.heappop(heap)
    names = run.task.class_names
    title = (
        f"{run.eval_source.name}, {run.config.model.name}: image, labels, prediction"
    )
    legend = list(zip(names, css_colors(len(names)), strict=True))
    with Page(
        path, title, generator="vt_flax evaluate", legend=legend, sort_keys={}
    ) as page:
        for heading, heap in (("Best", best), ("Worst", worst)):
            page.add_section(heading)
            for _, _, example in sorted(heap, reverse=True):
                masks = [
                    paint(example.image, mask, len(names))
                    for mask in (example.label, example.predicted)
                ]
                page.add(
                    f"example {example.number}: mIoU {example.miou:.1f} %",
                    [shrink(picture, SIDE) for picture in (example.image, *masks)],
                )


def _predictions(run: Run, variables: Any) -> Iterator[Segmented]:
    """Yields every readable example that has labels."""

    @jax.jit
    def predict(variables, images, sizes):
        apply = functools.partial(run.model.apply, variables, train=False)
        with on_devices_of(run.mesh):
            return run.task.predict(apply, images, sizes)[0]

    batches = eval_batches(
        run.eval_source,
        run.config.data,
        batch=eval_batch_size(run.config, run.mesh),
        decoder=run.task.decoder(run.eval_source, train=False),
    )
    numbers = itertools.count()
    with contextlib.closing(batches):
        for batch in batches:
            classes = np.asarray(predict(variables, batch["image"], batch["size"]))
            for i, real in enumerate(batch["mask"]):
                number = next(numbers)
                height, width = batch["size"][i]
                image, label, predicted = (
                    array[i, :height, :width]
                    for array in (batch["image"], batch["label"], classes)
                )
                if real and (label != IGNORE).any():
                    miou = _miou(label, predicted, run.task.class_names)
                    yield Segmented(number, miou, image, label, predicted)


def _miou(label: np.ndarray, predicted: np.ndarray, names: tuple[str, ...]) -> float:
    known = label != IGNORE
    pairs = label[known].astype(int) * len(names) + predicted[known]
    confusion = np.bincount(pairs, minlength=len(names) ** 2)
    return segmentation_scores(confusion.reshape(len(names), -1), names)["miou"]

"""A page of the images of a split with the highest and the lowest mIoU."""

import contextlib
import dataclasses
import heapq
import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from vt_flax.data.batches import eval_batches
from vt_flax.data.masks import IGNORE
from vt_flax.training.evaluation import eval_batch_size
from vt_flax.training.run import Run
from vt_flax.training.tasks.metrics import segmentation_scores
from vt_flax.viz.masks import css_colors, paint
from vt_flax.viz.overlays import shrink
from vt_flax.viz.page import SIDE, Page

# Number of images at each end.
SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Segmented:
    """An image with its labels and its prediction.

    Attributes:
      number: index of the example in the split.
      miou: mIoU of this image alone, in percent.
      image: (H, W, 3), uint8.
      label: (H, W), class indices, or IGNORE.
      predicted: (H, W), class indices.
    """

    number: int
    miou: float
    image: np.ndarray
    label: np.ndarray
    predicted: np.ndarray


def draw_extremes(
    path: pathlib.Path,
    run: Run,
    predict: Callable[[Any, Any], Any],
) -> None:
    """Writes a page with the best and the worst images of the evaluation split.

    Args:
      path: HTML file to write.
      run: see `run.prepare`.
      predict: maps images and sizes, as the decoder has them, to classes (batch, H, W).

    Raises:
      OSError: if it cannot be written.
    """
    best: list[tuple[float, int, Segmented]] = []
    worst: list[tuple[float, int, Segmented]] = []
    for example in _all(run, predict):
        for heap, sign in ((best, 1), (worst, -1)):
            # Of equal values the first examples stay.
            entry = (sign * example.miou, -example.number, example)
            (heapq.heappush if len(heap) < SHOWN else heapq.heappushpop)(heap, entry)
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
                image = example.image
                painted = (
                    paint(image, mask, len(names))
                    for mask in (example.label, example.predicted)
                )
                page.add(
                    f"example {example.number}: mIoU {example.miou:.1f} %",
                    [shrink(picture, SIDE) for picture in (image, *painted)],
                )


def _all(run: Run, predict: Callable[[Any, Any], Any]):
    """Yields every readable example that has labels."""
    size = eval_batch_size(run.config, run.mesh)
    batches = eval_batches(
        run.eval_source,
        run.config.data,
        batch=size,
        decoder=run.task.decoder(run.eval_source, train=False),
    )
    numbers = itertools.count()
    with contextlib.closing(batches):
        for batch in batches:
            classes = np.asarray(predict(batch["image"], batch["size"]))
            for i, real in enumerate(batch["mask"]):
                number = next(numbers)
                height, width = batch["size"][i]
                label = batch["label"][i, :height, :width]
                if not real or (label == IGNORE).all():
                    continue
                predicted = classes[i, :height, :width]
                image = batch["image"][i, :height, :width]
                confusion = _confusion(label, predicted, run)
                miou = segmentation_scores(confusion, run.task.class_names)["miou"]
                yield Segmented(number, miou, image, label, predicted)


def _confusion(label: np.ndarray, predicted: np.ndarray, run: Run) -> np.ndarray:
    count = len(run.task.class_names)
    known = label != IGNORE
    pairs = label[known].astype(int) * count + predicted[known]
    return np.bincount(pairs, minlength=count * count).reshape(count, count)

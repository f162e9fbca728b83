"""The images of a split that a network segments best and worst."""

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
from vt_flax.training.tasks.segmentation import scores
from vt_flax.viz.masks import paint, write_page

# Images at each end.
SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Found:
    """An image and what became of it.

    Attributes:
      number: in the split, from 0.
      miou: of this image alone, in percent.
      image: (H, W, 3), uint8.
      label: (H, W), class indices, IGNORE where there is none.
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
    best: list[tuple[float, int, Found]] = []
    worst: list[tuple[float, int, Found]] = []
    for found in _all(run, predict):
        for heap, sign in ((best, 1), (worst, -1)):
            # Of equals the first stay.
            entry = (sign * found.miou, -found.number, found)
            (heapq.heappush if len(heap) < SHOWN else heapq.heappushpop)(heap, entry)
    names = run.task.class_names
    sections = [
        (
            heading,
            [
                (
                    f"example {found.number}: mIoU {found.miou:.1f} %",
                    [
                        found.image / 255,
                        paint(found.image, found.label, len(names)),
                        paint(found.image, found.predicted, len(names)),
                    ],
                )
                for _, _, found in sorted(heap, key=lambda e: (-e[0], -e[1]))
            ],
        )
        for heading, heap in (("Best", best), ("Worst", worst))
    ]
    title = (
        f"{run.eval_source.name}, {run.config.model.name}: image, labels, prediction"
    )
    write_page(path, title, sections, names)


def _all(run: Run, predict: Callable[[Any, Any], Any]):
    """Yields every readable example with labels."""
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
                yield Found(
                    number,
                    scores(_confusion(label, predicted, run), run.task.class_names)[
                        "miou"
                    ],
                    batch["image"][i, :height, :width],
                    label,
                    predicted,
                )


def _confusion(label: np.ndarray, predicted: np.ndarray, run: Run) -> np.ndarray:
    count = len(run.task.class_names)
    known = label != IGNORE
    pairs = label[known].astype(int) * count + predicted[known]
    return np.bincount(pairs, minlength=count * count).reshape(count, count)

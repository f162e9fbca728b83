"""A contact sheet of the network's inputs: augmented images and evaluation crops."""

import contextlib
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from vt_flax.data import augment
from vt_flax.data.batches import eval_batches, train_batches
from vt_flax.data.source import Source
from vt_flax.viz.figures import literal

COLUMNS = 8
TRAIN_ROWS, EVAL_ROWS = 4, 2


def draw_sheet(
    path: pathlib.Path,
    train_source: Source,
    eval_source: Source,
    config: ConfigDict,
    seed: int,
) -> None:
    """Writes a contact sheet of both splits as PNG.

    Args:
      path: file to write.
      train_source: the training split.
      eval_source: the evaluation split.
      config: section `data`.
      seed: seed of the run whose first images are shown.
    """
    batches = train_batches(
        train_source, config, seed=seed, batch=COLUMNS * TRAIN_ROWS, first=0, last=1
    )
    with contextlib.closing(batches):
        batch = next(batches)
    augmented, targets = jax.jit(
        lambda image, label, key: augment.augment(image, label, config, key)
    )(batch["image"], batch["label"], jax.random.key(seed))
    # Normalization is undone.
    levels = np.asarray(augmented) * np.asarray(config.std) + np.asarray(config.mean)
    pairs = zip(targets.labels.tolist(), targets.weights.tolist(), strict=True)
    captions = [_caption(labels, weights, train_source) for labels, weights in pairs]
    evaluated = eval_batches(eval_source, config, batch=COLUMNS * EVAL_ROWS)
    with contextlib.closing(evaluated):
        shown = next(evaluated)
    real = shown["mask"]
    figure = Figure(figsize=(COLUMNS * 1.5, (TRAIN_ROWS + EVAL_ROWS) * 1.75 + 1))
    upper, lower = figure.subfigures(2, 1, height_ratios=(TRAIN_ROWS, EVAL_ROWS))
    _draw_grid(
        upper,
        f"{train_source.name}, as the network gets it (augment: {config.augment})",
        np.clip(levels, 0, 1),
        captions,
        TRAIN_ROWS,
    )
    _draw_grid(
        lower,
        f"{eval_source.name}, the crops of evaluation",
        shown["image"][real],
        [_short(eval_source.class_names[label]) for label in shown["label"][real]],
        EVAL_ROWS,
    )
    figure.savefig(path, format="png", dpi=110)


def _draw_grid(
    figure, title: str, images: np.ndarray, captions: Sequence[str], rows: int
) -> None:
    figure.suptitle(literal(title), fontsize=11)
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.28 / rows, 0.05, 0.25)
    for i, axes in enumerate(figure.subplots(rows, COLUMNS).flat):
        axes.set_axis_off()
        if i < len(images):
            axes.imshow(images[i])
            axes.set_title(literal(captions[i]), fontsize=6, pad=2)


def _caption(labels: list[int], weights: list[float], source: Source) -> str:
    """Returns the class of an image, or the classes of a mixed one with weights."""
    names = [_short(source.class_names[label]) for label in labels]
    if len(names) == 1:
        return names[0]
    return " + ".join(
        f"{name} {weight:.0%}" for name, weight in zip(names, weights, strict=True)
    )


def _short(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}…"

"""A picture of token attention for the first images of a split."""

import contextlib
import pathlib

import numpy as np
from ml_collections import ConfigDict

from vt_flax.data.batches import eval_batches
from vt_flax.data.source import Source
from vt_flax.inference.predictor import Predictor
from vt_flax.inference.views import View
from vt_flax.viz.token_pictures import render, token_picture


def draw_tokens(
    path: pathlib.Path,
    network: Predictor,
    source: Source,
    config: ConfigDict,
    count: int = 6,
) -> None:
    """Draws each token's attention map over the first images of different classes.

    Args:
      path: PNG file to write.
      network: a classifier with tokens.
      source: split of the images.
      config: section `data`.
      count: number of images.

    Raises:
      OSError: if the file cannot be written.
    """
    images, labels = _pick(source, config, count)
    views = [View("", image.shape[:2], image, image.shape[:2]) for image in images]
    attention = network.attention(views)
    pictures = [
        token_picture(attention, i, source.class_names[label], projections=False)
        for i, label in enumerate(labels)
    ]
    render(pictures).save(path)


def _pick(
    source: Source, config: ConfigDict, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first image of each class, and its label, for up to `count`."""
    found: dict[int, np.ndarray] = {}
    with contextlib.closing(eval_batches(source, config, batch=64)) as batches:
        for batch in batches:
            for image, label, real in zip(
                batch["image"], batch["label"], batch["mask"], strict=True
            ):
                if real and int(label) not in found:
                    found[int(label)] = image
            if len(found) >= min(count, len(source.class_names)):
                break
    labels = sorted(found)[:count]
    return np.stack([found[label] for label in labels]), np.asarray(labels)

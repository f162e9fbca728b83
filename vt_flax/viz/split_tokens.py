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

BATCH = 64


def draw_tokens(
    path: pathlib.Path,
    network: Predictor,
    source: Source,
    config: ConfigDict,
    count: int = 6,
) -> None:
    """Draws token attention over the first images of different classes.

    Args:
      path: PNG file to write.
      network: a classifier with tokens.
      source: split of the images.
      config: section `data`.
      count: largest number of images.

    Raises:
      OSError: if the file cannot be written.
    """
    first: dict[int, np.ndarray] = {}
    with contextlib.closing(eval_batches(source, config, batch=BATCH)) as batches:
        for batch in batches:
            for i in np.flatnonzero(batch["mask"]):
                first.setdefault(int(batch["label"][i]), batch["image"][i])
            if len(first) >= min(count, len(source.class_names)):
                break
    labels = sorted(first)[:count]
    images = [first[label] for label in labels]
    views = [View("", image.shape[:2], image, image.shape[:2]) for image in images]
    attention = network.attention(views)
    pictures = [
        token_picture(attention, i, source.class_names[label], projections=False)
        for i, label in enumerate(labels)
    ]
    render(pictures).save(path)

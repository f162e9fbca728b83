"""A picture of where tokens look in the first images of a split."""

import contextlib
import functools
import pathlib
import sys
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from vt_flax.data import augment
from vt_flax.data.batches import eval_batches
from vt_flax.data.source import Source
from vt_flax.errors import UserError
from vt_flax.inference.predictor import Looks
from vt_flax.inference.token_maps import by_module, sown_maps, tokenizer_kinds
from vt_flax.paths import writing
from vt_flax.viz.figures import check_name
from vt_flax.viz.pictures import token_picture
from vt_flax.viz.token_pictures import render


def draw_tokens(
    path: pathlib.Path,
    model: nn.Module,
    variables: dict[str, Any],
    source: Source,
    config: ConfigDict,
    count: int = 6,
) -> None:
    """Draws each token's coefficients over the first images of different classes.

    Args:
      path: PNG file to write.
      model: a network of VT modules.
      variables: its parameters and batch statistics.
      source: where to take the images from.
      config: the whole configuration.
      count: number of images.

    Raises:
      UserError: if the model has no token coefficients, or the file cannot be written.
    """
    check_name("--token_picture", path, (".png",))
    images, labels = _pick(source, config, count)
    kinds = tokenizer_kinds(model, variables, images.shape[1:3])
    if set(kinds.values()) <= {"pooling"}:
        raise UserError("--token_picture: this model has no token coefficients")
    found = jax.jit(functools.partial(sown_maps, model))(
        variables, augment.normalize(images, config.data)
    )
    looks = Looks(images, [(1.0, 1.0)] * len(images), by_module(found, kinds))
    pictures = [
        token_picture(looks, i, source.class_names[label], projections=False)
        for i, label in enumerate(labels)
    ]
    with writing(f"--token_picture {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        render(pictures).save(path)
    # Standard output is for figures, which may be JSON.
    print(f"wrote {path}", file=sys.stderr)


def _pick(
    source: Source, config: ConfigDict, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first images of as many classes as there are, at most `count`."""
    found: dict[int, np.ndarray] = {}
    with contextlib.closing(eval_batches(source, config.data, batch=64)) as batches:
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

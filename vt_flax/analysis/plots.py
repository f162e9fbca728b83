"""Pictures of what the tokens look at."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import matplotlib
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from vt_flax.data import augment, pipeline
from vt_flax.data.source import Source
from vt_flax.errors import UserError
from vt_flax.inference.token_maps import token_coefficients

matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402


def draw_tokens(
    path: pathlib.Path,
    model: nn.Module,
    variables: dict[str, Any],
    source: Source,
    config: ConfigDict,
    count: int = 6,
) -> None:
    """Draws each token's coefficients over the first images of different classes.

    A row is an image in a module: see `draw_rows`.

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
    if path.suffix.lower() != ".png":
        raise UserError(f"--token_picture {path}: the name must end in .png")
    images, labels = _pick(source, config, count)
    maps = token_coefficients(model, variables, augment.normalise(images, config.data))
    if not maps:
        raise UserError("--token_picture: this model has no token coefficients")
    rows = [
        TokenRow(
            f"{source.class_names[label]}, {module}",
            image,
            coefficients[i],
            "token {}" if i == 0 else "",
        )
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
        for module, coefficients in maps.items()
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_rows(path, rows)
    except OSError as error:
        raise UserError(f"--token_picture {path}: {error.strerror or error}") from error
    print(f"wrote {path}")


@dataclasses.dataclass(frozen=True)
class TokenRow:
    """A row of a picture of tokens.

    Attributes:
      title: over the image.
      image: (H, W, 3), uint8.
      maps: (L, h, w), each token's coefficients over the image.
      heading: over each token, with its number; empty for none.
    """

    title: str
    image: np.ndarray
    maps: np.ndarray
    heading: str = ""


def draw_rows(path: pathlib.Path, rows: Sequence[TokenRow]) -> None:
    """Draws tokens: an image and its maps in a row, a token in a column.

    Each map is stretched to its own range: bright is where the token looks most.

    Raises:
      OSError: if the file cannot be written.
    """
    columns = 1 + max(len(row.maps) for row in rows)
    height, width = rows[0].image.shape[:2]
    each = 1.1 * min(max(height / width, 0.5), 2)
    figure, grid = pyplot.subplots(
        len(rows), columns, figsize=(columns, (each * len(rows))), squeeze=False
    )
    for axes in grid.flat:
        axes.axis("off")
    for row, axes in zip(rows, grid, strict=True):
        axes[0].imshow(row.image)
        axes[0].set_title(row.title, fontsize=7, pad=2)
        # Half replacement puts its new tokens behind the kept ones.
        first = columns - len(row.maps)
        for token, map_ in enumerate(row.maps, first):
            axes[token].imshow(_overlay(row.image, map_))
            if row.heading:
                axes[token].set_title(row.heading.format(token), fontsize=7, pad=2)
    figure.tight_layout(pad=0.3)
    try:
        figure.savefig(path, dpi=110)
    finally:
        pyplot.close(figure)


def _pick(
    source: Source, config: ConfigDict, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first images of as many classes as there are, at most `count`."""
    found: dict[int, np.ndarray] = {}
    with contextlib.closing(
        pipeline.eval_batches(source, config.data, batch=64)
    ) as batches:
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


def _overlay(image: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Lays a map, brought to the image's size, over its grey version."""
    low, high = coefficients.min(), coefficients.max()
    scaled = (coefficients - low) / max(high - low, 1e-12)
    height, width = image.shape[:2]
    heat = Image.fromarray(scaled.astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    colours = matplotlib.colormaps["inferno"](np.asarray(heat))[..., :3]
    grey = image.mean(axis=-1, keepdims=True) / 255
    return np.clip(0.35 * grey + 0.75 * colours, 0, 1)

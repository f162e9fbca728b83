"""Segmentation masks over images, with a legend."""

import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vt_flax.viz.figures import literal

# Weight of the class's color in a pixel.
OPACITY = 0.55
# Largest number of classes in a legend; the smallest classes are left out.
MOST_NAMED = 24


def colors(count: int) -> np.ndarray:
    """Returns a color for each class, (count, 3), from 0 to 1.

    The hue advances by the golden ratio and lightness alternates, so that neighbors
    differ most.
    """
    number = np.arange(count)
    hue = number * 0.618034 % 1
    saturation = np.where(number % 3 == 2, 0.55, 0.85)
    value = np.where(number % 2, 0.75, 1.0)
    return matplotlib.colors.hsv_to_rgb(np.stack([hue, saturation, value], -1))


def css_colors(count: int) -> list[str]:
    """Returns the same colors as in `#12ab00`."""
    return [matplotlib.colors.to_hex(color) for color in colors(count)]


def paint(image: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Lays a mask over an image.

    Args:
      image: (H, W, 3), uint8.
      labels: (H, W), class indices; the image is left as it is beyond `count`.
      count: number of classes.

    Returns:
      (H, W, 3), uint8.
    """
    picture = image / 255
    known = labels < count
    over = colors(count)[np.where(known, labels, 0)]
    mixed = (1 - OPACITY) * picture + OPACITY * over
    painted = np.where(known[..., None], mixed, picture)
    return np.round(255 * painted).astype(np.uint8)


def draw_mask(
    path: pathlib.Path,
    image: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    scores: Sequence[tuple[str, float]],
) -> None:
    """Writes an image beside its predicted mask, with a legend, as PNG.

    Args:
      path: file to write.
      image: (H, W, 3), uint8.
      labels: (H, W), class indices.
      class_names: names of the classes.
      scores: classes in the mask with their areas, largest first, for the legend.
    """
    height, width = labels.shape
    each = 4.8
    figure = Figure(figsize=(2 * each + 2.4, each * min(height / width, 2) + 0.1))
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.set_axis_off()
    left.imshow(image)
    right.imshow(paint(image, labels, len(class_names)))
    palette = dict(zip(class_names, css_colors(len(class_names)), strict=True))
    right.legend(
        handles=[
            Patch(color=palette[name], label=literal(f"{name} {area:.1%}"))
            for name, area in scores[:MOST_NAMED]
        ],
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        fontsize=9,
        frameon=False,
    )
    figure.subplots_adjust(0.005, 0.01, 1 - 2.4 / (2 * each + 2.4), 0.99, 0.02)
    figure.savefig(path, format="png", dpi=100)

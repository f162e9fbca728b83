"""Pictures of segmentations: masks over images with a legend, and pages of them."""

import base64
import html
import io
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vt_flax.viz.figures import literal

# How much of a pixel is its class's colour.
OPACITY = 0.55
# Classes of a legend; those with the fewest pixels are left out.
MOST_NAMED = 24


def colours(count: int) -> np.ndarray:
    """Returns a colour for each class, (count, 3) from 0 to 1.

    Neighbors differ most: the hue goes on by the golden section, and lightness
    alternates.
    """
    number = np.arange(count)
    hue = number * 0.618034 % 1
    saturation = np.where(number % 3 == 2, 0.55, 0.85)
    value = np.where(number % 2, 0.75, 1.0)
    return matplotlib.colors.hsv_to_rgb(np.stack([hue, saturation, value], -1))


def paint(image: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Lays a mask over an image.

    Args:
      image: (H, W, 3), uint8.
      labels: (H, W), class indices; those that are no class leave the image as it is.
      count: number of classes.

    Returns:
      (H, W, 3), from 0 to 1.
    """
    picture = image / 255
    known = labels < count
    over = colours(count)[np.where(known, labels, 0)]
    mixed = (1 - OPACITY) * picture + OPACITY * over
    return np.where(known[..., None], mixed, picture)


def legend(
    labels: np.ndarray, class_names: Sequence[str], counts: np.ndarray | None = None
) -> list[Patch]:
    """Returns a legend of the classes in a mask, with their shares, largest first.

    Args:
      labels: (H, W), class indices.
      class_names: their names.
      counts: pixels of each class, where `labels` are a smaller mask than was counted.
    """
    pixels = labels.size if counts is None else counts.sum()
    if counts is None:
        known = labels[labels < len(class_names)]
        counts = np.bincount(known, minlength=len(class_names))
    palette = colours(len(class_names))
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
    return [
        Patch(
            color=palette[i],
            label=literal(f"{class_names[i]} {counts[i] / pixels:.1%}"),
        )
        for i in order[:MOST_NAMED]
    ]


def draw_mask(
    path: pathlib.Path,
    image: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    counts: np.ndarray | None = None,
) -> None:
    """Writes an image beside its predicted mask, with a legend, as PNG.

    Args:
      path: file to write.
      image: (H, W, 3), uint8.
      labels: (H, W), class indices.
      class_names: their names.
      counts: see `legend`.
    """
    height, width = labels.shape
    each = 4.8
    figure = Figure(figsize=(2 * each + 2.4, each * min(height / width, 2) + 0.1))
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.set_axis_off()
    left.imshow(image)
    right.imshow(paint(image, labels, len(class_names)))
    right.legend(
        handles=legend(labels, class_names, counts),
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        fontsize=7,
        frameon=False,
    )
    figure.subplots_adjust(0.005, 0.01, 1 - 2.4 / (2 * each + 2.4), 0.99, 0.02)
    figure.savefig(path, format="png", dpi=100)


def write_page(
    path: pathlib.Path,
    title: str,
    sections: Sequence[tuple[str, Sequence[tuple[str, Sequence[np.ndarray]]]]],
    class_names: Sequence[str],
) -> None:
    """Writes one HTML file with pictures inside it.

    Args:
      path: file to write.
      title: of the page.
      sections: heading, and rows of a caption and pictures (H, W, 3), from 0 to 1.
      class_names: of the legend.
    """
    palette = (colours(len(class_names)) * 255).round().astype(int)
    names = " ".join(
        f'<span><i style="background:rgb({r},{g},{b})"></i>{html.escape(name)}</span>'
        for (r, g, b), name in zip(palette.tolist(), class_names, strict=True)
    )
    body = []
    for heading, rows in sections:
        body.append(f"<h2>{html.escape(heading)}</h2>")
        for caption, pictures in rows:
            images = "".join(f'<img alt="" src="{_inline(p)}">' for p in pictures)
            body.append(f"<p>{html.escape(caption)}</p><div>{images}</div>")
    path.write_text(
        "<!doctype html><meta charset=utf-8>"
        f"<title>{html.escape(title)}</title><style>"
        "body{font:14px sans-serif;margin:2em;max-width:75em}"
        "img{max-width:32%;margin-right:1%}span{margin-right:1em}"
        "i{display:inline-block;width:1em;height:1em;margin-right:.3em}</style>"
        f"<h1>{html.escape(title)}</h1><p>{names}</p>{''.join(body)}\n",
        encoding="utf-8",
    )


def _inline(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, np.clip(picture, 0, 1), format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

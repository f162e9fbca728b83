"""A map of coefficients laid over an image, in colours."""

import math

import matplotlib
import numpy as np
from PIL import Image

COLOURS = "inferno"


def overlay(
    image: np.ndarray,
    map_: np.ndarray,
    size: tuple[int, int],
    part: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """Lays a map over the grey version of an image.

    Args:
      image: (H, W, 3), uint8.
      map_: (h, w), whose cells on the image have the colours from the least to the
        greatest.
      size: width and height of the result.
      part: share of the map's height and width that lies on the image.

    Returns:
      (height, width, 3), uint8.
    """
    cells = on_image(map_, part)
    low, high = cells.min(), cells.max()
    box = (0, 0, map_.shape[1] * part[1], map_.shape[0] * part[0])
    heat = Image.fromarray(map_.astype(np.float32)).resize(
        size, Image.Resampling.BILINEAR, box
    )
    scaled = np.clip((np.asarray(heat) - low) / max(high - low, 1e-12), 0, 1)
    colours = matplotlib.colormaps[COLOURS](scaled)[..., :3]
    grey = np.asarray(resized(image, size)).mean(axis=-1, keepdims=True) / 255
    return np.round(255 * np.clip(0.35 * grey + 0.75 * colours, 0, 1)).astype(np.uint8)


def on_image(map_: np.ndarray, part: tuple[float, float]) -> np.ndarray:
    """Returns the cells of a map that lie on the image, also those that do in part."""
    # Of 3.0000000000000004 cells the fourth is none.
    rows, columns = (
        math.ceil(round(n * share, 6))
        for n, share in zip(map_.shape, part, strict=True)
    )
    return map_[:rows, :columns]


def share_on_image(map_: np.ndarray, part: tuple[float, float]) -> float:
    """Returns the sum of a map's cells, each by how much of it lies on the image."""
    rows, columns = (
        np.clip(n * share - np.arange(n), 0, 1)
        for n, share in zip(map_.shape, part, strict=True)
    )
    return float(rows @ map_.astype(np.float64) @ columns)


def resized(image: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Resizes an image; of one that grows the pixels are to be seen."""
    grows = size[0] >= image.shape[1]
    kind = Image.Resampling.NEAREST if grows else Image.Resampling.BILINEAR
    return Image.fromarray(image).resize(size, kind)

"""An attention map over an image, in colors."""

import math

import matplotlib
import numpy as np
from PIL import Image

COLORMAP = "inferno"


def overlay(
    image: np.ndarray,
    map_: np.ndarray,
    size: tuple[int, int],
    coverage: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """Lays an attention map over the grayscale version of an image.

    Args:
      image: (H, W, 3), uint8.
      map_: (h, w); colors range from its smallest to its largest value on the image.
      size: width and height of the result.
      coverage: fraction of the map's height and width that is on the image.

    Returns:
      (height, width, 3), uint8.
    """
    cells = covered_cells(map_, coverage)
    low, high = cells.min(), cells.max()
    box = (0, 0, map_.shape[1] * coverage[1], map_.shape[0] * coverage[0])
    heat = Image.fromarray(map_.astype(np.float32)).resize(
        size, Image.Resampling.BILINEAR, box
    )
    scaled = np.clip((np.asarray(heat) - low) / max(high - low, 1e-12), 0, 1)
    colors = matplotlib.colormaps[COLORMAP](scaled)[..., :3]
    gray = np.asarray(resized(image, size)).mean(axis=-1, keepdims=True) / 255
    return np.round(255 * np.clip(0.35 * gray + 0.75 * colors, 0, 1)).astype(np.uint8)


def covered_cells(map_: np.ndarray, coverage: tuple[float, float]) -> np.ndarray:
    """Returns the cells of a map that are on the image at least in part."""
    # 3.0000000000000004 cells are three.
    rows, columns = (
        math.ceil(round(n * fraction, 6))
        for n, fraction in zip(map_.shape, coverage, strict=True)
    )
    return map_[:rows, :columns]


def resized(image: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Resizes an image, by the nearest pixel if it grows."""
    grows = size[0] >= image.shape[1]
    kind = Image.Resampling.NEAREST if grows else Image.Resampling.BILINEAR
    return Image.fromarray(image).resize(size, kind)


def shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    """Returns an image (H, W, 3), uint8, with no side longer than `side` pixels."""
    image = Image.fromarray(pixels)
    if max(image.size) <= side:
        return pixels
    scale = side / max(image.size)
    size = tuple(max(1, round(length * scale)) for length in image.size)
    # The gap lets Pillow take whole blocks of a very large image first.
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0))

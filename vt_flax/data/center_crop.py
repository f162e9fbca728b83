"""Center crop of evaluation and of `predict`, by Pillow.

The short side is resized to `resize` pixels, bilinear and antialiased, and the central
`size` x `size` pixels are cut out, as where pretrained weights were evaluated.
`augment.resampling.center_crop` does the same in JAX, for exported programs.
"""

from typing import Any

import numpy as np
from PIL import Image


def resized_side(side: Any, short: Any, resize: int) -> Any:
    """Returns the length of a side when the short side is resized to `resize`.

    It is rounded, halves to the even number. All are integers, or arrays of them.
    """
    whole, rest = divmod(side * resize, short)
    up = (2 * rest > short) | ((2 * rest == short) & (whole % 2 == 1))
    return whole + up


def center_crop(image: np.ndarray, size: int, resize: int) -> np.ndarray:
    """Resizes an image and cuts out its center.

    Args:
      image: (height, width, 3), uint8.
      size: side of the result in pixels.
      resize: short side in pixels before the cut, at least `size`.

    Returns:
      (size, size, 3), uint8.
    """
    short = min(image.shape[:2])
    resized = [resized_side(side, short, resize) for side in image.shape[:2]]
    top, left = ((side - size) // 2 for side in resized)
    if short == resize:
        return image[top : top + size, left : left + size]
    # What is cut off is not computed.
    down, across = (old / new for old, new in zip(image.shape, resized, strict=False))
    box = (
        left * across,
        top * down,
        min((left + size) * across, image.shape[1]),
        min((top + size) * down, image.shape[0]),
    )
    resampling = Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((size, size), resampling, box))

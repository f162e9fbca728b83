"""From encoded bytes to a uint8 image of the size that the network takes."""

import io
import math

import numpy as np
from PIL import Image

RESAMPLE = Image.Resampling.BILINEAR


def decode(encoded: bytes | np.ndarray) -> Image.Image:
    """Returns an RGB image from an encoded file, or from an array (H, W[, 1 or 3]).

    Raises:
      ValueError: if the bytes are no image, or a damaged one.
    """
    if isinstance(encoded, np.ndarray):
        array = encoded[..., 0] if encoded.shape[-1:] == (1,) else encoded
        return Image.fromarray(array).convert("RGB")
    try:
        image = Image.open(io.BytesIO(encoded))
        if image.mode.startswith("I;16"):
            # Pillow would clip the 16-bit levels at 255 instead of scaling them.
            return Image.fromarray(np.uint8(np.asarray(image) // 257)).convert("RGB")
        return image.convert("RGB")
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, struct.error and more.
        raise ValueError(str(error) or type(error).__name__) from error


def random_resized_box(
    width: int,
    height: int,
    min_area: float,
    generator: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draws a crop of random area and aspect ratio (Szegedy et al., 2014).

    Args:
      width: of the image, in pixels.
      height: of the image, in pixels.
      min_area: least share of the image's area; the most is 1.
      generator: source of randomness.

    Returns:
      (left, upper, right, lower) in pixels. After ten failed draws, the largest
      central crop with an aspect ratio between 3 / 4 and 4 / 3.
    """
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        area = width * height * generator.uniform(min_area, 1.0)
        ratio = math.exp(generator.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(generator.integers(0, width - w + 1))
            upper = int(generator.integers(0, height - h + 1))
            return left, upper, left + w, upper + h
    w = min(width, round(height * high))
    h = min(height, round(width / low))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def random_resized_crop(
    image: Image.Image, size: int, min_area: float, generator: np.random.Generator
) -> np.ndarray:
    """Returns a random crop brought to (size, size, 3), uint8."""
    box = random_resized_box(*image.size, min_area, generator)
    return np.asarray(image.resize((size, size), RESAMPLE, box=box))


def pad_and_crop(
    image: Image.Image, size: int, padding: int, generator: np.random.Generator
) -> np.ndarray:
    """Pads with black on each side and cuts (size, size, 3) at random, uint8.

    The usual augmentation of CIFAR (Lee et al., 2015). Images of other sizes are
    brought to `size` first.
    """
    if image.size != (size, size):
        image = Image.fromarray(centre_crop(image, size, size))
    array = np.pad(np.asarray(image), ((padding,) * 2, (padding,) * 2, (0, 0)))
    upper, left = generator.integers(0, 2 * padding + 1, 2)
    return array[upper : upper + size, left : left + size]


def centre_crop(image: Image.Image, size: int, resize: int) -> np.ndarray:
    """Brings the short side to `resize` and cuts the central (size, size, 3), uint8."""
    width, height = image.size
    scale = resize / min(width, height)
    if scale != 1.0:
        shape = max(resize, round(width * scale)), max(resize, round(height * scale))
        image = image.resize(shape, RESAMPLE)
    left, upper = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, upper, left + size, upper + size)))

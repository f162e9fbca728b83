"""Decodes and crops images in a TensorFlow graph: tensors in, tensors out."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from vt_flax.data import center_crop as central
from vt_flax.data.host import tensorflow
from vt_flax.data.orientation import (
    FIRST_TRANSPOSED,
    JPEG_START,
    PNG_START,
    UPRIGHT,
    upright,
)
from vt_flax.data.pillow_decoder import decode_with_pillow

# Least and most width over height of a random crop (Szegedy et al., 2014).
ASPECT_RATIOS = (3 / 4, 4 / 3)

JPEG_END = b"\xff\xd9"
CMYK_CHANNELS = 4

Tensor = Any
# See `train_crop`.
Crop = Callable[..., Tensor]


def train_crop(config: ConfigDict) -> Crop:
    """Returns `crop(encoded, seed=, orientation=)` as `data` configures training.

    It takes a file, a seed (2,) and an EXIF orientation, and returns an upright image
    (image_size, image_size, 3), uint8.
    """
    size = config.image_size
    if config.train_crop == "random_resized":
        return functools.partial(
            random_resized_crop, size=size, min_area=config.crop_min_area
        )
    if config.train_crop == "pad":
        return functools.partial(pad_and_crop, size=size, padding=config.crop_padding)
    return functools.partial(center_crop, size=size, resize=size)


def eval_crop(config: ConfigDict) -> Crop:
    """Returns the crop of evaluation, a function like that of `train_crop`."""
    size = config.image_size
    return functools.partial(center_crop, size=size, resize=config.eval_resize or size)


def random_resized_crop(
    encoded: Tensor,
    size: int,
    min_area: float,
    seed: Tensor,
    orientation: Tensor | int = UPRIGHT,
) -> Tensor:
    """Decodes a random box of an image and resizes it (Szegedy et al., 2014).

    Bilinear, without antialiasing, as is usual with TensorFlow; but a JPEG whose box is
    two times the size or more is decoded at a half, a quarter or an eighth, which is
    faster and does not alias. The box is drawn in the upright image.

    Args:
      encoded: a file, scalar string.
      size: side of the result in pixels.
      min_area: least fraction of the image's area; the most is 1.
      seed: (2,) integers that determine the box.
      orientation: EXIF orientation of the file, scalar.

    Returns:
      (size, size, 3), uint8.
    """
    tf = tensorflow()

    def from_jpeg() -> Tensor:
        stored = tf.io.extract_jpeg_shape(encoded)
        is_transposed = orientation >= FIRST_TRANSPOSED
        shape = tf.where(is_transposed, tf.gather(stored, [1, 0, 2]), stored)
        box = random_box(shape, min_area, seed)
        branch = tf.searchsorted([2, 4, 8], [tf.reduce_min(box[2:]) // size], "right")
        ratio = tf.bitwise.left_shift(1, branch[0])
        # In the coordinates of the reduced image.
        window = tf.maximum(box // ratio, [0, 0, 1, 1])

        def reduced(ratio: int) -> Callable[[], Tensor]:
            return lambda: tf.io.decode_and_crop_jpeg(encoded, window, 3, ratio=ratio)

        is_plain = (stored[2] != CMYK_CHANNELS) & (orientation == UPRIGHT)
        return tf.switch_case(
            tf.where(is_plain, branch[0], 4),
            [
                *map(reduced, (1, 2, 4, 8)),
                lambda: _in_python(_reduced, encoded, orientation, window, ratio),
            ],
        )

    def from_other() -> Tensor:
        image = decode(encoded, orientation)
        top, left, height, width = tf.unstack(
            random_box(tf.shape(image), min_area, seed)
        )
        return image[top : top + height, left : left + width]

    image = tf.cond(is_whole_jpeg(encoded), from_jpeg, from_other)
    # From float: twice as fast as from uint8, with the same result.
    image = tf.raw_ops.ResizeBilinear(
        images=tf.cast(image, tf.float32)[None],
        size=[size, size],
        half_pixel_centers=True,
    )
    return tf.ensure_shape(to_uint8(image[0]), (size, size, 3))


def random_box(shape: Tensor, min_area: float, seed: Tensor) -> Tensor:
    """Draws a box of random area and aspect ratio by TensorFlow's sampler.

    The ratio is uniform, then the height over what the least area and the image allow.

    Args:
      shape: (3,), height, width and channels of the image.
      min_area: least fraction of the image's area; the most is 1.
      seed: (2,) integers.

    Returns:
      (4,), int32: top, left, height, width; the whole image if it is so long that a
      hundred draws fail.
    """
    tf = tensorflow()
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros((1, 0, 4)),
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=ASPECT_RATIOS,
        area_range=(min_area, 1.0),
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], extent[:2]], 0)


def pad_and_crop(
    encoded: Tensor,
    size: int,
    padding: int,
    seed: Tensor,
    orientation: Tensor | int = UPRIGHT,
) -> Tensor:
    """Pads with black on each side and cuts (size, size, 3) at random, uint8.

    The usual augmentation of CIFAR (Lee et al., 2015). Images of other sizes are
    resized to `size` first, by `center_crop`.
    """
    tf = tensorflow()
    image = center_crop(encoded, size, size, orientation=orientation)
    image = tf.pad(image, [[padding, padding], [padding, padding], [0, 0]])
    at = tf.random.stateless_uniform((2,), seed, 0, 2 * padding + 1, tf.int32)
    return tf.slice(image, tf.concat([at, [0]], 0), (size, size, 3))


def center_crop(
    encoded: Tensor,
    size: int,
    resize: int,
    seed: Tensor | None = None,
    orientation: Tensor | int = UPRIGHT,
) -> Tensor:
    """Decodes an image and crops it to (size, size, 3), uint8; see `data.center_crop`.

    Pillow resizes, outside Python's lock. Images that need no resizing, as CIFAR's, do
    not enter Python. Nothing is drawn: `seed` is ignored.
    """
    del seed
    tf = tensorflow()
    image = decode(encoded, orientation)
    shape = tf.shape(image)[:2]
    start = tf.concat([(shape - size) // 2, [0]], 0)
    crop = tf.cond(
        tf.reduce_min(shape) == resize,
        lambda: tf.slice(image, start, (size, size, 3)),
        lambda: _in_python(
            lambda image: central.center_crop(image, size, resize), image
        ),
    )
    return tf.ensure_shape(crop, (size, size, 3))


def is_whole_jpeg(encoded: Tensor) -> Tensor:
    """Returns whether a file begins and ends as a JPEG.

    If it is cut off, decoding a window above the cut would not raise an error, so such
    a file is decoded in full.
    """
    tf = tensorflow()
    start = tf.strings.substr(encoded, 0, len(JPEG_START))
    # A position before the start would raise an error.
    length = tf.strings.length(encoded)
    end = tf.strings.substr(encoded, tf.maximum(length - 2, 0), 2)
    return (start == JPEG_START) & (end == JPEG_END)


def decode(encoded: Tensor, orientation: Tensor | int = UPRIGHT) -> Tensor:
    """Decodes a whole file to (height, width, 3), uint8, and turns it upright.

    The result equals `decode_with_pillow`'s, which decodes what is rare: turned images;
    formats other than JPEG and PNG; and JPEGs in CMYK, which TensorFlow rounds
    differently, and inverts without Adobe's marker.

    Raises:
      tf.errors.OpError, ValueError: if the bytes are no image, or a damaged one.
    """
    tf = tensorflow()

    def by_pillow() -> Tensor:
        return _in_python(_pixels, encoded, orientation)

    def from_jpeg() -> Tensor:
        return tf.cond(
            tf.io.extract_jpeg_shape(encoded)[2] == CMYK_CHANNELS,
            by_pillow,
            # Pillow's transform; the default is a faster one, up to 15 levels off.
            lambda: tf.io.decode_jpeg(encoded, 3, dct_method="INTEGER_ACCURATE"),
        )

    start = tf.strings.substr(encoded, 0, len(PNG_START))
    image = tf.case(
        [
            (tf.not_equal(orientation, UPRIGHT), by_pillow),
            (tf.strings.substr(start, 0, len(JPEG_START)) == JPEG_START, from_jpeg),
            (start == PNG_START, lambda: tf.io.decode_png(encoded, 3)),
        ],
        by_pillow,
    )
    return tf.ensure_shape(image, (None, None, 3))


def _in_python(function: Callable[..., np.ndarray], *arguments: Tensor) -> Tensor:
    """Calls a function that returns an image (height, width, 3), uint8, of arrays."""
    tf = tensorflow()
    image = tf.numpy_function(function, arguments, tf.uint8)
    return tf.ensure_shape(image, (None, None, 3))


def _pixels(encoded: Any, orientation: Any) -> np.ndarray:
    """Decodes an upright image with Pillow."""
    # Outside a graph TensorFlow passes an array of no dimensions.
    image = decode_with_pillow(np.asarray(encoded, object).item())
    return np.ascontiguousarray(upright(np.asarray(image), int(orientation)))


def _reduced(encoded: Any, orientation: Any, window: Any, ratio: Any) -> np.ndarray:
    """Decodes a window of the upright image averaged down by a ratio."""
    image = Image.fromarray(_pixels(encoded, orientation))
    top, left, height, width = map(int, window * ratio)
    right, lower = min(left + width, image.width), min(top + height, image.height)
    return np.asarray(image.reduce(int(ratio), (left, top, right, lower)))


def to_uint8(image: Tensor) -> Tensor:
    """Rounds levels that are not negative, and at most 255."""
    tf = tensorflow()
    return tf.cast(image + 0.5, tf.uint8)

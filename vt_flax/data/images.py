"""From an encoded file to a uint8 image of the size that the network takes.

What is here runs inside tf.data: the functions take and return TensorFlow tensors, and
draw from no state but a seed, two integers for each example.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from vt_flax.data.host import tensorflow
from vt_flax.errors import first_line

TRAIN_CROPS = ("random_resized", "pad", "centre")
# Of a random crop: least and most width over height (Szegedy et al., 2014).
ASPECT_RATIOS = (3 / 4, 4 / 3)

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
PNG_START = b"\x89PNG"

Tensor = Any
Crop = Callable[[Tensor, Tensor], Tensor]


def train_crop(config: ConfigDict) -> Crop:
    """Returns `crop(encoded, seed)` as the section `data` wants it in training.

    The function takes an encoded file and a seed (2,), and returns an image
    (image_size, image_size, 3), uint8.
    """
    size = config.image_size
    if config.train_crop == "random_resized":
        return lambda encoded, seed: random_resized_crop(
            encoded, size, config.crop_min_area, seed
        )
    if config.train_crop == "pad":
        return lambda encoded, seed: pad_and_crop(
            encoded, size, config.crop_padding, seed
        )
    return lambda encoded, seed: centre_crop(encoded, size, size)


def eval_crop(config: ConfigDict) -> Crop:
    """Returns `crop(encoded, seed)` as the section `data` wants it in evaluation."""
    crop = eval_crop_pixels(config)
    return lambda encoded, seed: crop(decode(encoded))


def eval_crop_pixels(config: ConfigDict) -> Callable[[Tensor], Tensor]:
    """Returns what `eval_crop` does with an image once it is decoded.

    The function takes an image (height, width, 3) and returns one (image_size,
    image_size, 3), both uint8.
    """
    size = config.image_size
    return lambda image: centre_crop_pixels(image, size, config.eval_resize or size)


def random_resized_crop(
    encoded: Tensor, size: int, min_area: float, seed: Tensor
) -> Tensor:
    """Decodes a random part of an image and brings it to `size` (Szegedy et al., 2014).

    Bilinear, without antialiasing, as is usual where training is fed by TensorFlow; but
    of a JPEG whose part is two times the size or more, the decoder makes a half, a
    quarter or an eighth, which is faster and does not alias.

    Args:
      encoded: a file, scalar string.
      size: side of the result in pixels.
      min_area: least share of the image's area; the most is 1.
      seed: (2,) integers that decide the part.

    Returns:
      (size, size, 3), uint8.
    """
    tf = tensorflow()

    def from_jpeg() -> Tensor:
        box = random_box(tf.io.extract_jpeg_shape(encoded), min_area, seed)
        side = tf.minimum(box[2], box[3])

        def part(ratio: int) -> Callable[[], Tensor]:
            # In the coordinates of the image that the decoder makes.
            return lambda: tf.io.decode_and_crop_jpeg(
                encoded, tf.maximum(box // ratio, [0, 0, 1, 1]), 3, ratio=ratio
            )

        def reduced() -> Tensor:
            times = tf.minimum(side // size, 8)
            branch = tf.cast(times >= 4, tf.int32) + tf.cast(times >= 8, tf.int32)
            return tf.switch_case(branch, [part(2), part(4), part(8)])

        return tf.cond(side >= 2 * size, reduced, part(1))

    def from_other() -> Tensor:
        image = decode(encoded)
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
    """Draws a part of random area and aspect ratio.

    TensorFlow's sampler: the ratio is uniform, then the height is uniform over what the
    least area and the image allow.

    Args:
      shape: (3,), height, width and channels of the image.
      min_area: least share of the image's area; the most is 1.
      seed: (2,) integers.

    Returns:
      (4,), int32: top, left, height, width. In an image so long that a hundred draws
      fail, the largest central part with an allowed ratio.
    """
    tf = tensorflow()
    low, high = ASPECT_RATIOS
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
    # Where it gives up it returns the whole image, of any ratio.
    extent = extent[:2]
    bound = tf.cast(tf.math.ceil(tf.cast(extent[::-1], tf.float32) * high), tf.int32)
    kept = tf.minimum(extent, bound)
    return tf.concat([begin[:2] + (extent - kept) // 2, kept], 0)


def pad_and_crop(encoded: Tensor, size: int, padding: int, seed: Tensor) -> Tensor:
    """Pads with black on each side and cuts (size, size, 3) at random, uint8.

    The usual augmentation of CIFAR (Lee et al., 2015). Images of other sizes are
    brought to `size` first, by `centre_crop`.
    """
    tf = tensorflow()
    image = centre_crop(encoded, size, size)
    image = tf.pad(image, [[padding, padding], [padding, padding], [0, 0]])
    at = tf.random.stateless_uniform((2,), seed, 0, 2 * padding + 1, tf.int32)
    return tf.slice(image, tf.concat([at, [0]], 0), (size, size, 3))


def centre_crop(encoded: Tensor, size: int, resize: int) -> Tensor:
    """Decodes an image, and does what `centre_crop_pixels` does."""
    return centre_crop_pixels(decode(encoded), size, resize)


def centre_crop_pixels(image: Tensor, size: int, resize: int) -> Tensor:
    """Brings the short side to `resize` and cuts the central (size, size, 3), uint8.

    Bilinear with antialiasing, as Pillow does it: weights from elsewhere were measured
    on such images.

    Args:
      image: (height, width, 3), uint8.
      size: side of the result in pixels.
      resize: of the short side in pixels, at least `size`.
    """
    tf = tensorflow()
    shape = tf.shape(image)[:2]
    short = tf.reduce_min(shape)
    scaled = tf.round(tf.cast(shape * resize, tf.float64) / tf.cast(short, tf.float64))
    target = tf.maximum(tf.cast(scaled, tf.int32), resize)
    at = (target - size) // 2

    def cut() -> Tensor:
        return tf.slice(image, tf.concat([at, [0]], 0), (size, size, 3))

    def resized() -> Tensor:
        # One operation resizes and cuts: what is cut off is not computed.
        result = tf.raw_ops.ScaleAndTranslate(
            images=image[None],
            size=(size, size),
            scale=tf.cast(target / shape, tf.float32),
            translation=-tf.cast(at, tf.float32),
            kernel_type="triangle",
            antialias=True,
        )
        return to_uint8(result[0])

    crop = tf.cond(tf.equal(short, resize), cut, resized)
    return tf.ensure_shape(crop, (size, size, 3))


def is_whole_jpeg(encoded: Tensor) -> Tensor:
    """Tells whether a file begins and ends as a JPEG; ImageNet has a PNG among them.

    A decoder that is asked for a part would not notice that a file is cut off below it.
    One that does not end as it should is decoded in full.
    """
    tf = tensorflow()
    start = tf.strings.substr(encoded, 0, len(JPEG_START))
    # A position before the start would be an error, and this one is none yet.
    length = tf.strings.length(encoded)
    end = tf.strings.substr(encoded, tf.maximum(length - 2, 0), 2)
    return (start == JPEG_START) & (end == JPEG_END)


def decode(encoded: Tensor) -> Tensor:
    """Decodes a whole file to (height, width, 3), uint8: grey is repeated, CMYK mixed.

    Raises:
      tf.errors.OpError: if the bytes are no image, or a damaged one.
    """
    tf = tensorflow()

    def other() -> Tensor:
        # Rare enough for Pillow, which knows many kinds but holds Python's lock.
        image = tf.numpy_function(_decode_with_pillow, [encoded], tf.uint8)
        with tf.control_dependencies([tf.debugging.assert_positive(tf.size(image))]):
            return tf.identity(image)

    start = tf.strings.substr(encoded, 0, 4)
    image = tf.cond(
        tf.strings.substr(start, 0, len(JPEG_START)) == JPEG_START,
        # Pillow's transform; the default is a faster one, up to 15 levels off.
        lambda: tf.io.decode_jpeg(encoded, 3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.cond(
            start == PNG_START, lambda: tf.io.decode_png(encoded, 3), other
        ),
    )
    return tf.ensure_shape(image, (None, None, 3))


def decode_with_pillow(encoded: bytes) -> Image.Image:
    """Decodes a file to an RGB image.

    Raises:
      ValueError: if the bytes are no image, or a damaged one; says why.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
        # Of some files a palette is found only on loading.
        image.load()
        return to_rgb(image)[0]
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, struct.error and more.
        raise ValueError(str(error) or type(error).__name__) from error


def to_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    """Brings an image of any mode to 8 bits a channel, red, green and blue.

    Pillow would clip at 255 what has more than 8 bits.

    Returns:
      the image, and in a few words what was done to its levels, if anything was.

    Raises:
      ValueError: if its levels are no finite numbers.
    """
    png = image.format == "PNG"
    # Before its version 11, Pillow has PNGs of 16 bits in 32.
    if image.mode.startswith("I;16") or (png and image.mode == "I"):
        levels = np.asarray(image)
        # As TensorFlow reads them: libpng drops the lower byte.
        levels = levels >> 8 if png else levels // 257
        grey = Image.fromarray(levels.astype(np.uint8))
        return grey.convert("RGB"), "16 bits brought to 8: 65,535 is white"
    if image.mode in ("I", "F"):
        levels, note = _stretched(image)
        return Image.fromarray(levels).convert("RGB"), note
    # A copy of a large image takes half a gigabyte.
    return image if image.mode == "RGB" else image.convert("RGB"), ""


def _stretched(image: Image.Image) -> tuple[np.ndarray, str]:
    """Brings 32 bits a pixel, of which no format says the white, to 8."""
    low, high = image.getextrema()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it has levels that are no finite numbers")
    levels = np.asarray(image, np.float32)
    if low >= 0 and 1 < high <= 255:
        return np.round(levels).astype(np.uint8), ""
    levels = np.round((levels - low) / max(high - low, 1e-30) * 255).astype(np.uint8)
    return levels, f"32 bits brought to 8: {low:g} is black, {high:g} is white"


def why_unreadable(encoded: bytes, error: Exception) -> str:
    """Says in a few words why a file could not be decoded.

    Args:
      encoded: the file.
      error: what TensorFlow said of it, which is long.
    """
    if not encoded.strip(b"\0"):
        return f"{len(encoded)} zero bytes" if encoded else "it is empty"
    try:
        decode_with_pillow(encoded)
    except ValueError as reason:
        # Pillow names an object in memory where it means the file.
        return str(reason).replace(" <_io.BytesIO object", "").split(" at 0x")[0]
    return first_line(error)[:200]


def _decode_with_pillow(encoded: bytes | np.ndarray) -> np.ndarray:
    """Decodes a file; to nothing if it is unreadable, as TensorFlow logs exceptions."""
    try:
        # Outside a graph TensorFlow passes an array of no dimensions.
        return np.asarray(decode_with_pillow(np.asarray(encoded, object).item()))
    except ValueError:
        return np.zeros((0, 0, 3), np.uint8)


def to_uint8(image: Tensor) -> Tensor:
    """Rounds levels that are not negative, and at most 255."""
    tf = tensorflow()
    return tf.cast(image + 0.5, tf.uint8)

"""From an encoded file to a uint8 image of the size that the network takes.

What is here runs inside tf.data: the functions take and return TensorFlow tensors, and
draw from no state but a seed, two integers for each example.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vt_flax.data.host import tensorflow
from vt_flax.data.orientation import (
    JPEG_START,
    PNG_START,
    UPRIGHT,
    exchanged,
    stored_box,
    upright,
)
from vt_flax.data.pillow_decoder import decode_with_pillow
from vt_flax.errors import first_line

# Of a random crop: least and most width over height (Szegedy et al., 2014).
ASPECT_RATIOS = (3 / 4, 4 / 3)

JPEG_END = b"\xff\xd9"
CMYK_CHANNELS = 4

Tensor = Any
Crop = Callable[[Tensor, Tensor, Tensor], Tensor]


def train_crop(config: ConfigDict) -> Crop:
    """Returns `crop(encoded, orientation, seed)` as `data` wants it in training.

    The function takes an encoded file, its orientation (1: as it is stored) and a seed
    (2,), and returns an upright image (image_size, image_size, 3), uint8.
    """
    size = config.image_size
    if config.train_crop == "random_resized":
        return lambda encoded, orientation, seed: random_resized_crop(
            encoded, size, config.crop_min_area, seed, orientation
        )
    if config.train_crop == "pad":
        return lambda encoded, orientation, seed: pad_and_crop(
            encoded, size, config.crop_padding, seed, orientation
        )
    return lambda encoded, orientation, seed: centre_crop(
        encoded, size, size, orientation
    )


def eval_crop(config: ConfigDict) -> Crop:
    """Returns `crop(encoded, orientation, seed)` as `data` wants it in evaluation."""
    crop = eval_crop_pixels(config)
    return lambda encoded, orientation, seed: crop(decode_upright(encoded, orientation))


def eval_crop_pixels(config: ConfigDict) -> Callable[[Tensor], Tensor]:
    """Returns what `eval_crop` does with an image once it is decoded.

    The function takes an upright image (height, width, 3) and returns one (image_size,
    image_size, 3), both uint8.
    """
    size = config.image_size
    return lambda image: centre_crop_pixels(image, size, config.eval_resize or size)


def random_resized_crop(
    encoded: Tensor,
    size: int,
    min_area: float,
    seed: Tensor,
    orientation: Tensor | int = UPRIGHT,
) -> Tensor:
    """Decodes a random part of an image and brings it to `size` (Szegedy et al., 2014).

    Bilinear, without antialiasing, as is usual where training is fed by TensorFlow; but
    of a JPEG whose part is two times the size or more, the decoder makes a half, a
    quarter or an eighth, which is faster and does not alias.

    The part is drawn in the upright image: it does not depend on how that is stored.

    Args:
      encoded: a file, scalar string.
      size: side of the result in pixels.
      min_area: least share of the image's area; the most is 1.
      seed: (2,) integers that decide the part.
      orientation: of the file, scalar.

    Returns:
      (size, size, 3), uint8.
    """
    tf = tensorflow()
    image = _by_orientation(
        lambda encoded, orientation, seed: _random_part(
            encoded, size, min_area, seed, orientation
        ),
        encoded,
        orientation,
        seed,
    )
    # From float: twice as fast as from uint8, with the same result.
    image = tf.raw_ops.ResizeBilinear(
        images=tf.cast(image, tf.float32)[None],
        size=[size, size],
        half_pixel_centers=True,
    )
    return tf.ensure_shape(to_uint8(image[0]), (size, size, 3))


def _random_part(
    encoded: Tensor, size: int, min_area: float, seed: Tensor, orientation: int
) -> Tensor:
    """Decodes the part that `random_resized_crop` resizes, as it is stored."""
    tf = tensorflow()

    def drawn(stored: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a part of the upright image, and that image's shape."""
        shape = exchanged(stored, orientation)
        return random_box(shape, min_area, seed), shape

    def cut(image: Tensor, window: Tensor) -> Tensor:
        top, left, height, width = tf.unstack(window)
        return image[top : top + height, left : left + width]

    def from_jpeg() -> Tensor:
        stored = tf.io.extract_jpeg_shape(encoded)
        box, shape = drawn(stored)
        is_cmyk = stored[2] == CMYK_CHANNELS
        times = tf.where(is_cmyk, 0, tf.minimum(box[2], box[3]) // size)
        branch = tf.reduce_sum(tf.cast(times >= [2, 4, 8], tf.int32))
        # In the coordinates of the image that the decoder makes. Once for all branches:
        # operations cost time also where they are in a branch that is not taken.
        ratio = tf.bitwise.left_shift(1, branch)
        reduced = tf.maximum(box // ratio, [0, 0, 1, 1])
        window = stored_box(reduced, -(-shape // ratio), orientation)

        def part(ratio: int) -> Callable[[], Tensor]:
            return lambda: tf.io.decode_and_crop_jpeg(encoded, window, 3, ratio=ratio)

        return tf.switch_case(
            tf.where(is_cmyk, 4, branch),
            [*map(part, (1, 2, 4, 8)), lambda: cut(_with_pillow(encoded), window)],
        )

    def from_other() -> Tensor:
        image = decode(encoded)
        return cut(image, stored_box(*drawn(tf.shape(image)), orientation))

    return tf.cond(is_whole_jpeg(encoded), from_jpeg, from_other)


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


def pad_and_crop(
    encoded: Tensor,
    size: int,
    padding: int,
    seed: Tensor,
    orientation: Tensor | int = UPRIGHT,
) -> Tensor:
    """Pads with black on each side and cuts (size, size, 3) at random, uint8.

    The usual augmentation of CIFAR (Lee et al., 2015). Images of other sizes are
    brought to `size` first, by `centre_crop`.
    """
    tf = tensorflow()
    image = centre_crop(encoded, size, size, orientation)
    image = tf.pad(image, [[padding, padding], [padding, padding], [0, 0]])
    at = tf.random.stateless_uniform((2,), seed, 0, 2 * padding + 1, tf.int32)
    return tf.slice(image, tf.concat([at, [0]], 0), (size, size, 3))


def centre_crop(
    encoded: Tensor, size: int, resize: int, orientation: Tensor | int = UPRIGHT
) -> Tensor:
    """Decodes an image, and does what `centre_crop_pixels` does."""
    return centre_crop_pixels(decode_upright(encoded, orientation), size, resize)


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
    """Decodes a whole file to (height, width, 3), uint8, as it is stored.

    The result equals `decode_with_pillow`'s. TensorFlow decodes JPEG and PNG. Pillow,
    which knows many kinds but holds Python's lock, has the others, which are rare; and
    JPEGs in CMYK, of which TensorFlow rounds otherwise, and inverts those without
    Adobe's marker.

    Raises:
      tf.errors.OpError: if the bytes are no image, or a damaged one.
    """
    tf = tensorflow()

    def from_jpeg() -> Tensor:
        # Pillow's transform; the default is a faster one, up to 15 levels off.
        return tf.io.decode_jpeg(encoded, 3, dct_method="INTEGER_ACCURATE")

    start = tf.strings.substr(encoded, 0, len(PNG_START))
    image = tf.cond(
        tf.strings.substr(start, 0, len(JPEG_START)) == JPEG_START,
        lambda: tf.cond(
            tf.io.extract_jpeg_shape(encoded)[2] == CMYK_CHANNELS,
            lambda: _with_pillow(encoded),
            from_jpeg,
        ),
        lambda: tf.cond(
            start == PNG_START,
            lambda: tf.io.decode_png(encoded, 3),
            lambda: _with_pillow(encoded),
        ),
    )
    return tf.ensure_shape(image, (None, None, 3))


def decode_upright(encoded: Tensor, orientation: Tensor | int) -> Tensor:
    """Decodes a whole file and turns it upright; see `decode`."""
    return _by_orientation(lambda encoded, _: decode(encoded), encoded, orientation)


def _by_orientation(
    decode: Callable[..., Tensor],
    encoded: Tensor,
    orientation: Tensor | int,
    *arguments: Tensor,
) -> Tensor:
    """Decodes what is upright in TensorFlow's graph, and in Python what is not.

    Most images are upright. Operations cost time also where they are in a branch that
    is not taken: the dozens that turn an image would take a twentieth of its time.

    Args:
      decode: takes the file, the orientation as an int, and the further arguments, and
        returns the image, or a part of it, as it is stored.
      encoded: a file, scalar string.
      orientation: of the file, scalar.
      *arguments: further arguments.

    Returns:
      (height, width, 3), uint8, upright.
    """
    tf = tensorflow()

    def turned(encoded: Any, orientation: Any, *arguments: Any) -> np.ndarray:
        stored = decode(tf.constant(_as_bytes(encoded)), int(orientation), *arguments)
        return np.ascontiguousarray(upright(stored.numpy(), int(orientation)))

    return tf.cond(
        tf.equal(orientation, UPRIGHT),
        lambda: decode(encoded, UPRIGHT, *arguments),
        lambda: _in_python(turned, encoded, orientation, *arguments),
    )


def _with_pillow(encoded: Tensor) -> Tensor:
    """Decodes a whole file with Pillow; see `decode`."""
    return _in_python(
        lambda encoded: np.asarray(decode_with_pillow(_as_bytes(encoded))), encoded
    )


def _in_python(decode: Callable[..., np.ndarray], *arguments: Tensor) -> Tensor:
    """Decodes an image outside TensorFlow's graph, under Python's lock."""
    tf = tensorflow()

    def decoded(*arguments: Any) -> np.ndarray:
        try:
            return decode(*arguments)
        except (ValueError, tf.errors.OpError):
            # No exception, which TensorFlow would log.
            return np.zeros((0, 0, 3), np.uint8)

    image = tf.numpy_function(decoded, arguments, tf.uint8)
    with tf.control_dependencies([tf.debugging.assert_positive(tf.size(image))]):
        return tf.ensure_shape(image, (None, None, 3))


def _as_bytes(encoded: bytes | np.ndarray) -> bytes:
    """Returns a file; outside a graph TensorFlow passes an array of no dimensions."""
    return np.asarray(encoded, object).item()


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


def to_uint8(image: Tensor) -> Tensor:
    """Rounds levels that are not negative, and at most 255."""
    tf = tensorflow()
    return tf.cast(image + 0.5, tf.uint8)

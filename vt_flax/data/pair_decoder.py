"""What the host makes of an image and its mask: both in a canvas of a fixed size."""

from collections.abc import Sequence

import numpy as np

from vt_flax.data import images
from vt_flax.data.decoders import Decoder, Tensor
from vt_flax.data.host import tensorflow
from vt_flax.data.masks import (
    GRAY_8_BITS,
    GRAY_PLACE,
    IGNORE,
    NO_CLASS,
    decode_mask,
    values_in,
)
from vt_flax.data.orientation import PNG_START
from vt_flax.data.segmentation_sources import TFDSPairs
from vt_flax.data.source import Example
from vt_flax.errors import UserError, first_line


class PairDecoder(Decoder):
    """An image and its mask in the upper left corner of a canvas.

    Makes `image` (H, W, 3) uint8, black beyond the example; `label` (H, W) uint8, class
    indices, IGNORE where there is none and beyond the example; and `size` (2,) int32,
    height and width of the example in the canvas.

    Args:
      source: the split.
      canvas: H and W in pixels.
      shrink: whether larger examples are brought to the canvas, the image antialiased,
        of the mask the nearest pixels; else they are refused.
    """

    def __init__(self, source: TFDSPairs, canvas: Sequence[int], *, shrink: bool):
        self._source, self._canvas, self._shrink = source, tuple(canvas), shrink
        self.fields = {
            "image": ((*self._canvas, 3), np.uint8),
            "label": (self._canvas, np.uint8),
            "size": ((2,), np.int32),
        }

    def decode(
        self, file: Tensor, label: Tensor, orientation: Tensor, seed: Tensor
    ) -> dict[str, Tensor]:
        """Decodes inside tf.data; see `Decoder`.

        Nothing is drawn, and nothing turned: masks were drawn on the stored images.
        """
        tf = tensorflow()
        del orientation, seed
        image = images.decode(file)
        # TensorFlow would bring anything else to 8 bits of grey, and labels to others.
        is_grey = (tf.strings.substr(label, 0, len(PNG_START)) == PNG_START) & (
            tf.strings.substr(label, *GRAY_PLACE) == GRAY_8_BITS
        )
        with tf.control_dependencies([tf.debugging.assert_equal(is_grey, True)]):
            stored = tf.io.decode_png(label, channels=1)
        shape = tf.shape(image)[:2]
        checks = [tf.debugging.assert_equal(tf.shape(stored)[:2], shape)]
        with tf.control_dependencies(checks):
            mask = tf.gather(
                tf.constant(self._source.label_map), tf.cast(stored[..., 0], tf.int32)
            )
        checks = [tf.debugging.assert_equal(tf.reduce_any(mask == NO_CLASS), False)]
        with tf.control_dependencies(checks):
            image = tf.identity(image)
        if self._shrink:
            image, mask, shape = tf.cond(
                tf.reduce_all(shape <= self._canvas),
                lambda: (image, mask, shape),
                lambda: self._shrunk(image, mask, shape),
            )
        room = tf.constant(self._canvas) - shape
        # A negative room is an error, as it should be.
        image = tf.pad(image, [[0, room[0]], [0, room[1]], [0, 0]])
        mask = tf.pad(mask, [[0, room[0]], [0, room[1]]], constant_values=IGNORE)
        return {
            "image": tf.ensure_shape(image, (*self._canvas, 3)),
            "label": tf.ensure_shape(mask, self._canvas),
            "size": shape,
        }

    def _shrunk(
        self, image: Tensor, mask: Tensor, shape: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        tf = tensorflow()
        canvas = tf.constant(self._canvas)
        scale = tf.reduce_min(canvas / shape)
        target = tf.cast(tf.round(tf.cast(shape, tf.float64) * scale), tf.int32)
        target = tf.clip_by_value(target, 1, canvas)
        image = tf.raw_ops.ScaleAndTranslate(
            images=image[None],
            size=target,
            scale=tf.cast(target / shape, tf.float32),
            translation=tf.zeros(2),
            kernel_type="triangle",
            antialias=True,
        )
        mask = tf.raw_ops.ResizeNearestNeighbor(
            images=mask[None, ..., None], size=target, half_pixel_centers=True
        )
        return images.to_uint8(image[0]), mask[0, ..., 0], target

    def check(self, example: Example, name: str) -> None:
        """Checks that image and mask belong together, and that all labels are classes.

        Raises:
          UserError: that says what is wrong.
        """
        try:
            image = images.decode_with_pillow(example.image)
            mask = decode_mask(example.label)
        except ValueError:
            return  # `decode` fails too, and then `why` is asked
        shape = image.height, image.width
        if mask.shape != shape:
            raise UserError(
                f"{name}: the image has {shape[0]} x {shape[1]} pixels, its mask "
                f"{mask.shape[0]} x {mask.shape[1]}: mend or remove it"
            )
        unknown = [v for v in values_in(mask) if self._source.label_map[v] == NO_CLASS]
        if unknown:
            raise UserError(
                f"{name}: label {unknown[0]} is outside the "
                f"{len(self._source.class_names)} classes of the dataset: mend it, or "
                "set segmentation.label_map"
            )
        height, width = self._canvas
        if not self._shrink and (shape[0] > height or shape[1] > width):
            raise UserError(
                f"{name} has {shape[0]} x {shape[1]} pixels, more than the {height} x "
                f"{width} of segmentation.eval_canvas: raise it"
            )

    def why(self, example: Example, error: Exception) -> str:
        """Says why the image or the mask could not be decoded."""
        try:
            images.decode_with_pillow(example.image)
        except ValueError:
            reason = images.why_unreadable(example.image, error)
            return f"not a readable image ({reason})"
        try:
            decode_mask(example.label)
        except ValueError as reason:
            return f"not a readable mask ({reason})"
        return f"not a readable pair ({first_line(error)[:200]})"

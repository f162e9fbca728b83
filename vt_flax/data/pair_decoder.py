"""Makes a canvas of a fixed size of an image, and one of its mask."""

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


class PairDecoder(Decoder):
    """An image and its mask in the upper left corner of a canvas.

    Makes `image` (H, W, 3) uint8, black beyond the example; `label` (H, W) uint8, class
    indices, IGNORE where there is none and beyond the example; and `size` (2,) int32,
    height and width of the example in the canvas.

    Args:
      source: the split.
      canvas: H and W in pixels.
      shrink: whether larger examples are shrunk to the canvas, the image antialiased,
        the mask by its nearest pixels; else they are rejected.
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
        shape = tf.shape(image)[:2]
        # TensorFlow would convert any other PNG to 8 bits of gray, and change labels.
        is_gray = (tf.strings.substr(label, 0, len(PNG_START)) == PNG_START) & (
            tf.strings.substr(label, *GRAY_PLACE) == GRAY_8_BITS
        )
        with tf.control_dependencies([tf.debugging.assert_equal(is_gray, True)]):
            stored = tf.io.decode_png(label, channels=1)[..., 0]
        mask = tf.gather(tf.constant(self._source.label_map), tf.cast(stored, tf.int32))
        checks = [
            tf.debugging.assert_equal(tf.shape(mask), shape),
            tf.debugging.assert_equal(tf.reduce_any(mask == NO_CLASS), False),
        ]
        with tf.control_dependencies(checks):
            image = tf.identity(image)
        if self._shrink:
            image, mask, shape = tf.cond(
                tf.reduce_all(shape <= self._canvas),
                lambda: (image, mask, shape),
                lambda: self._shrunk(image, mask, shape),
            )
        # A negative padding is an error, as it should be.
        padding = [[0, side] for side in tf.unstack(self._canvas - shape)]
        image = tf.pad(image, [*padding, [0, 0]])
        mask = tf.pad(mask, padding, constant_values=IGNORE)
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

    def problem(self, example: Example) -> str:
        """Returns what is wrong with the image, the mask, or the two together."""
        problem = images.problem(example.image)
        if problem:
            return problem
        try:
            mask = decode_mask(example.label)
        except ValueError as reason:
            return f"not a readable mask ({reason})"
        image = images.decode_with_pillow(example.image)
        shape, limit = (image.height, image.width), self._canvas
        sizes = f"the image has {shape[0]} x {shape[1]} pixels"
        if mask.shape != shape:
            return f"{sizes}, its mask {mask.shape[0]} x {mask.shape[1]}"
        unknown = [v for v in values_in(mask) if self._source.label_map[v] == NO_CLASS]
        if unknown:
            return (
                f"label {unknown[0]} is outside the {len(self._source.class_names)} "
                "classes of the dataset (see segmentation.label_map)"
            )
        if not self._shrink and (shape[0] > limit[0] or shape[1] > limit[1]):
            return (
                f"{sizes}, more than the {limit[0]} x {limit[1]} of "
                "segmentation.eval_canvas, which may be raised"
            )
        return ""

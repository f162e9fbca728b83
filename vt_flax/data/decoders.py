"""Decoders of stored examples to arrays of fixed shapes."""

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vt_flax.data import images
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
from vt_flax.data.source import Example, Source
from vt_flax.errors import UserError, first_line

Item = dict[str, Any]
Tensor = Any


class Decoder(abc.ABC):
    """Decodes an example to arrays of fixed shapes.

    Attributes:
      fields: shape and type of each array, by its name.
    """

    fields: dict[str, tuple[tuple[int, ...], type]]

    @abc.abstractmethod
    def decode(
        self, file: Tensor, label: Tensor, orientation: Tensor, seed: Tensor
    ) -> dict[str, Tensor]:
        """Decodes in a TensorFlow graph.

        Args:
          file: the encoded image, scalar string.
          label: the label from `Source.parse`, scalar.
          orientation: EXIF orientation of the stored image, scalar.
          seed: (2,) integers for random crops.

        Returns:
          The fields.

        Raises:
          tf.errors.OpError: if anything is wrong with the example.
        """

    @abc.abstractmethod
    def problem(self, example: Example) -> str:
        """Returns what is wrong with an example, in a few words; empty if unknown."""

    def decode_alone(
        self, example: Example, seed: tuple[int, int], name: str
    ) -> dict[str, np.ndarray]:
        """Decodes one example outside a graph.

        Args:
          example: the example.
          seed: see `decode`.
          name: name of the example, for messages.

        Raises:
          UserError: if anything is wrong with it; names it.
        """
        tf = tensorflow()
        try:
            fields = self.decode(
                tf.constant(example.image),
                tf.constant(example.label),
                tf.constant(example.orientation, tf.int64),
                tf.constant(seed, tf.int64),
            )
        except (tf.errors.OpError, ValueError) as error:
            problem = self.problem(example) or f"not readable ({first_line(error)})"
            raise UserError(
                f"{name}: {problem[:400]}; repair or remove it, or set data.on_error "
                "to skip"
            ) from error
        return {key: value.numpy() for key, value in fields.items()}

    def zeros(self, count: int) -> Item:
        """Returns the fields of `count` blank examples."""
        return {
            key: np.zeros((count, *shape), kind)
            for key, (shape, kind) in self.fields.items()
        }


class ClassDecoder(Decoder):
    """An image at the size that the network takes, and its class.

    Args:
      source: the split.
      config: the section `data`.
      train: whether to crop as in training or as in evaluation.
    """

    def __init__(self, source: Source, config: ConfigDict, *, train: bool):
        self._classes = len(source.class_names)
        self._crop = (images.train_crop if train else images.eval_crop)(config)
        size = config.image_size
        self.fields = {"image": ((size, size, 3), np.uint8), "label": ((), np.int32)}

    def decode(
        self, file: Tensor, label: Tensor, orientation: Tensor, seed: Tensor
    ) -> dict[str, Tensor]:
        """Decodes in a graph; see `Decoder`."""
        tf = tensorflow()
        # Raises an error for a label that is no class.
        label = tf.gather(tf.range(self._classes), label)
        image = self._crop(file, seed=seed, orientation=orientation)
        return {"image": image, "label": label}

    def problem(self, example: Example) -> str:
        """Returns what is wrong with the label or the image."""
        if not 0 <= example.label < self._classes:
            return (
                f"label {example.label} is outside the {self._classes} classes of the "
                "dataset"
            )
        return images.problem(example.image)


class PairDecoder(Decoder):
    """An image and its mask, padded at the bottom and on the right to a fixed size.

    The fields are `image` (H, W, 3) uint8, padded with black; `label` (H, W) uint8,
    class indices, IGNORE for unlabeled pixels and padding; and `size` (2,) int32,
    height and width of the example without padding.

    Args:
      source: the split.
      canvas: H and W in pixels.
      shrink: whether larger examples are resized to fit, the image with antialiasing,
        the mask by nearest pixels; else they are rejected.
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
        """Decodes in a graph; see `Decoder`. Masks were drawn on the stored images."""
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

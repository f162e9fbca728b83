"""Decoders of stored examples to arrays of fixed shapes."""

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from vt_flax.data import images
from vt_flax.data.host import tensorflow
from vt_flax.data.masks import IGNORE, NO_CLASS, decode_mask, values_in
from vt_flax.data.pillow_decoder import decode_with_pillow
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
    def decode_example(
        self, example: Example, seed: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """Decodes one example outside a graph.

        Raises:
          ValueError: if anything is wrong with it; says what, in a few words.
        """

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
        try:
            return self.decode_example(example, seed)
        except ValueError as error:
            raise UserError(
                f"{name}: {str(error)[:400]}; repair or remove it, or set "
                "data.on_error to skip"
            ) from error

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

    def decode_example(
        self, example: Example, seed: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """Decodes outside a graph; see `Decoder`."""
        if not 0 <= example.label < self._classes:
            raise ValueError(
                f"label {example.label} is outside the {self._classes} classes of the "
                "dataset"
            )
        tf = tensorflow()
        try:
            fields = self.decode(
                tf.constant(example.image),
                tf.constant(example.label),
                tf.constant(example.orientation, tf.int64),
                tf.constant(seed, tf.int64),
            )
        except (tf.errors.OpError, ValueError) as error:
            decode_with_pillow(example.image)  # raises an error that says more
            raise ValueError(f"not readable ({first_line(error)})") from error
        return {key: value.numpy() for key, value in fields.items()}


class PairDecoder(Decoder):
    """An image and its mask, padded at the bottom and on the right to a fixed size.

    The fields are `image` (H, W, 3) uint8, padded with black; `label` (H, W) uint8,
    class indices, IGNORE for unlabeled pixels and padding; and `size` (2,) int32,
    height and width of the example without padding. Masks were drawn on the stored
    images, whatever their EXIF orientation.

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
        """Decodes in a graph, by Pillow, outside Python's lock; see `Decoder`."""
        del orientation, seed
        tf = tensorflow()
        kinds = [kind for _, kind in self.fields.values()]
        arrays = tf.numpy_function(self._decode, [file, label], kinds)
        return {
            key: tf.ensure_shape(array, shape)
            for (key, (shape, _)), array in zip(
                self.fields.items(), arrays, strict=True
            )
        }

    def decode_example(
        self, example: Example, seed: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """Decodes outside a graph; see `Decoder`."""
        arrays = self._decode(example.image, example.label)
        return dict(zip(self.fields, arrays, strict=True))

    def _decode(
        self, encoded_image: bytes, encoded_mask: bytes
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the arrays of the fields.

        Raises:
          ValueError: if anything is wrong with the example.
        """
        image = decode_with_pillow(encoded_image)
        try:
            values = decode_mask(encoded_mask)
        except ValueError as reason:
            raise ValueError(f"not a readable mask ({reason})") from reason
        height, width = values.shape
        sizes = f"the image has {image.height} x {image.width} pixels"
        if image.size != (width, height):
            raise ValueError(f"{sizes}, its mask {height} x {width}")
        table = self._source.label_map
        unknown = [value for value in values_in(values) if table[value] == NO_CLASS]
        if unknown:
            raise ValueError(
                f"label {unknown[0]} is outside the {len(self._source.class_names)} "
                "classes of the dataset (see segmentation.label_map)"
            )
        mask = Image.fromarray(table[values])
        scale = min(self._canvas[0] / height, self._canvas[1] / width)
        if scale < 1 and not self._shrink:
            raise ValueError(
                f"{sizes}, more than the {self._canvas[0]} x {self._canvas[1]} of "
                "segmentation.eval_canvas, which may be raised"
            )
        if scale < 1:
            height, width = (max(1, round(side * scale)) for side in (height, width))
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            mask = mask.resize((width, height), Image.Resampling.NEAREST)
        padded_image = np.zeros((*self._canvas, 3), np.uint8)
        padded_image[:height, :width] = np.asarray(image)
        padded_mask = np.full(self._canvas, IGNORE, np.uint8)
        padded_mask[:height, :width] = np.asarray(mask)
        return padded_image, padded_mask, np.asarray([height, width], np.int32)

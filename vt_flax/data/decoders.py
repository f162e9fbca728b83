"""Makes arrays of fixed shapes of stored examples."""

import abc
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vt_flax.data import images
from vt_flax.data.host import tensorflow
from vt_flax.data.source import Example, Source
from vt_flax.errors import UserError, first_line

Item = dict[str, Any]
Tensor = Any


class Decoder(abc.ABC):
    """Makes arrays of fixed shapes of an example.

    Attributes:
      fields: shape and type of each array, by its name.
    """

    fields: dict[str, tuple[tuple[int, ...], type]]

    @abc.abstractmethod
    def decode(
        self, file: Tensor, label: Tensor, orientation: Tensor, seed: Tensor
    ) -> dict[str, Tensor]:
        """Decodes inside tf.data.

        Args:
          file: the encoded image, scalar string.
          label: the label from `Source.parse`, scalar.
          orientation: EXIF orientation of the stored image, scalar.
          seed: (2,) integers that decide whatever is drawn.

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
        """Decodes one example outside tf.data.

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
        """Decodes inside tf.data; see `Decoder`."""
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

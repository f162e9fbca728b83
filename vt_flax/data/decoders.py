"""What the host makes of a stored example: arrays of fixed shapes."""

import abc
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vt_flax.data import images
from vt_flax.data.host import tensorflow
from vt_flax.data.source import Example, Source
from vt_flax.errors import UserError

Item = dict[str, Any]
Tensor = Any


class Decoder(abc.ABC):
    """Makes arrays of fixed shapes of an example.

    Attributes:
      fields: shape and type of each array of an example, by its name.
    """

    fields: dict[str, tuple[tuple[int, ...], type]]

    @abc.abstractmethod
    def decode(
        self, file: Tensor, label: Tensor, orientation: Tensor, seed: Tensor
    ) -> dict[str, Tensor]:
        """Decodes inside tf.data.

        Args:
          file: the encoded image, scalar string.
          label: as `Source.parse` gives it, scalar.
          orientation: by which the stored image is to be turned, scalar.
          seed: (2,) integers that decide whatever is drawn.

        Returns:
          The fields.

        Raises:
          tf.errors.OpError: if nothing can be made of the example.
        """

    @abc.abstractmethod
    def check(self, example: Example, name: str) -> None:
        """Checks what `decode` leaves unchecked.

        Raises:
          UserError: that names the example.
        """

    @abc.abstractmethod
    def why(self, example: Example, error: Exception) -> str:
        """Says in a few words why an example could not be decoded.

        Args:
          example: the example.
          error: what TensorFlow said of it, which is long.
        """

    def are_good(self, items: Item) -> np.ndarray:
        """Tells which of some decoded examples, (n, ...) each field, `check` passes."""
        return np.ones(len(items["image"]), bool)

    def decode_alone(self, example: Example, seed: int, row: int, name: str) -> Item:
        """Decodes an example outside tf.data, or says what is wrong with it.

        Args:
          example: the example.
          seed: of the run.
          row: of the example in the run.
          name: by which a message calls it.

        Raises:
          UserError: if nothing can be made of it.
        """
        tf = tensorflow()
        self.check(example, name)
        try:
            fields = self.decode(
                tf.constant(example.image),
                tf.constant(example.label),
                tf.constant(example.orientation, tf.int64),
                tf.constant([seed, row], tf.int64),
            )
        except (tf.errors.OpError, ValueError) as error:
            raise UserError(
                f"{name}: {self.why(example, error)}; mend or remove it, or set "
                "data.on_error to skip"
            ) from error
        return {key: value.numpy() for key, value in fields.items()}

    def blank(self, count: int) -> Item:
        """Returns zeros in the place of so many examples."""
        return {
            key: np.zeros((count, *shape), kind)
            for key, (shape, kind) in self.fields.items()
        }


class ClassDecoder(Decoder):
    """An image at the size that the network takes, and its class.

    Args:
      source: the split.
      config: the section `data`.
      train: whether the image is cropped as in training.
    """

    def __init__(self, source: Source, config: ConfigDict, *, train: bool):
        self._source = source
        self._crop = (images.train_crop if train else images.eval_crop)(config)
        size = config.image_size
        self.fields = {"image": ((size, size, 3), np.uint8), "label": ((), np.int32)}

    def decode(
        self, file: Tensor, label: Tensor, orientation: Tensor, seed: Tensor
    ) -> dict[str, Tensor]:
        """Decodes inside tf.data; see `Decoder`."""
        tf = tensorflow()
        image = self._crop(file, orientation, seed)
        return {"image": image, "label": tf.cast(label, tf.int32)}

    def are_good(self, items: Item) -> np.ndarray:
        """Tells which labels are classes."""
        return self._source.are_classes(items["label"])

    def check(self, example: Example, name: str) -> None:
        """Checks that the label is a class."""
        self._source.check_label(example.label, name)

    def why(self, example: Example, error: Exception) -> str:
        """Says why the image could not be decoded."""
        return f"not a readable image ({images.why_unreadable(example.image, error)})"

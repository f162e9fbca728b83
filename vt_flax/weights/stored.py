"""Arrays that lie in a file."""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

# That ml_dtypes is imported makes NumPy know the last, for us and for safetensors.
FLOATS = ("float64", "float32", "float16", np.dtype(ml_dtypes.bfloat16).name)


class Unreadable(Exception):
    """A file does not hold what it should; the message says what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array in a file, which is only read when it is wanted.

    Attributes:
      shape: its shape.
      dtype: name of its type.
      read: returns it.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Storage:
    """A piece of a flat array in the file.

    Attributes:
      key: by which the file knows the whole array.
      dtype: name of its type.
      size: how many numbers the piece has.
      offset: where in the array it begins, in numbers.
    """

    key: Any
    dtype: str
    size: int
    offset: int = 0


class Tensor:
    """Numbers of a storage by strides. Pickles make it first, and fill it later."""

    storage: Storage | None = None
    offset: int = 0
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    def fill(self, storage: Any, offset: Any, shape: Any, strides: Any) -> None:
        """Sets what it is made of, all in numbers, not bytes.

        Raises:
          Unreadable: if these are not numbers of the storage.
        """
        shape, strides = tuple(shape), tuple(strides)
        numbers = (offset, *shape, *strides)
        if (
            not isinstance(storage, Storage)
            or any(type(n) is not int or n < 0 for n in numbers)
            or len(shape) != len(strides)
        ):
            raise Unreadable("it describes a tensor by something else than numbers")
        steps = zip(shape, strides, strict=True)
        last = offset + sum((length - 1) * stride for length, stride in steps)
        if all(shape) and last >= storage.size:
            raise Unreadable("it has a tensor that reaches beyond its numbers")
        self.storage, self.offset = storage, offset
        self.shape, self.strides = shape, strides

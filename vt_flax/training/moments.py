"""Means and spreads over a split: taken of each batch on the devices, then merged.

Sums of squares would cancel in float32 where a spread is small beside its mean. So a
batch gives its mean and its squares about that, and batches are merged in float64
(Chan, Golub and LeVeque, 1983: Algorithms for computing the sample variance).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Moments(NamedTuple):
    """What is known of some numbers, for each of several quantities.

    Attributes:
      count: how many numbers.
      mean: their mean; 0 of none.
      squares: the sum of their squared distances from it.
    """

    count: jax.Array | np.ndarray
    mean: jax.Array | np.ndarray
    squares: jax.Array | np.ndarray

    @property
    def spread(self) -> np.ndarray:
        """The standard deviation of these numbers themselves, no estimate of more."""
        return np.sqrt(self.squares / np.maximum(self.count, 1))


def take_moments(values: jax.Array, valid: jax.Array) -> Moments:
    """Takes the moments of a batch, inside the step.

    Args:
      values: (batch, ...).
      valid: bool, (batch, ...) or as many first axes of it as there are; False where a
        value counts for nothing, whatever it is.

    Returns:
      Arrays (...): int32, float32, float32.
    """
    valid = valid.reshape(valid.shape + (1,) * (values.ndim - valid.ndim))
    valid = jnp.broadcast_to(valid, values.shape)
    values = values.astype(jnp.float32)
    count = jnp.sum(valid, axis=0, dtype=jnp.int32)
    mean = jnp.sum(jnp.where(valid, values, 0.0), axis=0) / jnp.maximum(count, 1)
    squares = jnp.sum(jnp.where(valid, jnp.square(values - mean), 0.0), axis=0)
    return Moments(count, mean, squares)


def merge(one: Moments, other: Moments) -> Moments:
    """Returns the moments of two sets of numbers together, in float64.

    Args:
      one: of the one set, NumPy.
      other: of the other.
    """
    count = one.count.astype(np.int64) + other.count
    share = other.count / np.maximum(count, 1)
    apart = other.mean.astype(np.float64) - one.mean
    return Moments(
        count,
        one.mean + apart * share,
        one.squares.astype(np.float64)
        + other.squares
        + np.square(apart) * one.count * share,
    )

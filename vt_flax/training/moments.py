"""Means and standard deviations over a split, merged from those of its batches.

Sums of squares would cancel in float32 where the deviation is small beside the mean. So
a batch returns its mean and the squares about it, and batches are merged in float64
(Chan, Golub and LeVeque, 1983: Algorithms for computing the sample variance).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Moments(NamedTuple):
    """Number of values, their mean, and the sum of squared distances from the mean.

    Arrays of one shape, an entry for each of several quantities.
    """

    count: jax.Array | np.ndarray
    mean: jax.Array | np.ndarray
    squares: jax.Array | np.ndarray

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of the population."""
        return np.sqrt(self.squares / np.maximum(self.count, 1))


def take_moments(values: jax.Array, valid: jax.Array) -> Moments:
    """Returns the moments of (batch, ...) values: (...) int32, float32 and float32.

    `valid`, bool of the first axes of `values`, is False where one is not counted.
    """
    valid = valid.reshape(valid.shape + (1,) * (values.ndim - valid.ndim))
    valid = jnp.broadcast_to(valid, values.shape)
    values = values.astype(jnp.float32)
    count = jnp.sum(valid, axis=0, dtype=jnp.int32)
    mean = jnp.sum(jnp.where(valid, values, 0.0), axis=0) / jnp.maximum(count, 1)
    squares = jnp.sum(jnp.where(valid, jnp.square(values - mean), 0.0), axis=0)
    return Moments(count, mean, squares)


def merge(one: Moments, other: Moments) -> Moments:
    """Returns the moments of the union of two sets of values, NumPy in float64."""
    count = one.count.astype(np.int64) + other.count
    fraction = other.count / np.maximum(count, 1)
    delta = other.mean.astype(np.float64) - one.mean
    squares = one.squares.astype(np.float64) + other.squares
    squares += np.square(delta) * one.count * fraction
    return Moments(count, one.mean + delta * fraction, squares)

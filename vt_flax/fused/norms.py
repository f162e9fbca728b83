"""BatchNorm from streamed moments, folded into the layers before and after it.

All have the variables of `nn.batch_norm.BatchNorm`. They take moments of x minus the
running mean in one pass over x, which costs digits while the running mean is many
deviations away from the batch's: at 100, the result is off by 1e-3.
"""

from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.nn.batch_norm import BatchNorm, NormVariables, variance
from vt_flax.nn.layers import convolve, pad

Means = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class OnePassBatchNorm(BatchNorm):
    """`BatchNorm` that reads its input once for both moments."""

    @nn.nowrap
    def origin(self, grouped, axes, running_mean):
        """See `BatchNorm`."""
        del grouped, axes
        return running_mean


@flax.struct.dataclass
class Affine:
    """Normalization of each channel: (x - center) * factor + bias.

    Attributes:
      center: float32, (1, 1, 1, channels) for all examples, (batch, ...) or
        (groups, ...) for each or for each group of them. Subtracted first, for the
        digits.
      factor: of the same shape.
      bias: (channels,).
    """

    center: jax.Array
    factor: jax.Array
    bias: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes (batch, H, W, channels), to float32."""
        return (x.astype(jnp.float32) - self.center) * self.factor + self.bias

    def by_example(self, batch: int) -> "Affine":
        """Returns the same by example instead of by group; one group is for all."""
        groups = len(self.factor)
        if groups == 1:
            return self
        center, factor = (
            jnp.repeat(x, batch // groups, 0) for x in (self.center, self.factor)
        )
        return self.replace(center=center, factor=factor)


class MomentNorm(BatchNorm):
    """`BatchNorm` of an array that exists only piece by piece.

    Attributes:
      means: called with an origin (channels,), it returns the means over each example
        of x - origin and of its square, (batch, channels) in float32. It is no argument
        of the call because `tabulate` asks for the shapes of these. Subclasses compute
        moments themselves.
    """

    means: Means | None = None

    @nn.compact
    def __call__(self, channels: int, batch: int, *, train: bool) -> Affine:
        """Returns the normalization, by example.

        Args:
          channels: of the array.
          batch: number of examples.
          train: whether to use the statistics of this batch, and to update the running
            ones by them.

        Raises:
          UserError: if the batch is empty, or not a whole number of groups.
        """
        variables = self.norm_variables(channels)
        affine = self.affine(variables, by_group(self.means), batch, train)
        return affine.by_example(batch)

    @nn.nowrap
    def affine(
        self,
        variables: NormVariables,
        statistics: Callable[[jax.Array, int], tuple[jax.Array, jax.Array]],
        batch: int,
        train: bool,
    ) -> Affine:
        """Returns the normalization, by group.

        `statistics`, called with an origin (channels,) and a number of groups, returns
        the mean of x - origin and the variance of x, (groups, channels) in float32.
        """
        origin = variables.mean.value
        if self.uses_running_statistics(train):
            center, var = origin[None], variables.var.value[None]
        else:
            mean, var = statistics(origin, self.num_groups(batch))
            center = origin + mean
            self.update(variables, center, var)
        factor = variables.scale * jax.lax.rsqrt(var + self.epsilon)
        return Affine(center[:, None, None], factor[:, None, None], variables.bias)


def example_means(origin: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns means (batch, channels) over pixels of x - origin and of its square."""
    centered = x.astype(jnp.float32) - origin
    return jnp.mean(centered, (1, 2)), jnp.mean(jnp.square(centered), (1, 2))


def by_group(means: Means) -> Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]:
    """Returns statistics for `MomentNorm.affine` from means of each example."""

    def statistics(origin, groups):
        mean, mean_square = (
            jnp.mean(x.reshape(groups, -1, x.shape[-1]), 1) for x in means(origin)
        )
        return mean, variance(mean, mean_square)

    return statistics


class PooledNorm(MomentNorm):
    """7 x 7 convolution, BatchNorm, ReLU and max pooling, pooled before normalized.

    BatchNorm and ReLU never change which of several numbers is the largest, but for the
    sign of a channel's scale. So the maximum is taken of the convolution's result, with
    that sign in the kernel, and only a quarter of the map is normalized. The statistics
    are those of all pixels.

    The convolution has a stride of 2, the pooling windows of 3 x 3 and a stride of 2.
    Of numbers that tie another one may get the gradient than if they were pooled last:
    all of a channel tie if its scale is exactly 0.
    """

    @nn.compact
    def __call__(self, x: jax.Array, kernel: jax.Array, *, train: bool) -> jax.Array:
        """Convolves, normalizes, applies ReLU and pools.

        Args:
          x: (batch, H, W, C).
          kernel: (k, k, C, features), float32.
          train: see `MomentNorm`.

        Returns:
          (batch, H', W', features) in the type of `x`.

        Raises:
          UserError: if the batch is empty, or not a whole number of groups.
        """
        variables = self.norm_variables(kernel.shape[-1])
        sign = jnp.where(variables.scale < 0, -1.0, 1.0)
        y = convolve(x, kernel * sign, 2, x.dtype)

        def means(origin):
            return example_means(origin, sign * y.astype(jnp.float32))

        affine = self.affine(variables, by_group(means), x.shape[0], train)
        y = nn.max_pool(y, (3, 3), (2, 2), pad(3)) * sign.astype(y.dtype)
        return nn.relu(affine.by_example(x.shape[0])(y).astype(x.dtype))


class GramNorm(MomentNorm):
    """A 1 x 1 convolution and its BatchNorm in one: no map lies between them.

    The mean and the variance of y = x W over the pixels follow from those of x:

        mean(y) = mean(x) W,    var(y) = diag(W^T cov(x) W),

    with the covariance, (C, C), of the C channels. So the normalization's factor is in
    W before it is applied, and y itself is neither written nor read: in a bottleneck,
    whose last convolution has four times as many outputs as inputs, its largest map.
    """

    @nn.compact
    def __call__(self, x: jax.Array, kernel: jax.Array, *, train: bool) -> jax.Array:
        """Convolves and normalizes.

        Args:
          x: input of the convolution, (batch, H, W, C).
          kernel: (1, 1, C, features), float32.
          train: see `MomentNorm`.

        Returns:
          (batch, H, W, features) in the type of `x`.

        Raises:
          UserError: if the batch is empty, or not a whole number of groups.
        """
        weights, exact = kernel[0, 0], jax.lax.Precision.HIGHEST

        def statistics(running_mean, groups):
            grouped = x.reshape(groups, -1, *x.shape[1:])
            mean, covariance = mean_and_covariance(grouped)
            mean = jnp.matmul(mean, weights, precision=exact) - running_mean
            product = jnp.matmul(covariance, weights, precision=exact)
            return mean, jnp.maximum(jnp.sum(weights * product, axis=1), 0.0)

        variables = self.norm_variables(kernel.shape[-1])
        affine = self.affine(variables, statistics, x.shape[0], train)
        bias = affine.bias - affine.center * affine.factor
        groups = len(affine.factor)
        if groups == 1:
            out = convolve(x, kernel * affine.factor, dtype=x.dtype)
            return (out.astype(jnp.float32) + bias[0]).astype(x.dtype)
        folded = (weights * affine.factor[:, 0]).astype(x.dtype)
        grouped = x.reshape(groups, -1, *x.shape[1:])
        out = jnp.einsum("gnhwc,gcf->gnhwf", grouped, folded).astype(jnp.float32)
        return (out + bias[:, None]).astype(x.dtype).reshape(*x.shape[:-1], -1)


def mean_and_covariance(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns means (groups, C) and covariances (groups, C, C) of (groups, ..., C).

    Both are float32. Centered before it is squared, x costs no digits where its mean is
    many deviations.
    """
    axes = tuple(range(1, x.ndim - 1))
    mean = jnp.mean(x, axes, dtype=jnp.float32, keepdims=True)
    origin = jax.lax.stop_gradient(mean)
    centered = (x.astype(jnp.float32) - origin).astype(x.dtype)
    squares = jax.vmap(_gram)(centered) / x[0, ..., 0].size
    # Zero, but its derivatives are not.
    offset = (mean - origin).reshape(len(x), -1)
    covariance = squares - offset[:, :, None] * offset[:, None]
    return mean.reshape(len(x), -1), covariance


def _pixel_product(x: jax.Array, y: jax.Array, dtype: Any) -> jax.Array:
    """Sums x^T y over all axes but the last, (C, F), in full precision for float32."""
    pixels = tuple(range(x.ndim - 1))
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        x,
        y,
        ((pixels, pixels), ((), ())),
        precision=exact,
        preferred_element_type=dtype,
    )


@jax.custom_jvp
def _gram(x: jax.Array) -> jax.Array:
    """x^T x, float32 (C, C), of (..., C)."""
    return _pixel_product(x, x, jnp.float32)


@_gram.defjvp
def _gram_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    # A product in the type of x, so that its transpose does not read x as float32.
    half = _pixel_product(tangent, x, x.dtype).astype(jnp.float32)
    return _gram(x), half + half.T

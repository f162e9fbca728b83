"""BatchNorm from streamed moments, folded into the layers before and after it.

All have the variables of `nn.batch_norm.BatchNorm`. They take moments of x minus the
running mean in one pass over x, which costs digits while the running mean is many
deviations away from the batch's: at 100, the result is off by 1e-3.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.nn.batch_norm import BatchNorm, BatchNormBase, NormVariables, variance
from vt_flax.nn.layers import convolve, pad

# Called with an origin (channels,): the means over each example of x - origin and of
# its square, (batch, channels) in float32.
Means = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
# Called with an origin and a number of groups: the mean of x - origin and the variance
# of x, (groups, channels) in float32.
Statistics = Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]


class OnePassBatchNorm(BatchNorm):
    """`BatchNorm` that reads its input once for both moments."""

    @nn.nowrap
    def origin(self, grouped, axes, running_mean):
        """See `BatchNorm`."""
        del grouped, axes
        return running_mean


class Affine(NamedTuple):
    """Normalization of each channel: (x - center) * factor + bias.

    Attributes:
      center: float32, (n, 1, 1, channels), where n is 1, the number of groups, or that
        of examples. Subtracted first, for the digits.
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
        """Returns the same with one entry for each example, or one for all."""
        groups = len(self.factor)
        if groups == 1:
            return self
        center, factor = (
            jnp.repeat(x, batch // groups, 0) for x in (self.center, self.factor)
        )
        return Affine(center, factor, self.bias)


class StreamedNorm(BatchNormBase):
    """Base of BatchNorms that get statistics of an array, not the array."""

    @nn.nowrap
    def affine(
        self, variables: NormVariables, statistics: Statistics, batch: int, train: bool
    ) -> Affine:
        """Returns the normalization of a batch, by group, and updates statistics.

        Raises:
          UserError: if the batch is empty, or not a whole number of groups.
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


class MomentNorm(StreamedNorm):
    """BatchNorm of an array that exists only piece by piece.

    Attributes:
      means: see `Means`. No argument of the call, because `tabulate` asks for the
        shapes of these.
    """

    means: Means = None  # type: ignore[assignment]

    @nn.compact
    def __call__(self, channels: int, batch: int, *, train: bool) -> Affine:
        """Returns the normalization of an array (batch, ..., channels), by example."""
        variables = self.norm_variables(channels)
        affine = self.affine(variables, by_group(self.means), batch, train)
        return affine.by_example(batch)


def example_means(origin: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns means (batch, channels) over pixels of x - origin and of its square."""
    centered = x.astype(jnp.float32) - origin
    return jnp.mean(centered, (1, 2)), jnp.mean(jnp.square(centered), (1, 2))


def by_group(means: Means) -> Statistics:
    """Returns the statistics of groups from the means of their examples."""

    def statistics(origin, groups):
        mean, mean_square = (
            jnp.mean(x.reshape(groups, -1, x.shape[-1]), 1) for x in means(origin)
        )
        return mean, variance(mean, mean_square)

    return statistics


class PooledNorm(StreamedNorm):
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
        """Maps (batch, H, W, C) to (batch, H / 4, W / 4, features), of the same type.

        The kernel is (k, k, C, features), float32.
        """
        variables = self.norm_variables(kernel.shape[-1])
        sign = jnp.where(variables.scale < 0, -1.0, 1.0)
        y = convolve(x, kernel * sign, 2, x.dtype)

        def means(origin):
            return example_means(origin, sign * y.astype(jnp.float32))

        affine = self.affine(variables, by_group(means), x.shape[0], train)
        y = nn.max_pool(y, (3, 3), (2, 2), pad(3)) * sign.astype(y.dtype)
        return nn.relu(affine.by_example(x.shape[0])(y).astype(x.dtype))


class GramNorm(StreamedNorm):
    """A 1 x 1 convolution and its BatchNorm in one: no map lies between them.

    The mean and the variance of y = x W over the pixels follow from those of x:

        mean(y) = mean(x) W,    var(y) = diag(W^T cov(x) W),

    with the covariance, (C, C), of the C channels. So the normalization's factor is in
    W before it is applied, and y itself is neither written nor read: in a bottleneck,
    whose last convolution has four times as many outputs as inputs, its largest map.
    """

    @nn.compact
    def __call__(self, x: jax.Array, kernel: jax.Array, *, train: bool) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H, W, features), of the same type.

        The kernel is (1, 1, C, features), float32.
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

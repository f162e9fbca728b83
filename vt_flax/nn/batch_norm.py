"""Batch normalization over the whole batch, over groups of examples, or frozen."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.errors import UserError


class NormVariables(NamedTuple):
    """Running statistics and parameters of a BatchNorm, (channels,) each, float32."""

    mean: nn.Variable
    var: nn.Variable
    scale: jax.Array
    bias: jax.Array


class BatchNormBase(nn.Module):
    """Settings and variables of batch normalization (Ioffe and Szegedy, 2015).

    Running statistics hold the mean and the biased variance, averaged over groups.

    Attributes:
      group_size: number of consecutive examples over which statistics are taken;
        0 for the whole batch.
      frozen: whether to normalize by the running statistics in training too, and to
        leave them as they are.
      momentum: weight of the old running statistics in each update.
      epsilon: added to the variance.
      scale_init: initializer of the scale; zeros make a residual branch start as zero.
      dtype: type of the result. Statistics are always float32.
    """

    group_size: int = 0
    frozen: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Any = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.nowrap
    def norm_variables(self, channels: int) -> NormVariables:
        """Creates or returns the variables, inside a compact method."""
        shape = (channels,)
        return NormVariables(
            self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32),
            self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32),
            self.param("scale", self.scale_init, shape, jnp.float32),
            self.param("bias", nn.initializers.zeros, shape, jnp.float32),
        )

    @nn.nowrap
    def uses_running_statistics(self, train: bool) -> bool:
        """Returns whether the running statistics normalize, and stay as they are."""
        return self.frozen or not train

    @nn.nowrap
    def num_groups(self, batch: int) -> int:
        """Returns the number of groups in a batch.

        Raises:
          UserError: if the batch is empty, or not a whole number of groups.
        """
        if batch == 0:
            raise UserError("an empty batch has no statistics: set train=False")
        group = self.group_size or batch
        if batch % group:
            raise UserError(
                f"bn_group_size={group} does not divide the batch of {batch} examples: "
                "choose a divisor of the batch size"
            )
        return batch // group

    @nn.nowrap
    def update(self, variables: NormVariables, mean: jax.Array, var: jax.Array) -> None:
        """Updates running statistics by those of groups, (groups, ..., channels)."""
        if self.is_initializing():
            return
        for running, new in ((variables.mean, mean), (variables.var, var)):
            new = jnp.mean(new, axis=0).reshape(running.value.shape)
            running.value = self.momentum * running.value + (1 - self.momentum) * new


class BatchNorm(BatchNormBase):
    """Batch normalization over all axes but the last.

    Under `jit`, statistics of a sharded batch are those of the whole logical array:
    XLA synchronizes them over devices (sync BatchNorm). Groups that lie on one device
    need no communication.

    The variance is that of x - m, where m is the batch's mean: a mean of many
    deviations costs no digits.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalizes (batch, ..., channels).

        With `train`, by the statistics of this batch, which update the running ones.

        Raises:
          UserError: if the batch is empty, or not a whole number of groups.
        """
        variables = self.norm_variables(x.shape[-1])
        if self.uses_running_statistics(train):
            factor = variables.scale * jax.lax.rsqrt(variables.var.value + self.epsilon)
            centered = x.astype(jnp.float32) - variables.mean.value
            return (centered * factor + variables.bias).astype(self.dtype)

        grouped = x.astype(jnp.float32)
        grouped = grouped.reshape(self.num_groups(x.shape[0]), -1, *x.shape[1:])
        axes = tuple(range(1, grouped.ndim - 1))
        # But for rounding, moments and gradients do not depend on the origin.
        origin = jax.lax.stop_gradient(self.origin(grouped, axes, variables.mean.value))
        centered = grouped - origin
        offset = jnp.mean(centered, axes, keepdims=True)
        var = variance(offset, jnp.mean(jnp.square(centered), axes, keepdims=True))
        self.update(variables, origin + offset, var)
        normalized = (centered - offset) * jax.lax.rsqrt(var + self.epsilon)
        normalized = normalized * variables.scale + variables.bias
        return normalized.astype(self.dtype).reshape(x.shape)

    @nn.nowrap
    def origin(
        self, grouped: jax.Array, axes: tuple[int, ...], running_mean: jax.Array
    ) -> jax.Array:
        """Returns the origin of the moments that are taken over `axes`."""
        del running_mean
        return jnp.mean(grouped, axes, keepdims=True)


def variance(mean: jax.Array, mean_square: jax.Array) -> jax.Array:
    """Returns the variance of an array from its mean and the mean of its square."""
    return jnp.maximum(mean_square - jnp.square(mean), 0.0)

"""Batch normalisation of what is made piece by piece, and never held whole."""

from collections.abc import Callable

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.nn.norm import BatchNorm, Normalization


@flax.struct.dataclass
class Affine:
    """What batch normalisation does to each channel: (x - centre) * factor + bias.

    Attributes:
      centre: subtracted first, for the digits; (1 or batch, 1, 1, channels), float32.
      factor: of the same shape.
      bias: (channels,).
    """

    centre: jax.Array
    factor: jax.Array
    bias: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises (batch, H, W, channels), to float32."""
        return (x.astype(jnp.float32) - self.centre) * self.factor + self.bias

    def scale_and_bias(self) -> jax.Array:
        """Returns the same as x * scale + bias: float32 (1 or batch, 2, channels)."""
        centre, factor = self.centre[:, 0, 0], self.factor[:, 0, 0]
        return jnp.stack([factor, self.bias - centre * factor], axis=1)


class MomentNorm(BatchNorm):
    """`BatchNorm` of an array that is never held whole, from its moments.

    It has `BatchNorm`'s variables, and takes the variance in one pass.
    """

    @classmethod
    def of(cls, norm: Normalization, name: str) -> "MomentNorm":
        """Returns one with the settings of `norm`."""
        return cls(norm.span, norm.momentum, norm.epsilon, name=name)

    @nn.compact
    def __call__(
        self,
        channels: int,
        means: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
        batch: int,
        *,
        train: bool,
    ) -> Affine:
        """Returns what is to be done to each channel.

        Args:
          channels: of the array.
          means: called with an origin (channels,), it gives the means over each example
            of x - origin and of its square, (batch, channels) in float32.
          batch: number of examples.
          train: whether to use, and fold in, the statistics of this batch.

        Raises:
          UserError: if the batch is not a whole number of groups.
        """
        running_mean, running_var, scale, bias = self._variables(channels)
        if self._uses_running(train):
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            place = (None, None, None, slice(None))
            return Affine(running_mean.value[place], factor[place], bias)
        group = self._group(batch)
        origin = running_mean.value
        first, second = (
            jnp.mean(x.reshape(batch // group, group, channels), 1)
            for x in means(origin)
        )
        var = jnp.maximum(second - jnp.square(first), 0.0)
        self._fold_in(running_mean, jnp.mean(origin + first, 0))
        self._fold_in(running_var, jnp.mean(var, 0))
        centre, factor = (
            # One group is for all examples, whatever their number.
            (x if group == batch else jnp.repeat(x, group, 0))[:, None, None]
            for x in (origin + first, scale * jax.lax.rsqrt(var + self.epsilon))
        )
        return Affine(centre, factor, bias)

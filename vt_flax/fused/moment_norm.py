"""Batch normalisation of what is made piece by piece, and never held whole."""

from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.nn.norm import BatchNorm, Normalization, NormVariables

Means = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


@flax.struct.dataclass
class Affine:
    """What batch normalisation does to each channel: (x - centre) * factor + bias.

    Attributes:
      centre: subtracted first, for the digits; float32, (1, 1, 1, channels) for all
        examples, (batch, ...) or (groups, ...) for each or for each group of them.
      factor: of the same shape.
      bias: (channels,).
    """

    centre: jax.Array
    factor: jax.Array
    bias: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises (batch, H, W, channels), to float32."""
        return (x.astype(jnp.float32) - self.centre) * self.factor + self.bias

    def of_each(self, batch: int) -> "Affine":
        """Returns the same by example, of what is by group; one group is for all."""
        groups = len(self.factor)
        if groups == 1:
            return self
        centre, factor = (
            jnp.repeat(x, batch // groups, 0) for x in (self.centre, self.factor)
        )
        return self.replace(centre=centre, factor=factor)

    def scale_and_bias(self) -> jax.Array:
        """Returns the same as x * scale + bias: float32 (1 or batch, 2, channels)."""
        centre, factor = self.centre[:, 0, 0], self.factor[:, 0, 0]
        return jnp.stack([factor, self.bias - centre * factor], axis=1)


class MomentNorm(BatchNorm):
    """`BatchNorm` of an array that is never held whole, from its moments.

    It has `BatchNorm`'s variables, and takes the variance in one pass.

    Attributes:
      means: called with an origin (channels,), it gives the means over each example of
        x - origin and of its square, (batch, channels) in float32. It is no argument of
        the call because `tabulate` asks for the shapes of these. Subclasses compute
        moments themselves.
    """

    means: Means | None = None

    @classmethod
    def of(
        cls,
        norm: Normalization,
        name: str,
        scale_init: Any = nn.initializers.ones,
        means: Means | None = None,
    ) -> "MomentNorm":
        """Returns one with the settings of `norm`."""
        settings = norm.span, norm.momentum, norm.epsilon, scale_init
        return cls(*settings, means=means, name=name)

    @nn.compact
    def __call__(self, channels: int, batch: int, *, train: bool) -> Affine:
        """Returns what is to be done to each channel.

        Args:
          channels: of the array.
          batch: number of examples.
          train: whether to use, and fold in, the statistics of this batch.

        Raises:
          UserError: if the batch is not a whole number of groups.
        """

        def moments(origin, groups):
            first, second = (
                jnp.mean(x.reshape(groups, -1, channels), 1) for x in self.means(origin)
            )
            return first, variance(first, second)

        affine = self._affine(self._variables(channels), moments, batch, train)
        return affine.of_each(batch)

    @nn.nowrap
    def _affine(
        self,
        variables: NormVariables,
        moments: Callable[[jax.Array, int], tuple[jax.Array, jax.Array]],
        batch: int,
        train: bool,
    ) -> Affine:
        """What is to be done to each channel, by group.

        `moments`, called with an origin (channels,) and a number of groups, gives the
        mean of x - origin and the variance of x, (groups, channels) in float32.
        """
        running_mean, running_var, scale, bias = variables
        origin = running_mean.value
        if self._uses_running(train):
            centre, var = origin[None], running_var.value[None]
        else:
            first, var = moments(origin, batch // self._group(batch))
            centre = origin + first
            self._fold_in(running_mean, jnp.mean(centre, 0))
            self._fold_in(running_var, jnp.mean(var, 0))
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return Affine(centre[:, None, None], factor[:, None, None], bias)


def variance(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the variance of what has these means, of itself and of its square."""
    return jnp.maximum(second - jnp.square(first), 0.0)

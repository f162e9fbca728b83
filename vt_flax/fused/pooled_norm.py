"""Convolution, batch normalisation, ReLU and max pooling, pooled before normalised.

Normalisation and ReLU never change which of several numbers is the largest, but for the
sign of a channel's scale. So the largest is taken of what is convolved, with that sign
in the kernel, and only the quarter that is left is normalised. The statistics are those
of all pixels. As ImageNet's stem has it, the normalised map would be the largest of the
whole network.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.fused.moment_norm import MomentNorm, variance
from vt_flax.nn.layers import convolve, pad, relu


class PooledNorm(MomentNorm):
    """`BatchNorm` and ReLU between a convolution and a max pooling: all four of them.

    The convolution has a stride of 2, the pooling windows of 3 x 3 and a stride of 2.
    Of numbers that tie another one may get the gradient than if they were pooled last:
    all of a channel tie if its scale is exactly 0.
    """

    @nn.compact
    def __call__(self, x: jax.Array, kernel: jax.Array, *, train: bool) -> jax.Array:
        """Convolves, normalises, rectifies and pools.

        Args:
          x: (batch, H, W, C).
          kernel: (k, k, C, features), float32.
          train: whether to use, and fold in, the statistics of this batch.

        Returns:
          (batch, H', W', features) in the type of `x`.

        Raises:
          UserError: if the batch is not a whole number of groups.
        """
        variables = self._variables(kernel.shape[-1])
        sign = jnp.where(variables.scale < 0, -1.0, 1.0)
        y = convolve(x, kernel * sign, 2, x.dtype)

        def moments(origin, groups):
            beyond = sign * y.astype(jnp.float32) - origin
            beyond = beyond.reshape(groups, -1, *y.shape[1:])
            first = jnp.mean(beyond, (1, 2, 3))
            second = jnp.mean(jnp.square(beyond), (1, 2, 3))
            return first, variance(first, second)

        affine = self._affine(variables, moments, x.shape[0], train).of_each(x.shape[0])
        y = nn.max_pool(y, (3, 3), (2, 2), pad(3)) * sign.astype(y.dtype)
        return relu(affine(y).astype(x.dtype))

"""CBAM-ResNet: residual branches gated by channel, then by pixel (Woo et al., 2018).

Both gates stand after the branch's last normalization, before the sum. The channel
gate's two maps have biases, as SE's have; the 7 x 7 convolution has none and is
normalized: 100 parameters a block more than SE-ResNet. In the authors' code that
normalization's scale starts at zero and its running statistics have a momentum of their
own (0.99); here both are as everywhere else [choice].

The MACs printed for 50 and 101 layers, 3864 M and 7581 M, are those of
`variant="msra"`: see `se`.
"""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.models.comparison.se import channel_map
from vt_flax.models.resnet import BlockParts, ResNet
from vt_flax.nn.layers import Conv
from vt_flax.nn.norm import Normalization

SPATIAL_KERNEL = 7


def maximum(x: jax.Array, axis: int) -> jax.Array:
    """The maximum along an axis, whose gradient goes to the first of the largest.

    That of `jnp.max` compares x with the result. Where the compiler computes x anew for
    that, rounded otherwise, nothing is equal, and it divides by none: not a number.
    """
    place = jnp.argmax(x, axis, keepdims=True)
    places = jax.lax.broadcasted_iota(place.dtype, x.shape, axis)
    return jnp.sum(jnp.where(places == place, x, 0.0), axis)


class ChannelGate(nn.Module):
    """x times sigmoid(M(mean of x over the pixels) + M(maximum over the pixels)).

    M is one two-layer map: C to C / 16, ReLU, C.

    Attributes:
      dtype: type of the computation; the mean is float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scales the channels of (batch, H, W, C).

        Source: Woo et al., equation 2.
        """
        chex.assert_rank(x, 4)
        batch, height, width, channels = x.shape
        full = x.astype(jnp.float32).reshape(batch, height * width, channels)
        pooled = jnp.stack([jnp.mean(full, axis=1), maximum(full, axis=1)], axis=1)
        weights = nn.sigmoid(jnp.sum(channel_map(pooled, self.dtype), axis=1))
        return x.astype(self.dtype) * weights[:, None, None]


class SpatialGate(nn.Module):
    """x times sigmoid(BN(7 x 7 convolution of the channels' maximum and mean)).

    Attributes:
      norm: batch normalisation.
      dtype: type of the computation; the mean is float32.
    """

    norm: Normalization = Normalization()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Scales the pixels of (batch, H, W, C).

        Source: Woo et al., equation 3; maximum before mean and the normalisation as in
        the authors' code.
        """
        chex.assert_rank(x, 4)
        full = x.astype(jnp.float32)
        pooled = jnp.stack([maximum(full, axis=3), jnp.mean(full, axis=3)], axis=3)
        weights = Conv(1, SPATIAL_KERNEL, dtype=self.dtype, name="conv")(pooled)
        weights = nn.sigmoid(self.norm.layer("norm")(weights, train=train))
        return x.astype(self.dtype) * weights


class Gates(nn.Module):
    """The channel gate, then the spatial gate.

    Attributes:
      norm: batch normalisation.
      dtype: type of the computation.
    """

    norm: Normalization = Normalization()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Scales (batch, H, W, C)."""
        x = ChannelGate(self.dtype, name="channel")(x)
        return SpatialGate(self.norm, self.dtype, name="spatial")(x, train=train)


class CBAMResNet(ResNet):
    """CBAM-ResNet-{18, 34, 50, 101}; options as in `Classifier`."""

    @nn.nowrap
    def block_parts(self, stage: int) -> BlockParts:
        """Returns the parts of a gated block."""
        del stage
        return BlockParts(gate=Gates)

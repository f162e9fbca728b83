"""CBAM-ResNet: residual branches gated by channel, then by pixel (Woo et al., 2018).

Both gates stand after the branch's last BatchNorm, before the sum. The channel gate's
two maps have biases, as SE's have; the 7 x 7 convolution has none, and a BatchNorm: 100
parameters a block more than SE-ResNet. In the authors' code that BatchNorm's scale
starts at zero and its running statistics have a momentum of their own (0.99); here both
are as everywhere else [choice].

The MACs printed for 50 and 101 layers, 3864 M and 7581 M, are those of
`variant="msra"`: see `se`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.models.comparison.se import ChannelGate
from vt_flax.models.resnet import Classifier
from vt_flax.nn.layers import Layers

SPATIAL_KERNEL = 7


def maximum(x: jax.Array, axis: int) -> jax.Array:
    """Returns the maximum along an axis; its gradient goes to the first of the largest.

    The gradient of `jnp.max` compares x with the result. Where the compiler recomputes
    x for that, with other rounding, nothing is equal, and it divides by zero.
    """
    first = jnp.argmax(x, axis, keepdims=True)
    indices = jax.lax.broadcasted_iota(first.dtype, x.shape, axis)
    return jnp.sum(jnp.where(indices == first, x, 0.0), axis)


class SpatialGate(nn.Module):
    """Spatial attention: x sigmoid(BN(7 x 7 convolution of [maximum, mean])).

    Maximum and mean are over the channels.

    Attributes:
      layers: dtype and BatchNorm settings; the mean is float32.
    """

    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Scales the pixels of (batch, H, W, C).

        Source: Woo et al., equation 3; maximum before mean, and the BatchNorm, as in
        the authors' code.
        """
        full = x.astype(jnp.float32)
        pooled = jnp.stack([maximum(full, axis=3), jnp.mean(full, axis=3)], axis=3)
        weights = self.layers.conv(1, SPATIAL_KERNEL, name="conv")(pooled)
        weights = nn.sigmoid(self.layers.batch_norm("norm")(weights, train=train))
        return x.astype(self.layers.dtype) * weights


class Gates(nn.Module):
    """Channel gate by the mean and the maximum over the pixels, then spatial gate.

    Attributes:
      layers: dtype and BatchNorm settings.
    """

    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Scales (batch, H, W, C).

        Source: Woo et al., equation 2 for the channel gate.
        """
        poolings = (jnp.mean, maximum)
        gate = ChannelGate(poolings=poolings, layers=self.layers, name="channel")
        x = gate(x, train=train)
        return SpatialGate(self.layers, name="spatial")(x, train=train)


class CBAMResNet(Classifier):
    """CBAM-ResNet-{18, 34, 50, 101}; options as in `Classifier`."""

    @nn.nowrap
    def block_options(self, stage: int) -> dict[str, Any]:
        """See `Backbone`."""
        del stage
        return {"gate": Gates}

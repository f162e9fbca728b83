"""SE-ResNet: residual branches whose channels are gated (Hu et al., 2018).

The gate stands after the branch's last normalisation, before the sum, in basic blocks
as in bottlenecks, and reduces the channels 16 times. Its paper does not say whether its
two maps have biases: with them the counts are 11.78, 21.96, 28.09 and 49.33 M
parameters, as published.

The MACs printed for 50 and 101 layers, 3860 M and 7575 M, are those of
`variant="msra"`; with the stride in the 3 x 3, the default here as in torchvision, they
are 4092 M and 7806 M.
"""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.models.resnet import BlockParts, ResNet
from vt_flax.nn.norm import Normalization

REDUCTION = 16


def channel_map(pooled: jax.Array, dtype: Any) -> jax.Array:
    """Maps pooled channels (..., C) to C / 16, ReLU, C, inside a compact method.

    Fewer than 16 channels are reduced to one.
    """
    channels = pooled.shape[-1]
    hidden = nn.Dense(max(1, channels // REDUCTION), dtype=dtype, name="reduce")(pooled)
    return nn.Dense(channels, dtype=dtype, name="expand")(nn.relu(hidden))


class ChannelGate(nn.Module):
    """x times sigmoid(W_2 ReLU(W_1 mean of x over the pixels)).

    Attributes:
      dtype: type of the computation; the mean is float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Scales the channels of (batch, H, W, C); the same in training.

        Source: Hu et al., equations 2 to 4.
        """
        del train
        chex.assert_rank(x, 4)
        pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        weights = nn.sigmoid(channel_map(pooled, self.dtype))
        return x.astype(self.dtype) * weights[:, None, None]


def _gate(*, dtype: Any, norm: Normalization, name: str) -> nn.Module:
    del norm
    return ChannelGate(dtype, name=name)


class SEResNet(ResNet):
    """SE-ResNet-{18, 34, 50, 101}; options as in `Classifier`."""

    def block_parts(self, stage: int) -> BlockParts:
        """Returns the parts of a gated block."""
        del stage
        return BlockParts(gate=_gate)

"""SE-ResNet: residual branches whose channels are gated (Hu et al., 2018).

The gate stands after the branch's last normalisation, before the sum, in basic blocks
as in bottlenecks, and reduces the channels 16 times. Its paper does not say whether its
two maps have biases: with them the counts are 11.78, 21.96, 28.09 and 49.33 M
parameters, as published.

The MACs printed for 50 and 101 layers, 3860 M and 7575 M, are those of
`variant="msra"`; with the stride in the 3 x 3, the default here as in torchvision, they
are 4092 M and 7806 M.
"""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.errors import UserError
from vt_flax.models.resnet import BlockParts, ResNet
from vt_flax.nn.norm import Normalization

REDUCTION = 16


def reduced_width(channels: int, multiple: int = 1) -> int:
    """Returns C / 16, rounded to the nearest multiple, and at least one of it."""
    if multiple < 1:
        raise UserError(f"gate_multiple {multiple}: must be at least 1")
    step = REDUCTION * multiple
    return max(1, (channels + step // 2) // step) * multiple


def channel_map(pooled: jax.Array, dtype: Any, multiple: int = 1) -> jax.Array:
    """Maps pooled channels (..., C) to C / 16, ReLU, C, inside a compact method.

    The width inside is `reduced_width`'s.
    """
    channels = pooled.shape[-1]
    width = reduced_width(channels, multiple)
    hidden = nn.Dense(width, dtype=dtype, name="reduce")(pooled)
    return nn.Dense(channels, dtype=dtype, name="expand")(nn.relu(hidden))


class ChannelGate(nn.Module):
    """x times sigmoid(W_2 ReLU(W_1 mean of x over the pixels)).

    Attributes:
      dtype: type of the computation; the mean is float32.
      multiple: of which the width inside is one.
    """

    dtype: Any = jnp.float32
    multiple: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Scales the channels of (batch, H, W, C); the same in training.

        Source: Hu et al., equations 2 to 4.
        """
        del train
        chex.assert_rank(x, 4)
        pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        weights = nn.sigmoid(channel_map(pooled, self.dtype, self.multiple))
        return x.astype(self.dtype) * weights[:, None, None]


def _gate(multiple: int, *, dtype: Any, norm: Normalization, name: str) -> nn.Module:
    del norm
    return ChannelGate(dtype, multiple, name=name)


class SEResNet(ResNet):
    """SE-ResNet-{18, 34, 50, 101}; options as in `Classifier`, and one.

    Attributes:
      gate_multiple: of which the reduced widths of the gates are one. With 8 they are
        timm's: 8 instead of 4 in the first stage of 18 and 34 layers.
    """

    gate_multiple: int = 1

    @nn.nowrap
    def block_parts(self, stage: int) -> BlockParts:
        """Returns the parts of a gated block."""
        del stage
        return BlockParts(gate=functools.partial(_gate, self.gate_multiple))

"""SE-ResNet: residual branches whose channels are gated (Hu et al., 2018).

The gate stands after the branch's last BatchNorm, before the sum, in basic blocks as in
bottlenecks, and reduces the channels 16 times. Its two maps have biases, as the
published parameters show.

The MACs printed for 50 and 101 layers, 3860 M and 7575 M, are those of
`variant="msra"`; with the stride in the 3 x 3, the default here as in torchvision, they
are 4092 M and 7806 M.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.models.resnet import Classifier
from vt_flax.nn.checks import check_at_least
from vt_flax.nn.layers import Layers

REDUCTION = 16


class ChannelGate(nn.Module):
    """Channel gate: x times sigmoid(sum over poolings of M(x pooled over the pixels)).

    M is one two-layer map: C to C / 16, ReLU, C.

    Attributes:
      multiple: C / 16 is rounded to the nearest multiple of it, and at least to it.
      poolings: functions that pool (batch, pixels, C) over `axis`; SE takes the mean.
      layers: dtype; poolings are float32.
    """

    multiple: int = 1
    poolings: tuple[Callable[..., jax.Array], ...] = (jnp.mean,)
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Scales the channels of (batch, H, W, C); the same in training.

        Source: Hu et al., equations 2 to 4.
        """
        del train
        batch, height, width, channels = x.shape
        dtype, step = self.layers.dtype, REDUCTION * self.multiple
        reduced = max(1, (channels + step // 2) // step) * self.multiple
        full = x.astype(jnp.float32).reshape(batch, height * width, channels)
        pooled = jnp.stack([pool(full, axis=1) for pool in self.poolings], axis=1)
        hidden = nn.relu(nn.Dense(reduced, dtype=dtype, name="reduce")(pooled))
        logits = nn.Dense(channels, dtype=dtype, name="expand")(hidden).sum(axis=1)
        return x.astype(dtype) * nn.sigmoid(logits)[:, None, None]


class SEResNet(Classifier):
    """SE-ResNet-{18, 34, 50, 101}; options as in `Classifier`, and one.

    Attributes:
      gate_multiple: the reduced widths of the gates are multiples of it. With 8 they
        are timm's: 8 instead of 4 in the first stage of 18 and 34 layers.
    """

    gate_multiple: int = 1

    def __post_init__(self):
        check_at_least(1, gate_multiple=self.gate_multiple)
        super().__post_init__()

    @nn.nowrap
    def block_options(self, stage: int) -> dict[str, Any]:
        """See `Backbone`."""
        del stage
        return {"gate": functools.partial(ChannelGate, self.gate_multiple)}

"""LR-Net: residual networks of local relation layers (Hu et al., 2019)."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.models.comparison.local_attention import Window, attend
from vt_flax.models.resnet import Classifier, Stem
from vt_flax.nn.layers import Layers, pad

# Numbers of blocks of stages 2 to 5, and whether they are bottlenecks.
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    26: ((2, 2, 2, 2), True),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}

# Channels inside a bottleneck, and of a basic block, where ResNet's width is 64.
INNER, BASIC = 100, 177

# Number of channels per weight of a local relation layer.
GROUP_CHANNELS = 8


def composability(query: jax.Array, prior: jax.Array, key: jax.Array) -> jax.Array:
    """Returns -(q - k)^2 + g: an offset's logits (batch, H', W', groups), float32."""
    return prior - jnp.square(query.astype(jnp.float32) - key.astype(jnp.float32))


class LocalRelation(nn.Module):
    """Local relation layer: values weighted by the softmax of -(q - k)^2 + g.

    Query and key are one number per 8 channels (the last group may be smaller); g is a
    two-layer map of the offset. The values are the input itself, and a 1 x 1 map
    follows. Beyond the border keys and values are zero, and take part in the softmax
    [choice: the paper is silent].

    Attributes:
      features: output channels.
      stride: stride in pixels: windows are around every `stride`-th pixel.
      size: side of the window in pixels, odd.
      layers: dtype; the softmax is float32.
    """

    features: int
    stride: int = 1
    size: int = 7
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H / stride, W / stride, features).

        Source: Hu et al. (2019), section 3; the map of offsets has as many hidden
        channels as outputs [choice].
        """
        window = Window(self.size, self.stride)
        x = x.astype(self.layers.dtype)
        groups = math.ceil(x.shape[-1] / GROUP_CHANNELS)
        query = self.layers.linear(groups, name="query")(window.centers(x))
        key = self.layers.linear(groups, name="key")(x)
        # Rows down and columns right, from -1 to 1.
        steps = jnp.linspace(-1.0, 1.0, self.size, dtype=jnp.float32)
        offsets = jnp.stack(jnp.meshgrid(steps, steps, indexing="ij"), -1).reshape(
            -1, 2
        )
        prior = nn.relu(nn.Dense(groups, name="geometry1")(offsets))
        prior = nn.Dense(groups, name="geometry2")(prior)
        x = attend(composability, window, GROUP_CHANNELS, query, prior, key, x)
        return self.layers.linear(self.features, name="out")(x)


class LRStem(Stem):
    """Stem of LR-Net: 1 x 1 convolution, local relation layer and max pooling.

    The layer has stride 2, and 3 x 3 max pooling of stride 2 follows; the kind `small`
    has neither stride nor pooling. Attributes as in `Stem`.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images (batch, H, W, 3) to (batch, H / 4, W / 4, features), or H, W."""
        layers, stride = self.layers, 2 if self.kind == "imagenet" else 1
        x = layers.conv(self.features, 1, name="conv")(x)
        x = nn.relu(layers.batch_norm("norm")(x, train=train))
        x = LocalRelation(self.features, stride, layers=layers, name="relation")(x)
        x = nn.relu(layers.batch_norm("relation_norm")(x, train=train))
        if self.kind == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), pad(3))
        return x


class LRNet(Classifier):
    """LR-Net-{18, 26, 50, 101}; options as in `Classifier`.

    ResNet with a 7 x 7 local relation layer for every convolution that is not 1 x 1,
    and bottlenecks of 100 to 800 channels inside instead of 64 to 512.

    The width 177 of the basic blocks gives the published parameters; the paper names no
    width [fit]. The printed GMACs are 0.29 more than those counted here: as much as the
    stem's layer costs if it is computed at every pixel and strided afterwards [fit].
    """

    @nn.nowrap
    def stage_width(self, stage: int) -> int:
        """See `Backbone`."""
        width = self.width if self.bottleneck else self.width * BASIC // 64
        return width * 2 ** (stage - 2)

    @nn.nowrap
    def block_options(self, stage: int) -> dict[str, Any]:
        """See `Backbone`."""

        def conv(features, kernel, stride, **options):
            del kernel
            return LocalRelation(features, stride, **options)

        if not self.bottleneck:
            return {"conv": conv}
        return {"conv": conv, "inner_features": self.stage_width(stage) * INNER // 64}

    @nn.nowrap
    def make_stem(self) -> nn.Module:
        """See `Backbone`."""
        layers = self.layer_settings()
        return LRStem(self.width, self.stem, layers, name="stem")

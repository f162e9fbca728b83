"""AA-ResNet: attention-augmented convolutions in the last three stages.

Bello et al., 2019. Augmented are the 3 x 3 of each bottleneck, and the first 3 x 3 of
each basic block: attention makes 0.1 (0.25 in basic blocks) of the channels, with 0.2
(0.25) of them as keys, but at least 20 per head. Stage 3's maps, 28 x 28 of an image of
224, are attended at half their resolution.

The paper leaves open, and the published parameters decide: channels of attention are
rounded down to a multiple of the heads (8 of 128, not 16), and its maps have no biases.
Where the convolution has a stride of 2, attention sees means of 3 x 3 pixels with
stride 2, as it does for stage 3 [choice].
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vt_flax.errors import UserError
from vt_flax.models.resnet import Classifier
from vt_flax.nn.checks import check_at_least
from vt_flax.nn.layers import Layers, pad, resize, split_heads

# Channels of keys and of values as fractions of a convolution's output channels.
BASIC_FRACTIONS = (0.25, 0.25)
BOTTLENECK_FRACTIONS = (0.2, 0.1)
# Per head.
MIN_KEY_CHANNELS = 20


def halve(x: jax.Array) -> jax.Array:
    """Averages 3 x 3 windows with stride 2, over the pixels that lie on the map.

    Maps (batch, H, W, C) to (batch, ceil(H / 2), ceil(W / 2), C).
    """
    return nn.avg_pool(x, (3, 3), (2, 2), pad(3), count_include_pad=False)


class RelativeAttention(nn.Module):
    """Multi-head self-attention over all pixels with relative position embeddings.

    Pixel i = (y, x) attends to j = (v, u) by the softmax over all j of
    q_i . (k_j + rows[v - y] + columns[u - x]) / sqrt(d). All heads use the same rows
    and columns; a 1 x 1 map mixes their outputs.

    There are embeddings for the offsets within the map at initialization. On a larger
    map, offsets beyond them use the farthest embedding.

    Attributes:
      heads: number of heads.
      key_channels: d_k of all heads; d = d_k / heads.
      value_channels: d_v of all heads, and output channels.
      layers: dtype; the softmax is float32.
    """

    heads: int
    key_channels: int
    value_channels: int
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H, W, value_channels).

        Source: Bello et al., equations 1 to 4.
        """
        batch, height, width, channels = x.shape
        keys, values, dtype = self.key_channels, self.value_channels, self.layers.dtype
        x = x.astype(dtype).reshape(batch, height * width, channels)
        maps = self.layers.linear(2 * keys + values, name="maps")(x)
        query, key, value = (
            split_heads(part, self.heads)
            for part in jnp.split(maps, (keys, 2 * keys), axis=-1)
        )
        query_map = query.reshape(batch, height, width, *query.shape[2:])
        rows = self.embeddings("rows", height)
        columns = self.embeddings("columns", width)
        by_key = jnp.einsum("bphd,bqhd->bhpq", query, key)
        by_row = jnp.einsum("byxhd,yvd->bhyxv", query_map, rows)
        by_column = jnp.einsum("byxhd,xud->bhyxu", query_map, columns)
        by_position = by_row.astype(jnp.float32)[..., None] + by_column[..., None, :]
        logits = by_key + by_position.reshape(by_key.shape)
        weights = jax.nn.softmax(logits / query.shape[-1] ** 0.5, axis=-1)
        mixed = jnp.einsum("bhpq,bqhd->bphd", weights.astype(dtype), value)
        mixed = mixed.reshape(batch, height, width, values)
        return self.layers.linear(values, name="output")(mixed)

    def embeddings(self, name: str, size: int) -> jax.Array:
        """Returns embeddings of offsets between positions, (size, size, d)."""
        channels = self.key_channels // self.heads
        reach = size - 1
        if self.has_variable("params", name):
            reach = self.get_variable("params", name).shape[0] // 2
        init = nn.initializers.normal(channels**-0.5)
        table = self.param(name, init, (2 * reach + 1, channels), jnp.float32)
        offsets = np.arange(size)[None, :] - np.arange(size)[:, None]
        indices = np.clip(offsets, -reach, reach) + reach
        return table.astype(self.layers.dtype)[indices]


class AugmentedConv(nn.Module):
    """Convolution and attention over the whole map, with their outputs concatenated.

    The attention's input is halved by `halve` for a stride of 2, and once more for a
    `reduction` of 2; its output is resized bilinearly to the convolution's.

    Attributes:
      features: output channels: first the convolution's, then attention's.
      kernel: odd kernel size in pixels.
      stride: 1 or 2 pixels.
      heads, key_channels: see `RelativeAttention`.
      value_channels: number of output channels that come from attention.
      reduction: 1 to attend at the output's resolution, 2 at half of it.
      layers: dtype.
    """

    features: int
    kernel: int
    stride: int = 1
    heads: int = 8
    key_channels: int = 160
    value_channels: int = 8
    reduction: int = 1
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H / stride, W / stride, features).

        Raises:
          UserError: if attention leaves no channel to the convolution.

        Source: Bello et al., section 3.2.
        """
        layers, channels = self.layers, self.features - self.value_channels
        if channels < 1:
            raise UserError(
                f"{self.value_channels} channels of attention leave none of "
                f"{self.features} to the convolution (at {'/'.join(self.path)}): "
                "choose a larger width or fewer heads"
            )
        local = layers.conv(channels, self.kernel, self.stride, name="local")(x)
        for factor in (self.stride, self.reduction):
            x = halve(x) if factor == 2 else x
        attended = RelativeAttention(
            self.heads, self.key_channels, self.value_channels, layers, name="attention"
        )(x)
        return jnp.concatenate([local, resize(attended, *local.shape[1:3])], axis=-1)


class AAResNet(Classifier):
    """AA-ResNet-{34, 50, 101}; options as in `Classifier`, and `heads`.

    Attributes:
      heads: number of heads of each attention.
    """

    heads: int = 8

    def __post_init__(self):
        check_at_least(1, heads=self.heads)
        super().__post_init__()

    @nn.nowrap
    def block_options(self, stage: int) -> dict[str, Any]:
        """See `Backbone`: convolutions are augmented from stage 3 on."""
        if stage == 2:
            return {}
        fractions = BOTTLENECK_FRACTIONS if self.bottleneck else BASIC_FRACTIONS
        heads, reduction = self.heads, 2 if stage == 3 else 1

        def conv(features, *args, layers, name):
            if name == "conv2" and not self.bottleneck:
                return layers.conv(features, *args, name=name)
            keys, values = (int(fraction * features) // heads for fraction in fractions)
            keys, values = heads * max(keys, MIN_KEY_CHANNELS), heads * max(values, 1)
            return AugmentedConv(
                features, *args, heads, keys, values, reduction, layers, name=name
            )

        return {"conv": conv}

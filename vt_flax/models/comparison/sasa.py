"""Stand-alone self-attention in a residual network (Ramachandran et al., 2019)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.errors import UserError
from vt_flax.models.comparison.local_attention import Window, attend, product
from vt_flax.models.resnet import Classifier, Stem
from vt_flax.nn.layers import Layers, pad_end, split_heads

# Numbers of blocks of stages 2 to 5, all bottlenecks.
STAGE_SIZES = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3)}


def attention_logits(
    heads: int, query: jax.Array, relative: jax.Array, key: jax.Array
) -> jax.Array:
    """Returns q . k + q . r: an offset's logits (batch, H, W, heads), float32."""
    query = query.astype(jnp.float32)
    products = product(query, key.astype(jnp.float32)) + product(query, relative)
    return split_heads(products, heads).sum(-1)


class StandAloneAttention(nn.Module):
    """Multi-head attention over a window: softmax of q . k + q . r, without a scale.

    r, the relative position, is a learned vector of the row in the first half of each
    head's channels and one of the column in the second; a middle channel has the sum of
    both. Query, key and value maps see all channels. Beyond the border keys and values
    are zero, and take part in the softmax with q . r alone [choice: the paper is
    silent]. Mean pooling makes the stride.

    Attributes:
      features: output channels.
      heads: number of heads.
      stride: stride in pixels; at an odd side the last pixels are pooled alone.
      size: side of the window in pixels, odd.
      layers: dtype; the softmax is float32.
    """

    features: int
    heads: int = 8
    stride: int = 1
    size: int = 7
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H / stride, W / stride, features).

        Source: Ramachandran et al. (2019), section 3.1.
        """
        query, key, value = (
            self.layers.linear(self.features, name=name)(x)
            for name in ("query", "key", "value")
        )
        depth = self.features // self.heads
        score = functools.partial(attention_logits, self.heads)
        relative = self.relative_positions(depth)
        x = attend(score, Window(self.size), depth, query, relative, key, value)
        if self.stride == 1:
            return x
        stride = (self.stride, self.stride)
        padding = pad_end(x, self.stride)
        return nn.avg_pool(x, stride, stride, padding, count_include_pad=False)

    def relative_positions(self, depth: int) -> jax.Array:
        """Returns r of each offset, (size * size, features), float32."""
        half = -(-depth // 2)
        rest, shape = depth - half, (self.size, self.heads, half)
        row, column = (
            self.param(name, nn.initializers.normal(0.1), shape, jnp.float32)
            for name in ("row", "column")
        )
        row = jnp.pad(row, ((0, 0), (0, 0), (0, rest)))
        column = jnp.pad(column, ((0, 0), (0, 0), (rest, 0)))
        return (row[:, None] + column[None]).reshape(-1, self.features)


class BlockAttention(nn.Module):
    """Attention of the stem: inside blocks of pixels, with values by position.

    Each 4 x 4 block attends to itself. A pixel's value is x under a mixture of maps,
    the mixture a softmax of (row + column) . nu over learned vectors of its row and
    column in the block and of each map. Where a block reaches over the border, pixels
    beyond it are zero, and take part in the softmax [choice].

    Attributes:
      features: output channels.
      heads: number of heads.
      size: side of a block in pixels.
      mixtures: number of value maps [choice: the paper is silent].
      layers: dtype; the softmax is float32.
    """

    features: int
    heads: int = 8
    size: int = 4
    mixtures: int = 4
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H, W, features).

        Source: Ramachandran et al. (2019), section 3.2.
        """
        batch, height, width, channels = x.shape
        dtype, size = self.layers.dtype, self.size
        x = jnp.pad(x.astype(dtype), ((0, 0), *pad_end(x, size), (0, 0)))
        padded, rows, columns = x.shape[:3], x.shape[1] // size, x.shape[2] // size
        # Axes: example, row of blocks, row in a block, column of blocks, column in one.
        x = x.reshape(batch, rows, size, columns, size, channels)
        query, key = (
            split_heads(self.layers.linear(self.features, name=name)(x), self.heads)
            for name in ("query", "key")
        )
        shape = (self.mixtures, channels, self.features)
        init = nn.initializers.lecun_normal(batch_axis=(0,))
        maps = self.param("value", init, shape, jnp.float32)
        maps = jnp.einsum("xym,mio->xyio", self.mixture(), maps).astype(dtype)
        value = split_heads(jnp.einsum("brxcyi,xyio->brxcyo", x, maps), self.heads)
        logits = jnp.einsum(
            "brucvgd,brxcygd->brucvgxy", query, key, preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(logits, axis=(-2, -1)).astype(dtype)
        out = jnp.einsum("brucvgxy,brxcygd->brucvgd", weights, value)
        return out.reshape(*padded, self.features)[:, :height, :width]

    def mixture(self) -> jax.Array:
        """Returns each map's weight at each position, (size, size, mixtures)."""
        init = nn.initializers.normal(self.features**-0.5)
        shape = (self.size, self.features)
        row = self.param("row", init, shape, jnp.float32)
        column = self.param("column", init, shape, jnp.float32)
        init, shape = nn.initializers.normal(1.0), (self.mixtures, self.features)
        mixture = self.param("mixture", init, shape, jnp.float32)
        return jax.nn.softmax((row[:, None] + column) @ mixture.T, axis=-1)


class AttentionStem(Stem):
    """Stem of attention inside 4 x 4 blocks, and max pooling over the same blocks.

    The kind `small` does not pool. Attributes as in `Stem`, and `heads`.
    """

    heads: int = 8

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images (batch, H, W, 3) to (batch, H / 4, W / 4, features), or H, W."""
        attention = BlockAttention(
            self.features, self.heads, layers=self.layers, name="attention"
        )
        x = self.layers.batch_norm("norm")(attention(x), train=train)
        if self.kind == "imagenet":
            x = nn.max_pool(x, (4, 4), (4, 4), pad_end(x, 4))
        return x


class StandAloneResNet(Classifier):
    """Stand-Alone ResNet-{26, 38, 50}; options as in `Classifier`, and `heads`.

    ResNet's bottlenecks with 7 x 7 attention for the 3 x 3 convolution, and a stem of
    attention. `variant="msra"` strides in the first 1 x 1, without pooling.

    The printed GMACs are 0.09 to 0.12 more than those counted here, all of it in the
    stem, whose value maps are mixed before they are applied: as that depends on the
    position alone, they count as one.

    Attributes:
      heads: number of heads of every attention.
    """

    heads: int = 8

    def __post_init__(self):
        if self.heads < 1 or self.width % self.heads:
            raise UserError(
                f"{self.heads} heads do not divide width={self.width}: change heads"
            )
        super().__post_init__()

    @nn.nowrap
    def block_options(self, stage: int) -> dict[str, Any]:
        """See `Backbone`."""
        del stage

        def conv(features, kernel, stride, **options):
            del kernel
            return StandAloneAttention(features, self.heads, stride, **options)

        return {"conv": conv}

    @nn.nowrap
    def make_stem(self) -> nn.Module:
        """See `Backbone`."""
        layers = self.layer_settings()
        return AttentionStem(self.width, self.stem, layers, self.heads, name="stem")

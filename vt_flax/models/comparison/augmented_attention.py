"""Convolution augmented by attention over all pixels (Bello et al., 2019)."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vt_flax.errors import UserError
from vt_flax.nn.layers import Conv, Linear, pad, resize, split_heads


def halve(x: jax.Array) -> jax.Array:
    """Takes 3 x 3 means with stride 2, over what of a window lies on the map.

    Maps (batch, H, W, C) to (batch, ceil(H / 2), ceil(W / 2), C).
    """
    return nn.avg_pool(x, (3, 3), (2, 2), pad(3), count_include_pad=False)


class RelativeAttention(nn.Module):
    """Multi-head self-attention over the pixels with relative positions.

    Pixel i = (y, x) attends to j = (v, u) by the softmax over all j of
    q_i . (k_j + rows[v - y] + columns[u - x]) / sqrt(d); the heads share rows and
    columns, and a 1 x 1 map mixes what they return.

    The embeddings are of the offsets within the map that the parameters were made for.
    On a larger map, offsets beyond these are taken as the farthest.

    Attributes:
      heads: number of heads.
      key_channels: d_k of all heads; d = d_k / heads.
      value_channels: d_v of all heads, and the output's channels.
      dtype: type of the computation; the softmax is float32.
    """

    heads: int
    key_channels: int
    value_channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H, W, value_channels).

        Raises:
          UserError: if the heads do not divide the channels.

        Source: Bello et al., equations 1 to 4.
        """
        chex.assert_rank(x, 4)
        batch, height, width, channels = x.shape
        pixels, keys = height * width, self.key_channels
        x = x.astype(self.dtype).reshape(batch, pixels, channels)
        maps = Linear(2 * keys + self.value_channels, dtype=self.dtype, name="maps")(x)
        query, key, value = (
            split_heads(part, self.heads)
            for part in jnp.split(maps, (keys, 2 * keys), axis=-1)
        )
        placed = query.reshape(batch, height, width, *query.shape[2:])
        rows = self.embeddings("rows", height)
        columns = self.embeddings("columns", width)
        by_key = jnp.einsum("bphd,bqhd->bhpq", query, key)
        by_row = jnp.einsum("byxhd,yvd->bhyxv", placed, rows)
        by_column = jnp.einsum("byxhd,xud->bhyxu", placed, columns)
        by_place = by_row.astype(jnp.float32)[..., None] + by_column[..., None, :]
        logits = by_key + by_place.reshape(by_key.shape)
        weights = jax.nn.softmax(logits / query.shape[-1] ** 0.5, axis=-1)
        mixed = jnp.einsum("bhpq,bqhd->bphd", weights.astype(self.dtype), value)
        mixed = mixed.reshape(batch, height, width, self.value_channels)
        return Linear(self.value_channels, dtype=self.dtype, name="output")(mixed)

    def embeddings(self, name: str, size: int) -> jax.Array:
        """Returns (size, size, d): of the offset from each place to each other."""
        channels = self.key_channels // self.heads
        reach = size - 1
        if self.has_variable("params", name):
            reach = self.get_variable("params", name).shape[0] // 2
        table = self.param(
            name,
            nn.initializers.normal(channels**-0.5),
            (2 * reach + 1, channels),
            jnp.float32,
        )
        offsets = np.arange(size)[None, :] - np.arange(size)[:, None]
        return table.astype(self.dtype)[np.clip(offsets, -reach, reach) + reach]


class AugmentedConv(nn.Module):
    """A k x k convolution, some of whose channels attention over the whole map makes.

    The attention's input is halved by means once for a stride of 2, and once more for
    `reduction` 2; its output is enlarged bilinearly to the convolution's map.

    Attributes:
      features: output channels: first the convolution's, then attention's.
      kernel: odd kernel size in pixels.
      stride: 1 or 2 pixels.
      dtype: type of the computation.
      heads: see `RelativeAttention`.
      key_channels: see `RelativeAttention`.
      value_channels: of the output channels, those of attention.
      reduction: 1 to attend at the output's resolution, 2 at half of it.
    """

    features: int
    kernel: int
    stride: int = 1
    dtype: Any = jnp.float32
    heads: int = 8
    key_channels: int = 160
    value_channels: int = 8
    reduction: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H / stride, W / stride, features).

        Raises:
          UserError: if attention leaves no channel to the convolution.

        Source: Bello et al., section 3.2.
        """
        chex.assert_rank(x, 4)
        channels = self.features - self.value_channels
        if channels < 1:
            raise UserError(
                f"{self.value_channels} channels of attention leave none of "
                f"{self.features} to the convolution (at {'/'.join(self.path)}): "
                "choose a larger width or fewer heads"
            )
        near = Conv(channels, self.kernel, self.stride, self.dtype, name="local")(x)
        for factor in (self.stride, self.reduction):
            x = halve(x) if factor == 2 else x
        far = RelativeAttention(
            self.heads,
            self.key_channels,
            self.value_channels,
            self.dtype,
            name="attention",
        )(x)
        return jnp.concatenate([near, resize(far, *near.shape[1:3])], axis=-1)

"""Attention in place of convolution (Ramachandran et al., 2019): layer and stem."""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.models.comparison.local_attention import (
    aggregate,
    attend,
    check_formulation,
    product,
)
from vt_flax.models.comparison.windows import Window
from vt_flax.nn.layers import Linear, pad_end, split_heads


def _logits(
    heads: int, query: jax.Array, relative: jax.Array, key: jax.Array
) -> jax.Array:
    """The logits of an offset, (batch, H, W, heads): q . k + q . r."""
    query = query.astype(jnp.float32)
    products = product(query, key.astype(jnp.float32)) + product(query, relative)
    return split_heads(products, heads).sum(-1)


class StandAloneAttention(nn.Module):
    """Multi-head attention over a window: softmax of q . k + q . r, without a scale.

    r, the relative position, is a learned vector of the row in the first half of each
    head's channels and one of the column in the second; a channel in the middle has the
    sum of both. Query, key and value maps see all channels. Beyond the border keys and
    values are zero, and take part in the softmax with q . r alone [choice: the paper is
    silent].

    Attributes:
      features: output channels.
      heads: number of heads.
      size: side of the window in pixels, odd.
      formulation: see `models.comparison.local_attention`.
      dtype: type of the computation; the softmax is float32.
    """

    features: int
    heads: int = 8
    size: int = 7
    formulation: str = "scan"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H, W, features).

        Raises:
          UserError: for channels that the heads do not divide.

        Source: Ramachandran et al. (2019), section 3.1.
        """
        chex.assert_rank(x, 4)
        check_formulation(self.formulation)
        window = Window(self.size)
        query, key, value = (
            Linear(self.features, dtype=self.dtype, name=name)(x)
            for name in ("query", "key", "value")
        )
        queries = split_heads(query, self.heads)
        depth = queries.shape[-1]
        relative = self._relative(depth)
        if self.formulation == "scan":
            score = functools.partial(_logits, self.heads)
            of_offset = relative.reshape(-1, self.features)
            return attend(score, window, depth, query, of_offset, key, value)
        keys = split_heads(window.unfold(key), self.heads)
        logits = jnp.einsum(
            "bhwgd,bhwogd->bhwog", queries, keys, preferred_element_type=jnp.float32
        )
        queries = queries.astype(jnp.float32)
        logits += jnp.einsum("bhwgd,ogd->bhwog", queries, relative)
        return aggregate(jax.nn.softmax(logits, axis=3), window.unfold(value), depth)

    def _relative(self, depth: int) -> jax.Array:
        """Returns r of each offset, (size * size, heads, depth), float32."""
        half = -(-depth // 2)
        row, column = (
            self.param(
                name,
                nn.initializers.normal(0.1),
                (self.size, self.heads, half),
                jnp.float32,
            )
            for name in ("row", "column")
        )
        rest = depth - half
        row = jnp.pad(row, ((0, 0), (0, 0), (0, rest)))
        column = jnp.pad(column, ((0, 0), (0, 0), (rest, 0)))
        return (row[:, None] + column[None]).reshape(-1, self.heads, depth)


class BlockAttention(nn.Module):
    """The stem's attention: inside blocks of pixels, whose values know their place.

    Each 4 x 4 block attends to itself. A pixel's value is x under a mixture of maps,
    the mixture a softmax of (row + column) . nu over learned vectors of its row and
    column in the block and of each map. Where a block reaches over the border, pixels
    beyond it are zero, and take part in the softmax [choice].

    Attributes:
      features: output channels.
      heads: number of heads.
      size: side of a block in pixels.
      mixtures: number of value maps [choice: the paper is silent].
      dtype: type of the computation; the softmax is float32.
    """

    features: int
    heads: int = 8
    size: int = 4
    mixtures: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, H, W, C) to (batch, H, W, features).

        Raises:
          UserError: for channels that the heads do not divide.

        Source: Ramachandran et al. (2019), section 3.2.
        """
        chex.assert_rank(x, 4)
        height, width, channels = x.shape[1:]
        x = self._blocks(x.astype(self.dtype))
        query, key = (
            split_heads(
                Linear(self.features, dtype=self.dtype, name=name)(x), self.heads
            )
            for name in ("query", "key")
        )
        maps = self.param(
            "value",
            nn.initializers.lecun_normal(batch_axis=(0,)),
            (self.mixtures, channels, self.features),
            jnp.float32,
        )
        of_place = jnp.einsum("pm,mio->pio", self._mixture(), maps)
        value = jnp.einsum("bhwpi,pio->bhwpo", x, of_place.astype(self.dtype))
        value = split_heads(value, self.heads)
        logits = jnp.einsum(
            "bhwqgd,bhwpgd->bhwgqp", query, key, preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        out = jnp.einsum("bhwgqp,bhwpgd->bhwqgd", weights, value)
        rows, columns = x.shape[1:3]
        out = out.reshape(-1, rows, columns, self.size, self.size, self.features)
        out = out.transpose(0, 1, 3, 2, 4, 5)
        out = out.reshape(-1, rows * self.size, columns * self.size, self.features)
        return out[:, :height, :width]

    def _blocks(self, x: jax.Array) -> jax.Array:
        """Returns (batch, H / size, W / size, size * size, C), rounded up."""
        batch, _, _, channels = x.shape
        x = jnp.pad(x, ((0, 0), *pad_end(x, self.size), (0, 0)))
        rows, columns = (side // self.size for side in x.shape[1:3])
        x = x.reshape(batch, rows, self.size, columns, self.size, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, rows, columns, self.size**2, channels)

    def _mixture(self) -> jax.Array:
        """Returns the share of each map at each place, (size * size, mixtures)."""
        normal = nn.initializers.normal(self.features**-0.5)
        shape = (self.size, self.features)
        row = self.param("row", normal, shape, jnp.float32)
        column = self.param("column", normal, shape, jnp.float32)
        mixture = self.param(
            "mixture",
            nn.initializers.normal(1.0),
            (self.mixtures, self.features),
            jnp.float32,
        )
        place = (row[:, None] + column[None]).reshape(-1, self.features)
        return jax.nn.softmax(place @ mixture.T, axis=-1)

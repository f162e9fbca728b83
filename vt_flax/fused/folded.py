"""The folded formulation: products re-associated, by XLA alone.

With K the kernel of a head, (X K) q = X (K q) and a (X K) = (a X) K: attention needs no
key, query or value map on the pixels, if the few tokens are multiplied by the kernel
instead. Of a grouped map, a head needs its own block of the channels alone.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.fused.parameters import LinearKernel
from vt_flax.nn.batch_norm import BatchNorm
from vt_flax.nn.layers import VTLayers, split_heads
from vt_flax.nn.projector import Projector
from vt_flax.nn.tokenizers import DynamicTokenizer, StaticTokenizer
from vt_flax.nn.visual_transformer import VTParts


def can_fold(module: nn.Module, layers: VTLayers) -> bool:
    """Returns whether a module may leave out its maps of pixels.

    It may not where they are normalized, or where the caller collects attention maps,
    which have the printed form.
    """
    collects = module.is_mutable_collection("intermediates")
    return layers.norm_placement != "every_map" and not collects


def pool(
    x: jax.Array, filters: jax.Array, blocks: int, *, attention: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """Pools pixels by the softmax over the pixels of their products with filters.

    The C channels are `blocks` blocks, each with filters of its own. With x_g and F_g
    the columns of block g, A_g = softmax over pixels of F_g x_g^T; A_g x_g is returned.

    Args:
      x: (batch, pixels, C).
      filters: (batch, M, C), or (1, M, C) for the same in all examples; of the type of
        `x`.
      blocks: number of blocks.
      attention: whether A is wanted too.

    Returns:
      The pooled pixels, (batch, M, C), and A, (batch, blocks * M, pixels), or None; of
      the type of `x`. The softmax is float32.
    """
    batch, pixels, channels = x.shape
    rows, width = filters.shape[1], channels // blocks
    maps = x.reshape(batch, pixels, blocks, width)
    filters = filters.reshape(filters.shape[0], rows, blocks, width)
    filters = jnp.broadcast_to(filters, (batch, *filters.shape[1:]))
    logits = jnp.einsum(
        "bpgc,bmgc->bgmp", maps, filters, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
    pooled = jnp.einsum("bgmp,bpgc->bmgc", weights, maps)
    pooled = pooled.reshape(batch, rows, channels)
    if not attention:
        return pooled, None
    return pooled, weights.reshape(batch, blocks * rows, pixels)


def write_back(
    x: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    blocks: int,
    shortcut: jax.Array | None = None,
) -> jax.Array:
    """Adds tokens to pixels by the softmax over the tokens of each head.

    Consecutive heads share the blocks of the C channels: with x_g the columns of
    block g and K_h the keys of a head in it, W_h = softmax over tokens of K_h x_g^T;
    W_h^T V_h is added to x S, the heads side by side.

    Args:
      x: (batch, pixels, C).
      keys: (batch, M, C) of the type of `x`: of the M rows of a block each L, one after
        the other, are a head's.
      values: (batch, L, F) of the type of `x`; the heads are equal parts of F.
      blocks: number of blocks.
      shortcut: S, (1, C, F) of the type of `x`; None where F = C for `x` itself.

    Returns:
      (batch, pixels, F) of the type of `x`. The softmax is float32.
    """
    batch, pixels, channels = x.shape
    tokens, features = values.shape[1:]
    block_heads, width = keys.shape[1] // tokens, channels // blocks
    maps = x.reshape(batch, pixels, blocks, width)
    keys = keys.reshape(batch, block_heads, tokens, blocks, width)
    heads = block_heads * blocks
    logits = jnp.einsum(
        "bpgc,bklgc->bgklp", maps, keys, preferred_element_type=jnp.float32
    )
    attention = jax.nn.softmax(logits, axis=3).astype(x.dtype)
    attention = attention.reshape(batch, heads, tokens, pixels)
    values = values.reshape(batch, tokens, heads, features // heads)
    written = jnp.einsum("bhlp,blhd->bphd", attention, values)
    shortcut = x if shortcut is None else x @ shortcut[0]
    return written.reshape(batch, pixels, features) + shortcut


class FoldedStaticTokenizer(StaticTokenizer):
    """`StaticTokenizer` that maps the pooled pixels to values, not all pixels."""

    pool_pixels: ClassVar[Callable] = staticmethod(pool)

    def pool(self, x, *, train):
        """See `StaticTokenizer`."""
        if not can_fold(self, self.layers):
            return super().pool(x, train=train)
        channels, dtype = x.shape[-1], self.layers.dtype
        filters = LinearKernel(self.tokens, dtype=dtype, name="filter")(channels)
        filters = (jnp.swapaxes(filters, 1, 2) / channels**0.5).astype(dtype)
        pooled, attention = self.pool_pixels(
            x, filters, 1, attention=self.position_encoding
        )
        if self.value_groups:
            value = self.layers.linear(channels, self.value_groups, name="value")
            pooled = value(pooled)
        return pooled, attention


class FoldedDynamicTokenizer(DynamicTokenizer):
    """`DynamicTokenizer` that maps queries and pooled pixels, not all pixels."""

    pool_pixels: ClassVar[Callable] = staticmethod(pool)

    def pool(self, x, query, *, train):
        """See `DynamicTokenizer`."""
        if not can_fold(self, self.layers):
            return super().pool(x, query, train=train)
        channels, dtype = x.shape[-1], self.layers.dtype

        def kernel(name):
            return LinearKernel(channels, self.groups, dtype, name=name)(channels)

        query = query.reshape(*query.shape[:2], channels)
        pooled, attention = self.pool_pixels(
            x,
            fold(kernel("key"), query, self.heads),
            num_blocks(self.heads, self.groups),
            attention=self.position_encoding,
        )
        return apply_kernel(kernel("value"), pooled, self.heads), attention


class FoldedProjector(Projector):
    """`Projector` that maps keys instead of pixels."""

    write_pixels: ClassVar[Callable] = staticmethod(write_back)
    norm_class: ClassVar[type[BatchNorm]] = BatchNorm

    def write(self, x, key, value, *, train):
        """See `Projector`."""
        if not can_fold(self, self.layers):
            return super().write(x, key, value, train=train)
        batch, height, width, channels = x.shape

        def kernel(groups, name):
            dtype = self.layers.dtype
            return LinearKernel(self.features, groups, dtype, name=name)(channels)

        out = self.write_pixels(
            x.reshape(batch, height * width, channels),
            fold(kernel(self.groups, "query"), key, self.heads),
            value,
            num_blocks(self.heads, self.groups),
            None if channels == self.features else kernel(1, "shortcut"),
        )
        out = out.reshape(batch, height, width, self.features)
        if self.layers.norm_placement == "none":
            return out
        norm = self.layers.batch_norm("norm", kind=self.norm_class)
        return norm(out, train=train)


PARTS = VTParts(FoldedStaticTokenizer, FoldedDynamicTokenizer, FoldedProjector)


def num_blocks(heads: int, groups: int) -> int:
    """Returns the number of blocks of the channels that share no head."""
    return math.gcd(heads, groups)


def fold(kernel: jax.Array, rows: jax.Array, heads: int) -> jax.Array:
    """Multiplies rows by the transposed kernel of a map from pixels, head by head.

    Args:
      kernel: (groups, C / groups, F / groups).
      rows: (batch, L, F), which the mapped pixels would be multiplied with.
      heads: equal parts of F.

    Returns:
      (batch, M, C), to multiply the pixels with: M = heads / blocks * L, the heads of a
      block one after the other, L rows each.

    Raises:
      UserError: if the heads do not divide F.
    """
    batch, count, _ = rows.shape
    rows = split_heads(rows, heads)
    kernel = _by_head(kernel, heads)
    blocks, width, block_heads, depth = kernel.shape
    rows = rows.reshape(batch, count, blocks, block_heads, depth)
    folded = jnp.einsum("gckd,blgkd->bklgc", kernel, rows)
    return folded.reshape(batch, block_heads * count, blocks * width)


def apply_kernel(kernel: jax.Array, rows: jax.Array, heads: int) -> jax.Array:
    """Maps pooled pixels as the kernel would have mapped the pixels.

    Args:
      kernel: (groups, C / groups, F / groups).
      rows: (batch, M, C), as `fold` returns them.
      heads: equal parts of F.

    Returns:
      (batch, L, F).
    """
    kernel = _by_head(kernel, heads)
    blocks, width, block_heads, depth = kernel.shape
    batch, count = rows.shape[0], rows.shape[1] // block_heads
    rows = rows.reshape(batch, block_heads, count, blocks, width)
    mapped = jnp.einsum("gckd,bklgc->blgkd", kernel, rows)
    return mapped.reshape(batch, count, heads * depth)


def _by_head(kernel: jax.Array, heads: int) -> jax.Array:
    """(blocks, C / blocks, heads / blocks, F / heads) of a kernel in groups."""
    groups, inside, outside = kernel.shape
    blocks = num_blocks(heads, groups)
    block_groups = groups // blocks
    if block_groups > 1:
        kernel = kernel.reshape(blocks, block_groups, inside, outside)
        eye = jnp.eye(block_groups, dtype=kernel.dtype)
        kernel = jnp.einsum("gico,ij->gicjo", kernel, eye)
    return kernel.reshape(blocks, block_groups * inside, heads // blocks, -1)

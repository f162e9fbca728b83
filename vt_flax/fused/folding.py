"""Maps of pixels to heads, multiplied on the rows that the heads meet instead.

With K the kernel of a head, (X K) q = X (K q) and a (X K) = (a X) K: what attention
does with the maps of all pixels, it can do with the pixels as they are. Of a grouped
map a head needs its own block of the channels alone.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.nn.layers import split_heads
from vt_flax.nn.norm import Normalization


def fuses(module: nn.Module, formulation: str, norm: Normalization) -> bool:
    """Tells whether a module may leave out the maps between pixels and products.

    It may not where they are normalised, or where somebody asks for the softmax of each
    pixel: what is never made cannot be shown.
    """
    return (
        formulation == "fused"
        and norm.placement != "every_map"
        and not module.is_mutable_collection("intermediates")
    )


def head_blocks(heads: int, groups: int) -> int:
    """Returns how many blocks the channels are, none of which shares a head."""
    return math.gcd(heads, groups)


def fold(kernel: jax.Array, rows: jax.Array, heads: int) -> jax.Array:
    """Multiplies rows by the transposed kernel of a map from pixels, head by head.

    Args:
      kernel: (groups, C / groups, F / groups).
      rows: (batch, L, F), which the mapped pixels would meet.
      heads: equal parts of F.

    Returns:
      (batch, M, C), which the pixels meet: M = heads / blocks * L, the heads of a block
      one after the other, L rows each.

    Raises:
      UserError: if the heads do not divide F.
    """
    batch, count, _ = rows.shape
    rows = split_heads(rows, heads)
    kernel = _by_head(kernel, heads)
    blocks, width, each, depth = kernel.shape
    rows = rows.reshape(batch, count, blocks, each, depth)
    folded = jnp.einsum("gckd,blgkd->bklgc", kernel, rows)
    return folded.reshape(batch, each * count, blocks * width)


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
    blocks, width, each, depth = kernel.shape
    batch, count = rows.shape[0], rows.shape[1] // each
    rows = rows.reshape(batch, each, count, blocks, width)
    mapped = jnp.einsum("gckd,bklgc->blgkd", kernel, rows)
    return mapped.reshape(batch, count, heads * depth)


def _by_head(kernel: jax.Array, heads: int) -> jax.Array:
    """(blocks, C / blocks, heads / blocks, F / heads) of a kernel in groups."""
    groups, inside, outside = kernel.shape
    blocks = head_blocks(heads, groups)
    each = groups // blocks
    if each > 1:
        kernel = kernel.reshape(blocks, each, inside, outside)
        kernel = jnp.einsum("gico,ij->gicjo", kernel, jnp.eye(each, dtype=kernel.dtype))
    width = each * inside
    return kernel.reshape(blocks, width, heads // blocks, -1)

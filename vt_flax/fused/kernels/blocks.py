"""Matrices of blocks in on-chip memory: rows for each block of columns.

A compact matrix (M, C) whose C columns are `blocks` blocks stands for a block-diagonal
one (blocks * M, C): block g of its columns, in rows g * M to (g + 1) * M. It travels
compact: C is wide, so that no lane is padding.
"""

import jax
import jax.numpy as jnp

from vt_flax.nn.layers import precision_of

ROWS, COLUMNS = 0, 1


def product(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    """Sums over an axis of each of two matrices, to float32; in full if they are that.

    Args:
      x: a matrix.
      y: a matrix of the same type.
      x_axis: which axis of `x` is summed over.
      y_axis: which axis of `y`.
    """
    return jax.lax.dot_general(
        x,
        y,
        (((x_axis,), (y_axis,)), ((), ())),
        precision=precision_of(x),
        preferred_element_type=jnp.float32,
    )


def expand(compact: jax.Array, blocks: int) -> jax.Array:
    """Returns the block-diagonal matrix (blocks * M, C) of (M, C), of the same type."""
    rows, columns = compact.shape
    if blocks == 1:
        return compact
    repeated = product(_selection(rows, blocks, compact.dtype), compact, COLUMNS, ROWS)
    kept = jnp.where(_own_block(repeated.shape, blocks), repeated, 0.0)
    return kept.astype(compact.dtype)


def contract(full: jax.Array, blocks: int) -> jax.Array:
    """Returns the compact (M, C) of what lies on the diagonal of (blocks * M, C).

    Both float32; the adjoint of `expand`.
    """
    if blocks == 1:
        return full
    rows = full.shape[0] // blocks
    kept = jnp.where(_own_block(full.shape, blocks), full, 0.0)
    return product(_selection(rows, blocks, kept.dtype), kept, ROWS, ROWS)


def _selection(rows: int, blocks: int, dtype: jnp.dtype) -> jax.Array:
    """(blocks * rows, rows): which compact row a row is."""
    shape = (blocks * rows, rows)
    row = jax.lax.rem(jax.lax.broadcasted_iota(jnp.int32, shape, 0), rows)
    return (row == jax.lax.broadcasted_iota(jnp.int32, shape, 1)).astype(dtype)


def _own_block(shape: tuple[int, int], blocks: int) -> jax.Array:
    # Not //, which for the sake of negative numbers asks what chip it is on.
    row, column = (
        jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, shape, i), shape[i] // blocks)
        for i in (0, 1)
    )
    return row == column


def normalised(x: jax.Array, affine: jax.Array | None) -> jax.Array:
    """Returns x times scale plus bias, of the type of (pixels, C) `x`.

    `affine` is (2, C) float32, the scale and the bias; None leaves `x` as it is.
    """
    if affine is None:
        return x
    return (x.astype(jnp.float32) * affine[:1] + affine[1:]).astype(x.dtype)


def pixel_sums(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the sums over the pixels of two maps (pixels, C), as (2, C)."""
    return jnp.concatenate([jnp.sum(m, 0, keepdims=True) for m in (first, second)])

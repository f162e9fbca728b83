"""Block-diagonal matrices in on-chip memory.

A compact matrix (M, C) whose C columns are `blocks` blocks stands for a block-diagonal
one (blocks * M, C): block g of its columns, in rows g * M to (g + 1) * M. Kernels read
and write compact ones: C is wide, so that no lane is padding.
"""

import jax
import jax.numpy as jnp

ROWS, COLUMNS = 0, 1


def product(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    """Contracts an axis of each of two matrices, to float32.

    Args:
      x: a matrix.
      y: a matrix of the same type; of two in float32 the precision is full.
      x_axis: contracted axis of `x`.
      y_axis: contracted axis of `y`.
    """
    return jax.lax.dot_general(
        x,
        y,
        (((x_axis,), (y_axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
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
    """Returns the compact (M, C) of the diagonal blocks of (blocks * M, C).

    Both float32; the adjoint of `expand`.
    """
    if blocks == 1:
        return full
    rows = full.shape[0] // blocks
    kept = jnp.where(_own_block(full.shape, blocks), full, 0.0)
    return product(_selection(rows, blocks, kept.dtype), kept, ROWS, ROWS)


def _selection(rows: int, blocks: int, dtype: jnp.dtype) -> jax.Array:
    """(blocks * rows, rows), one-hot: the compact row of each row."""
    shape = (blocks * rows, rows)
    row = jax.lax.rem(jax.lax.broadcasted_iota(jnp.int32, shape, 0), rows)
    return (row == jax.lax.broadcasted_iota(jnp.int32, shape, 1)).astype(dtype)


def _own_block(shape: tuple[int, ...], blocks: int) -> jax.Array:
    # Not //, which for negative numbers asks for the chip's kind.
    row, column = (
        jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, shape, i), shape[i] // blocks)
        for i in (0, 1)
    )
    return row == column

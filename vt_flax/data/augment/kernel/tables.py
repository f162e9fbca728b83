"""Operations that put the levels of each color through a table of their own making."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vt_flax.data.augment.kernel import layout
from vt_flax.experimental import pallas as pl


def fill(image, tables, size, function: Callable) -> None:
    """Makes a table of 256 levels for each color."""
    for color in range(3):

        def levels(block, height, shift=8 * color):
            rows = pl.ds(pl.multiple_of(block * height, height), height)
            return image[rows, :] >> shift & 255

        tables[color : color + 1, :] = function(levels, image.shape[1], size)


def stretched(levels: Callable, columns: int, size) -> jax.Array:
    """ImageOps.autocontrast's table, (1, 256)."""
    shape = (layout.ROWS, columns)

    def extend(block, ends):
        x, inside = levels(block, layout.ROWS), layout.inside(shape, size, block)
        low, high = ends
        return (
            jnp.minimum(low, jnp.where(inside, x, 255)),
            jnp.maximum(high, jnp.where(inside, x, 0)),
        )

    start = jnp.full(shape, 255, jnp.int32), jnp.zeros(shape, jnp.int32)
    low, high = jax.lax.fori_loop(0, layout.blocks(size[0]), extend, start)
    low, high = jnp.min(low, keepdims=True), jnp.max(high, keepdims=True)
    level = jax.lax.broadcasted_iota(jnp.int32, (1, 256), 1)
    table = layout.floor_divide((level - low) * 255, jnp.maximum(high - low, 1))
    return jnp.where(high > low, jnp.clip(table, 0, 255), level)


def equalized(levels: Callable, columns: int, size) -> jax.Array:
    """ImageOps.equalize's table, (1, 256)."""
    counts = _histogram(levels, columns, size)
    v, w = layout.position((256, 256))
    # Counts stay below 2^24, so that these sums are exact.
    before = jnp.dot(
        jnp.broadcast_to(counts, (8, 256)),
        (v < w).astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )[:1].astype(jnp.int32)
    # The pixels below the brightest level that occurs, in 255 steps.
    last = jnp.max(jnp.where(counts > 0, before, 0), axis=1, keepdims=True)
    step = layout.floor_divide(last, 255)
    table = layout.floor_divide(before + (step >> 1), jnp.maximum(step, 1))
    level = jax.lax.broadcasted_iota(jnp.int32, (1, 256), 1)
    return jnp.where(step > 0, jnp.minimum(table, 255), level)


def _histogram(levels: Callable, columns: int, size) -> jax.Array:
    """How often each level occurs, float32 (1, 256).

    Of a level's low and high four bits are made one-hot vectors; the product of all low
    and all high ones, summed over pixels, counts pairs of them.
    """
    height = 8  # the rows of a register

    def count(block, counts):
        x = levels(block, height)
        # Padding has a high half that does not occur.
        high = jnp.where(layout.inside((height, columns), size, block), x >> 4, 16)
        return counts + jax.lax.dot_general(
            _one_hot(x & 15),
            _one_hot(high),
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )

    counts = jax.lax.fori_loop(
        0, pl.cdiv(size[0], height), count, jnp.zeros((16, 16), jnp.float32)
    )
    half, level = layout.position((16, 256))
    by_low = jnp.dot(
        counts,
        (half == level >> 4).astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return jnp.sum(jnp.where(half == (level & 15), by_low, 0), axis=0, keepdims=True)


def _one_hot(halves: jax.Array) -> jax.Array:
    """One-hot vectors of all elements side by side, bfloat16 (16, elements)."""
    height, columns = halves.shape
    lines = [jnp.broadcast_to(halves[i : i + 1], (16, columns)) for i in range(height)]
    line = jnp.concatenate(lines, axis=1)
    which = jax.lax.broadcasted_iota(jnp.int32, line.shape, 0)
    return (line == which).astype(jnp.float32).astype(jnp.bfloat16)


def look_up(image, tables, size) -> None:
    """Puts each color through its table."""

    @pl.loop(0, layout.blocks(size[0]))
    def _(block):
        rows = layout.rows(block)
        levels = []
        for color, level in enumerate(layout.unpack(image[rows, :])):
            table = jnp.broadcast_to(tables[color : color + 1, :], (layout.ROWS, 256))
            halves = [table[:, : layout.LANES], table[:, layout.LANES :]]
            levels.append(layout.take(halves, level))
        image[rows, :] = layout.pack(levels)

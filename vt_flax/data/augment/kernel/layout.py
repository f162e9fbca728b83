"""What the kernel's parts share: images of 32-bit words, taken in blocks of rows."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from vt_flax.experimental import pallas as pl

# Lanes of a vector register: how far apart pixels may be that one gather brings
# together. Images are padded to multiples of it, since they are turned on their side.
LANES = 128
SHIFT = 7  # by which an index is divided by LANES
# Rows that are worked on at a time: few enough for the registers.
ROWS = 32


def blocks(height: int) -> int:
    """How many blocks of rows an image of some height has."""
    return pl.cdiv(height, ROWS)


def rows(block) -> pl.Slice:
    """The rows of a block, as an index."""
    return pl.ds(pl.multiple_of(block * ROWS, ROWS), ROWS)


def position(shape, block=0) -> tuple[jax.Array, jax.Array]:
    """Row and column of each pixel of a block."""
    row = jax.lax.broadcasted_iota(jnp.int32, shape, 0) + block * shape[0]
    return row, jax.lax.broadcasted_iota(jnp.int32, shape, 1)


def inside(shape, size, block=0) -> jax.Array:
    """Which pixels of a block belong to the image and are no padding."""
    row, column = position(shape, block)
    return (row < size[0]) & (column < size[1])


def floor_divide(n: jax.Array, d) -> jax.Array:
    """Divides int32 n by d > 0, rounded down; TPUs divide only in floating point."""
    d = jnp.asarray(d, jnp.int32)
    result = jnp.floor(n.astype(jnp.float32) / d.astype(jnp.float32)).astype(jnp.int32)
    rest = n - result * d
    return result + jnp.where(rest < 0, -1, 0) + jnp.where(rest >= d, 1, 0)


def pack(levels: Sequence[jax.Array]) -> jax.Array:
    """Puts the levels of red, green and blue together, one word a pixel."""
    red, green, blue = levels
    return red | green << 8 | blue << 16


def unpack(words: jax.Array) -> list[jax.Array]:
    """Returns the levels of red, green and blue."""
    return [words >> shift & 255 for shift in (0, 8, 16)]


def each_level(image, size, function: Callable[[jax.Array], jax.Array]) -> None:
    """Puts the levels of all pixels and colors through a function."""

    @pl.loop(0, blocks(size[0]))
    def _(block):
        levels = unpack(image[rows(block), :])
        image[rows(block), :] = pack([function(x) for x in levels])


def take(parts: Sequence[jax.Array], index: jax.Array) -> jax.Array:
    """Takes from each line what its indices say.

    Args:
      parts: lines, cut into pieces of LANES: (lines, LANES) each.
      index: (lines, any multiple of LANES); of no meaning where there is no such part.
    """
    pieces = []
    for start in range(0, index.shape[1], LANES):
        piece = index[:, start : start + LANES]
        found = [
            jnp.take_along_axis(
                part, piece & (LANES - 1), axis=1, mode="promise_in_bounds"
            )
            for part in parts
        ]
        result = found[0]
        for i in range(1, len(parts)):
            result = jnp.where(piece >> SHIFT == i, found[i], result)
        pieces.append(result)
    return jnp.concatenate(pieces, axis=1)

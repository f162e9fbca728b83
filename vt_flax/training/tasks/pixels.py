"""Images in a common canvas, processed some rows at a time."""

import jax
import jax.numpy as jnp

# Rows that are processed at once: a number for each class and pixel of whole images
# would take gigabytes.
ROWS = 32


def row_blocks(x: jax.Array, beyond: int) -> jax.Array:
    """Cuts (batch, H, ...) into (blocks, batch, ROWS, ...), the last with `beyond`."""
    room = [(0, 0), (0, -x.shape[1] % ROWS)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, room, constant_values=beyond)
    return x.reshape(x.shape[0], -1, ROWS, *x.shape[2:]).swapaxes(0, 1)


def on_images(sizes: jax.Array, height: int, width: int) -> jax.Array:
    """Marks the pixels of images in the upper left corners of a canvas.

    Args:
      sizes: int32, (batch, 2): height and width of each.
      height: of the canvas.
      width: of the canvas.

    Returns:
      bool, (batch, height, width).
    """
    rows = jnp.arange(height)[:, None] < sizes[:, 0, None, None]
    return rows & (jnp.arange(width) < sizes[:, 1, None, None])


def exact_product(equation: str, one: jax.Array, other: jax.Array) -> jax.Array:
    """Returns an einsum in full float32 precision, on TPUs too."""
    return jnp.einsum(equation, one, other, precision=jax.lax.Precision.HIGHEST)

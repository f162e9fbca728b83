"""Maps of images in a common canvas, processed some rows at a time."""

import functools

import jax
import jax.numpy as jnp

# Rows that are processed at once: a number for each class and pixel of full images
# would take gigabytes.
ROWS = 32

# In full float32 precision, on TPUs too.
einsum_float32 = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def split_rows(x: jax.Array, fill: int) -> jax.Array:
    """Cuts (batch, H, ...) into (blocks, batch, ROWS, ...), padded with `fill`."""
    padding = [(0, 0), (0, -x.shape[1] % ROWS)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, padding, constant_values=fill)
    return x.reshape(x.shape[0], -1, ROWS, *x.shape[2:]).swapaxes(0, 1)


def join_rows(x: jax.Array, height: int) -> jax.Array:
    """Joins the blocks of `split_rows` to (batch, height, ...)."""
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :height]


def valid_pixels(sizes: jax.Array, height: int, width: int) -> jax.Array:
    """Returns a mask of the images in the upper left corners of a canvas.

    Args:
      sizes: int32, (batch, 2): height and width of each image.
      height: of the canvas.
      width: of the canvas.

    Returns:
      bool, (batch, height, width).
    """
    rows = jnp.arange(height)[:, None] < sizes[:, 0, None, None]
    return rows & (jnp.arange(width) < sizes[:, 1, None, None])

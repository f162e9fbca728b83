"""The central crop of evaluation in JAX, for programs that take whole images."""

import jax
import jax.numpy as jnp

from vt_flax.data.augment.resampling import linear_weights
from vt_flax.data.center_crop import resized_side


def center_crop(images: jax.Array, size: int, resize: int) -> jax.Array:
    """Does to a batch what `data.center_crop` does to one image.

    Like Pillow it resizes the rows, rounds, and then the columns. Pillow's weights are
    in fixed point: a level that is just about a half may differ by one.

    Args:
      images: uint8 (batch, H, W, 3), all of one size, which may be symbolic.
      size: side of the result in pixels.
      resize: short side in pixels before the cut, at least `size`.

    Returns:
      Levels from 0 to 255, float32 (batch, size, size, 3).
    """
    extents = images.shape[1:3]
    sides = [jnp.asarray(extent, jnp.int32) for extent in extents]

    def weights(axis: int) -> jax.Array:
        resized = resized_side(sides[axis], jnp.minimum(*sides), resize)
        start = (resized - size) // 2
        return linear_weights(
            start, resized, sides[axis], size, extents[axis], antialias=True
        )

    levels = images.astype(jnp.float32)
    for product, axis in (("wx,bhxc->bhwc", 1), ("hy,bywc->bhwc", 0)):
        # A single bfloat16 pass, which TPUs take by default, would be a level off.
        precision = jax.lax.Precision.HIGHEST
        levels = jnp.einsum(product, weights(axis), levels, precision=precision)
        levels = jnp.floor(levels + 0.5)
    return levels

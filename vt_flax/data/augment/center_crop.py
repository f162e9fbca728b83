"""The central crop of evaluation in JAX, for programs that take whole images."""

import jax
import jax.numpy as jnp

from vt_flax.data.augment.resampling import linear_weights, resample
from vt_flax.data.center_crop import resized_side


def center_crop(images: jax.Array, size: int, resize: int) -> jax.Array:
    """Does to a batch what `data.center_crop` does to one image.

    Pillow computes weights in fixed point: a level that is just about a half may differ
    by one.

    Args:
      images: uint8 (batch, H, W, 3), all of one size, which may be symbolic.
      size: side of the result in pixels.
      resize: short side in pixels before the cut, at least `size`.

    Returns:
      Levels from 0 to 255, float32 (batch, size, size, 3).
    """
    batch, *extents, _ = images.shape
    sides = [jnp.asarray(extent, jnp.int32) for extent in extents]
    matrices = []
    for side, extent in zip(sides, extents, strict=True):
        resized = resized_side(side, jnp.minimum(*sides), resize)
        start = (resized - size) // 2
        weights = linear_weights(start, resized, side, size, extent, antialias=True)
        matrices.append(jnp.broadcast_to(weights, (batch, size, extent)))
    return jnp.floor(resample(images, *matrices) + 0.5)

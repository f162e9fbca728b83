"""The evaluation's crop on the device, where images come whole instead of encoded."""

import jax
import jax.numpy as jnp

from vt_flax.data.augment.resampling import linear_weights, resample


def centre_crop(images: jax.Array, size: int, resize: int) -> jax.Array:
    """Does to decoded images what `data.images.centre_crop` does on the host.

    The short side is brought to `resize`, bilinearly with antialiasing and in whole
    levels, and the central square is cut out. The host computes weights in another
    order: where a level is just about a half, it is one apart.

    Args:
      images: uint8 (batch, H, W, 3), all of one size, which may be symbols.
      size: side of the result in pixels.
      resize: the short side before the crop, at least `size`.

    Returns:
      Levels from 0 to 255, float32 (batch, size, size, 3).
    """
    batch, *extents, _ = images.shape
    sides = [jnp.asarray(extent, jnp.int32) for extent in extents]
    short = jnp.minimum(*sides)
    matrices = []
    for side, extent in zip(sides, extents, strict=True):
        resized = jnp.maximum(_rounded(side * resize, short), resize)
        start = (resized - size) // 2
        weights = linear_weights(start, resized, side, size, extent, antialias=True)
        matrices.append(jnp.broadcast_to(weights, (batch, size, extent)))
    return jnp.floor(resample(images, *matrices) + 0.5)


def _rounded(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Returns the quotient in whole numbers, halves to the even one."""
    whole, rest = numerator // denominator, numerator % denominator
    up = (2 * rest > denominator) | ((2 * rest == denominator) & (whole % 2 == 1))
    return whole + up

"""Resizing, cropping and mirroring by matrices, with sizes that differ by example.

Resizing and cropping are linear along each axis: one matrix for the rows and one for
the columns. The matrices depend on each example's size, their shapes do not. They are
dense although most elements are zero, because TPUs gather slowly and multiply matrices
fast: a crop of 512 x 512 takes 0.8 G multiply-adds for the image and 0.3 G for the
mask, about one percent of a training step of a VT-FPN.

Functions take sizes as arrays (...) of one shape, and return matrices (..., length,
extent): row i holds the weights of the source's pixels in output pixel i.
"""

import math

import jax
import jax.numpy as jnp

from vt_flax.data.center_crop import resized_side
from vt_flax.data.masks import IGNORE

# In a single bfloat16 pass, which TPUs take by default, weights have 8 bits, and levels
# are off by one.
EXACT = jax.lax.Precision.HIGHEST


def resized_size(size: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Returns size x scale in pixels, int32, rounded as by Pillow, and at least 1."""
    # In `_positions` twice this, times the size, must fit 31 bits.
    largest = (2**30 - 1) // jnp.maximum(size, 1)
    return jnp.clip(jnp.round(size * scale).astype(jnp.int32), 1, largest)


def linear_weights(
    start: jax.Array,
    resized: jax.Array,
    size: jax.Array,
    length: int,
    extent: int,
    *,
    antialias: bool,
    mirrored: jax.Array | bool = False,
) -> jax.Array:
    """Returns matrices that resize an axis bilinearly, and crop it.

    As in Pillow and PyTorch, pixels are centered at halves, and the outermost pixels
    continue beyond the border.

    Args:
      start: first pixel of the crop on the resized axis; may be negative.
      resized: length of the resized axis in pixels.
      size: length of the source in pixels.
      length: length of the crop in pixels.
      extent: length of the array that holds the source at its start.
      antialias: whether the filter widens where the axis shrinks, as Pillow's does.
      mirrored: whether the crop is reversed.

    Returns:
      float32, (..., length, extent). Rows sum to 1, or to 0 outside the resized axis.
    """
    index = _index(start, length, mirrored)
    whole, fraction = _positions(index, resized, size)
    shrinks = jnp.asarray(size / resized)[..., None, None]
    width = jnp.maximum(shrinks, 1) if antialias else 1.0
    weights = _triangle(whole, fraction, size, extent, width)
    return jnp.where(_inside(index, resized), weights, 0)


def nearest_weights(
    start: jax.Array,
    resized: jax.Array,
    size: jax.Array,
    length: int,
    extent: int,
    *,
    mirrored: jax.Array | bool = False,
) -> jax.Array:
    """Returns matrices like those of `linear_weights` that choose the nearest pixel.

    Output pixel i takes pixel floor((i + 1/2) size / resized), as in Pillow, whose
    running sum in floating point may however fall below a whole number.

    Returns:
      float32, (..., length, extent): one 1 in a row, or none outside the resized axis.
    """
    index = _index(start, length, mirrored)
    whole, _ = _positions(index, resized, size)
    chosen = whole[..., None] == jnp.arange(extent)
    return jnp.where(chosen & _inside(index, resized) & _source(size, extent), 1.0, 0.0)


def map_weights(
    own: jax.Array,
    valid: jax.Array,
    length: int,
    cells: int,
    extent: int,
    *,
    mirrored: jax.Array | bool = False,
) -> jax.Array:
    """Returns matrices that resize a network's output map to an example's own pixels.

    Bilinear between the centers of cells: PyTorch's `interpolate(...,
    align_corners=False)` where the example fills the input.

    Args:
      own: length of the example, in its own pixels.
      valid: its length in the network's input, in pixels of the input.
      length: length of the output in pixels, at least `own`.
      cells: length of the map.
      extent: length of the network's input in pixels.
      mirrored: whether the example was mirrored in the input.

    Returns:
      float32, (..., length, cells). Rows sum to 1, or to 0 from `own` on.
    """
    own, mirrored = jnp.asarray(own)[..., None], jnp.asarray(mirrored)[..., None]
    index = jnp.arange(length)
    inside = index < own
    index = jnp.where(mirrored, own - 1 - index, index)
    whole, fraction = _positions(index, jnp.maximum(own[..., 0], 1), valid)
    # From pixels to cells, in integers as far as possible, as in `_positions`.
    common = math.gcd(cells, extent)
    up, down = cells // common, extent // common
    moved = whole * up
    fraction = (moved % down + fraction * up) / down
    weights = _triangle(moved // down, fraction, cells, cells, 1.0)
    return jnp.where(inside[..., None], weights, 0)


def resample(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Applies matrices to the rows and columns of images or maps.

    Args:
      images: (batch, H, W, channels).
      rows: (batch, h, H).
      columns: (batch, w, W).

    Returns:
      float32, (batch, h, w, channels).
    """
    images = images.astype(jnp.float32)
    images = jnp.einsum("bhy,byxc->bhxc", rows, images, precision=EXACT)
    return jnp.einsum("bwx,bhxc->bhwc", columns, images, precision=EXACT)


def select(labels: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Applies matrices of `nearest_weights` to the rows and columns of masks.

    Args:
      labels: uint8, (batch, H, W).
      rows: (batch, h, H).
      columns: (batch, w, W).

    Returns:
      uint8, (batch, h, w); IGNORE where there is no source.
    """
    # Exact even in bfloat16: each sum has at most one term, an integer up to 255. Where
    # it has none, 0 stands for IGNORE.
    picked = (IGNORE - labels).astype(jnp.float32)
    precision = jax.lax.Precision.DEFAULT
    picked = jnp.einsum("bhy,byx->bhx", rows, picked, precision=precision)
    picked = jnp.einsum("bwx,bhx->bhw", columns, picked, precision=precision)
    return IGNORE - picked.astype(jnp.uint8)


def center_crop(images: jax.Array, size: int, resize: int) -> jax.Array:
    """Resizes and crops a batch like `data.center_crop`, for exported programs.

    Like Pillow it resizes the rows, rounds, and then the columns. Pillow's weights are
    in fixed point, so that a level close to a half may differ by one.

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
        levels = jnp.einsum(product, weights(axis), levels, precision=EXACT)
        levels = jnp.floor(levels + 0.5)
    return levels


def _index(start: jax.Array, length: int, mirrored: jax.Array | bool) -> jax.Array:
    """Returns the pixel of the resized axis in each output pixel, (..., length)."""
    index = jnp.arange(length)
    mirrored = jnp.asarray(mirrored)[..., None]
    index = jnp.where(mirrored, length - 1 - index, index)
    return jnp.asarray(start)[..., None] + index


def _positions(
    index: jax.Array, resized: jax.Array, size: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the source coordinate of pixels' centers: whole pixels and the fraction.

    (index + 1/2) size / resized in integers, because float32 would choose another pixel
    where this is close to a whole number.
    """
    numerator = (2 * index + 1) * jnp.asarray(size)[..., None]
    denominator = 2 * jnp.asarray(resized)[..., None]
    return numerator // denominator, (numerator % denominator) / denominator


def _triangle(
    whole: jax.Array,
    fraction: jax.Array,
    size: jax.Array | int,
    extent: int,
    width: jax.Array | float,
) -> jax.Array:
    """Returns weights that fall linearly to 0 at `width` pixels, and sum to 1."""
    away = jnp.arange(extent) - whole[..., None] + (0.5 - fraction[..., None])
    weights = jnp.maximum(1 - jnp.abs(away) / width, 0)
    weights = jnp.where(_source(size, extent), weights, 0)
    total = weights.sum(-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1)


def _inside(index: jax.Array, resized: jax.Array) -> jax.Array:
    return ((index >= 0) & (index < jnp.asarray(resized)[..., None]))[..., None]


def _source(size: jax.Array | int, extent: int) -> jax.Array:
    return jnp.arange(extent) < jnp.asarray(size)[..., None, None]

"""Images and masks resized, cropped and mirrored by matrices, one pair an example.

To resize and crop is linear along each axis, so that it is one matrix for the rows and
one for the columns. Sizes differ from example to example, shapes must not: the matrices
depend on the sizes, and what is computed with them does not. TPUs gather slowly and
multiply matrices fast, which is why these are dense although few of their elements are
not zero. A crop of 512 x 512 of a canvas as large takes 0.8 G multiply-adds for the
image and 0.3 G for the mask; a training step of a VT-FPN takes nearly a hundred times
that.

Every function takes sizes as arrays (...) of any one shape, and gives matrices
(..., length, extent): row i holds the weights of the source's pixels in output pixel i.
"""

import math

import jax
import jax.numpy as jnp

from vt_flax.data.masks import IGNORE


def resized_size(size: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Returns size x scale in whole pixels as `ImageOps.scale` rounds, at least 1.

    Args:
      size: of images in pixels, int32.
      scale: factor, float32.
    """
    # In `_positions` twice this, times the size, is to stay within 31 bits.
    most = (2**30 - 1) // jnp.maximum(size, 1)
    return jnp.clip(jnp.round(size * scale).astype(jnp.int32), 1, most)


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
    """Returns what resizes an axis bilinearly, and cuts out a piece of it.

    Pixels are centerd at halves, and a border continues beyond itself, as Pillow and
    PyTorch have it.

    Args:
      start: pixel of the resized axis that comes first; negative to begin before it.
      resized: its length in pixels; see `resized_size`.
      size: of the source in pixels.
      length: pixels that are cut out.
      extent: of the array that holds the source at its start.
      antialias: whether the filter widens where the axis shrinks, as Pillow's does.
      mirrored: whether what is cut out is reversed.

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
    """Returns what `linear_weights` does for the nearest pixel, as Pillow chooses it.

    Output pixel i takes pixel floor((i + 1/2) size / resized). Where that is a whole
    number before it is rounded down, Pillow's running sum in floating point may fall
    on either side of it; here it is exact.

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
    """Returns what brings a network's map of its input to an example's own pixels.

    Bilinear from the centers of the map's cells, of which number j covers the input
    from j extent / cells on; beyond the outermost centers the map continues. Where the
    example fills the input this is PyTorch's `interpolate(..., align_corners=False)`.

    Args:
      own: length of the example, in its own pixels.
      valid: its length in the network's input, in pixels of that.
      length: of the output in pixels, at least `own`.
      cells: length of the map.
      extent: of the network's input in pixels.
      mirrored: whether the example lay mirrored in the input, within its valid part.

    Returns:
      float32, (..., length, cells). Rows sum to 1, or to 0 from `own` on.
    """
    own, mirrored = jnp.asarray(own)[..., None], jnp.asarray(mirrored)[..., None]
    index = jnp.arange(length)
    inside = index < own
    index = jnp.where(mirrored, own - 1 - index, index)
    whole, fraction = _positions(index, jnp.maximum(own[..., 0], 1), valid)
    # From pixels to cells; the whole part in whole numbers, for the same reason.
    common = math.gcd(cells, extent)
    up, down = cells // common, extent // common
    moved = whole * up
    fraction = (moved % down + fraction * up) / down
    weights = _triangle(moved // down, fraction, cells, cells, 1.0)
    return jnp.where(inside[..., None], weights, 0)


def resample(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Applies matrices to the rows and columns of images, or of maps.

    Args:
      images: (batch, H, W, channels).
      rows: (batch, h, H).
      columns: (batch, w, W).

    Returns:
      float32, (batch, h, w, channels).
    """
    # In a single bfloat16 pass, which TPUs take by default, weights have 8 bits, and
    # levels are off by one.
    precision = jax.lax.Precision.HIGHEST
    images = images.astype(jnp.float32)
    images = jnp.einsum("bhy,byxc->bhxc", rows, images, precision=precision)
    return jnp.einsum("bwx,bhxc->bhwc", columns, images, precision=precision)


def select(labels: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Picks the pixels of masks that matrices of `nearest_weights` choose.

    Args:
      labels: uint8, (batch, H, W).
      rows: (batch, h, H).
      columns: (batch, w, W).

    Returns:
      uint8, (batch, h, w); IGNORE where there is no source.
    """
    # Exact in whatever the products are computed: of each sum one term at most is not
    # zero, and it is 1 times a whole number up to 255, which even bfloat16 holds.
    # What is left out adds nothing, so that nothing is to stand for IGNORE.
    picked = (IGNORE - labels).astype(jnp.float32)
    precision = jax.lax.Precision.DEFAULT
    picked = jnp.einsum("bhy,byx->bhx", rows, picked, precision=precision)
    picked = jnp.einsum("bwx,bhx->bhw", columns, picked, precision=precision)
    return IGNORE - picked.astype(jnp.uint8)


def _index(start: jax.Array, length: int, mirrored: jax.Array | bool) -> jax.Array:
    """Returns which pixel of the resized axis is output pixel i, (..., length)."""
    place = jnp.arange(length)
    mirrored = jnp.asarray(mirrored)[..., None]
    place = jnp.where(mirrored, length - 1 - place, place)
    return jnp.asarray(start)[..., None] + place


def _positions(
    index: jax.Array, resized: jax.Array, size: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns where pixels' centers lie in the source: whole pixels and the fraction.

    (index + 1/2) size / resized, in whole numbers as long as it can be: float32 alone
    would choose another pixel where this is close to a whole number.
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

"""A nearest-pixel affine map out of rolls, selections and matrix products.

TPUs have no fast way to read pixels from anywhere. They do roll rows and multiply
matrices, and an affine map can be taken apart into these without changing a pixel:
first every column is moved, then every row.
"""

import jax
import jax.numpy as jnp

# Of rows after a choice to rows before it: rotated by 30 degrees, 1 / cos(30).
STRETCH = 1.16
# Of the first of the two rolls that make any; about the root of an image's side.
STRIDE = 16


def resample_by_product(images: jax.Array, matrix: jax.Array) -> jax.Array:
    """Returns the nearest pixels of affine maps, where they lie inside the image.

    The pixel at (x, y) comes from column u = (a x + b y + c) >> 16 and row
    (d x + e y + f) >> 16. At most two neighbouring x of a row y have the same column u,
    since 1/2 < a <= 1: call them the 0th and the 1st. So there are two images whose
    pixel (y, u) is the one that the kth x finds in column u. They hold all that the
    result holds, in its rows, but in the columns of the original.

    Args:
      images: uint8, (batch, channels, H, W).
      matrix: int32, (batch, 6): a, b, c, d, e, f in units of 1 / 65536 pixel, of a
        shear by at most 0.5, a rotation by at most 30 degrees or any translation.

    Returns:
      uint8, (batch, channels, H, W); of no meaning where a pixel would come from
      outside the image.
    """
    coefficients = [matrix[:, i, None, None] for i in range(6)]
    columns = [_move_columns(images, *coefficients, k) for k in range(2)]
    return _move_rows(columns, *coefficients[:3])


def _move_columns(images, a, b, c, d, e, f, k: int) -> jax.Array:
    """Returns the image whose pixel (y, u) is what the kth x of column u finds.

    Its row there is r + s + j: r = floor(slope y), s the floor of a linear function of
    u, and j what is lost by that, -1 to 2. Columns are rolled by s, single pixels by j,
    and the rows r are chosen by a product with a one-hot matrix.
    """
    height, width = images.shape[2:]
    # That they are rounded only has to leave j in its range, which has room for it.
    slope = e - jnp.round(d / a * b).astype(jnp.int32)
    rows = int(height * STRETCH) + 2
    r = jnp.arange(rows, dtype=jnp.int32)[:, None]
    u = jnp.arange(width, dtype=jnp.int32)[None, :]
    s = jnp.floor(d / a * u + (f - d / a * c) / 65536).astype(jnp.int32)
    y = _ceil_divide(r << 16, slope)  # the one with r = (slope y) >> 16, if any
    x = _first(a, b, c, y, u) + k
    j = ((d * x + e * y + f) >> 16) - r - s

    # Rows go round: what is outside the image has no meaning anyway.
    rolled = _cyclic(_roll_each(images, s - 1, 2), 2, rows + 3)
    found = _select(rolled, j + 1, range(4), rows, 2)
    chosen = (slope * jnp.arange(height, dtype=jnp.int32)[:, None]) >> 16
    one_hot = (chosen == jnp.arange(rows)).astype(jnp.bfloat16)
    # Levels are exact in bfloat16, and of each sum one term is not zero.
    moved = jnp.einsum("byr,bcru->bcyu", one_hot, found.astype(jnp.bfloat16))
    return moved.astype(jnp.uint8)


def _move_rows(columns: list[jax.Array], a, b, c) -> jax.Array:
    """Brings the pixels (y, u) of the two images to the x that find them.

    u = p + q + i: p = floor of b y + c, q = floor of a x, and i what is lost, 0 or 1.
    Rows are rolled by p, single pixels by i, and the q-th ones are put where they go,
    the 0th and the 1st x of each q, by products with one-hot matrices.
    """
    height, width = columns[0].shape[2:]
    y = jnp.arange(height, dtype=jnp.int32)[:, None]
    q = jnp.arange(width, dtype=jnp.int32)[None, :]
    p = (b * y + c) >> 16
    rolled = [_cyclic(_roll_each(image, p, 3), 3, width + 1) for image in columns]
    first = _ceil_divide(q << 16, a)
    of_x = (a * q) >> 16  # here q stands for x
    parts, one_hots = [], []
    for m in range(2):
        x = first + m
        u = (a * x + b * y + c) >> 16
        i, k = u - p - q, x - _first(a, b, c, y, u)
        both = [_select(image, i, range(2), width, 3) for image in rolled]
        parts.append(jnp.where((k == 0)[:, None], *both).astype(jnp.bfloat16))
        # (batch, q, x): whether x is the m-th of q.
        target = (of_x == q.T) & (q - first.mT == m)
        one_hots.append(target.astype(jnp.bfloat16))
    found, one_hot = jnp.concatenate(parts, 3), jnp.concatenate(one_hots, 1)
    return jnp.einsum("bcyq,bqx->bcyx", found, one_hot).astype(jnp.uint8)


def _first(a, b, c, y, u) -> jax.Array:
    """Returns the first x whose column (a x + b y + c) >> 16 is u."""
    return _ceil_divide((u << 16) - b * y - c, a)


def _ceil_divide(n, d) -> jax.Array:
    return -(-n // d)


def _roll_each(images: jax.Array, shift: jax.Array, axis: int) -> jax.Array:
    """Rolls lines along an axis, each by its own shift: element i comes from i + shift.

    In two strides, each of which reads and writes the image once.

    Args:
      images: (batch, channels, H, W).
      shift: int32, (batch, H, W) but 1 along the axis; any.
      axis: 2 or 3.
    """
    size = images.shape[axis]
    shift = shift % size
    coarse, fine = range(0, size, STRIDE), range(min(size, STRIDE))
    for steps, step in ((coarse, shift // STRIDE * STRIDE), (fine, shift % STRIDE)):
        longer = _cyclic(images, axis, size + steps[-1])
        images = _select(longer, step, steps, size, axis)
    return images


def _cyclic(images: jax.Array, axis: int, size: int) -> jax.Array:
    """Continues lines with their own start up to a size."""
    whole = jnp.concatenate([images] * -(-size // images.shape[axis]), axis)
    return jax.lax.slice_in_dim(whole, 0, size, axis=axis)


def _select(
    images: jax.Array, step: jax.Array, steps: range, size: int, axis: int
) -> jax.Array:
    """Takes element i + step of lines, `step` being one of `steps` for each element."""
    result = None
    for candidate in steps:
        part = jax.lax.slice_in_dim(images, candidate, candidate + size, axis=axis)
        here = (step == candidate)[:, None]
        result = part if result is None else jnp.where(here, part, result)
    return result

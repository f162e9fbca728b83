"""ImageEnhance: an image blended with what it is without color, contrast and so on."""

import jax
import jax.numpy as jnp

from vt_flax.data.augment.kernel import layout
from vt_flax.data.augment.operations import luma
from vt_flax.experimental import pallas as pl
from vt_flax.experimental import pallas_tpu as pltpu


def blend(image, smooth, size, factor, name: str) -> None:
    """Blends the image with what ImageEnhance takes; see `operations`."""
    if name == "Contrast":
        mean = _mean_gray(image, size)
    if name == "Sharpness":
        _smooth(image, smooth, size)

    @pl.loop(0, layout.blocks(size[0]))
    def _(block):
        rows = layout.rows(block)
        levels = layout.unpack(image[rows, :])
        starts = {
            "Brightness": lambda: [0] * 3,
            "Contrast": lambda: [mean] * 3,
            "Color": lambda: [luma(*levels)] * 3,
            "Sharpness": lambda: layout.unpack(smooth[rows, :]),
        }[name]()
        blended = []
        for x, start in zip(levels, starts, strict=True):
            result = start + factor * (x - start).astype(jnp.float32)
            blended.append(jnp.clip(jnp.floor(result), 0, 255).astype(jnp.int32))
        image[rows, :] = layout.pack(blended)


def _mean_gray(image, size) -> jax.Array:
    """The mean of all pixels in gray, rounded half up, (1, 1)."""
    shape = (layout.ROWS, image.shape[1])

    def add(block, total):
        gray = luma(*layout.unpack(image[layout.rows(block), :]))
        return total + jnp.where(layout.inside(shape, size, block), gray, 0)

    total = jax.lax.fori_loop(
        0, layout.blocks(size[0]), add, jnp.zeros(shape, jnp.int32)
    )
    count = size[0] * size[1]
    return layout.floor_divide(2 * jnp.sum(total, keepdims=True) + count, 2 * count)


def _smooth(image, smooth, size) -> None:
    """Pillow's ImageFilter.SMOOTH: a mean with weight 5 in the middle; borders stay."""
    height, width = size
    rows, columns = image.shape
    margin = 8  # rows of a register, though one above and one below would do

    @pl.loop(0, layout.blocks(height))
    def _(block):
        start = block * layout.ROWS
        above = pl.multiple_of(jnp.maximum(start - margin, 0), margin)
        below = pl.multiple_of(jnp.minimum(start + layout.ROWS, rows - margin), margin)
        words = jnp.concatenate(
            [
                image[pl.ds(above, margin), :],
                image[layout.rows(block), :],
                image[pl.ds(below, margin), :],
            ],
            axis=0,
        )
        row, column = layout.position((layout.ROWS, columns), block)
        inner = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
        levels = []
        for x in layout.unpack(words):
            total = x
            for axis in (0, 1):
                last = total.shape[axis] - 1
                # A roll by the last position is one by 1 the other way.
                total += pltpu.roll(total, 1, axis) + pltpu.roll(total, last, axis)
            middle, total = (v[margin : margin + layout.ROWS] for v in (x, total))
            # (total + 4 middle) / 13, rounded; 13 is odd, so there are no ties.
            mean = layout.floor_divide(2 * (total + 4 * middle) + 13, 26)
            levels.append(jnp.where(inner, mean, middle))
        smooth[layout.rows(block), :] = layout.pack(levels)

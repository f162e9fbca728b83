"""Affine maps: the nearest pixel, by gathers within lines."""

import jax.numpy as jnp

from vt_flax.data.augment.kernel import layout
from vt_flax.data.augment.operations import FILL, origin
from vt_flax.experimental import pallas as pl


def move(image, turned, lines, moved, size, matrix) -> None:
    """Brings each pixel from where the affine map says: the nearest one, or gray.

    The pixel at (x, y) comes from column u = (a x + b y + c) >> 16 and row
    (d x + e y + f) >> 16. At most two neighboring x of a row y have the same column u,
    since 1/2 < a <= 1: call them the 0th and the 1st. So there are two images whose
    pixel (y, u) is the one that the kth x finds in column u. Each takes its pixels
    along columns, and the result takes its own from the two along rows.
    """
    a, b, c, d, e, f = matrix
    rows, columns = image.shape

    def first(u, y):
        """The first x of row y whose column is u."""
        return -layout.floor_divide(b * y + c - (u << 16), a)

    _turn(image, turned)
    for k in range(2):

        @pl.loop(0, layout.blocks(size[1]))
        def _(block, k=k):
            u, y = layout.position((layout.ROWS, rows), block)
            top = (d * (first(u, y) + k) + e * y + f) >> 16
            parts = [
                turned[layout.rows(block), pl.ds(i, layout.LANES)]
                for i in _starts(rows)
            ]
            lines[layout.rows(block), :] = layout.take(parts, top)

        _turn(lines, moved.at[k])

    gray = layout.pack([FILL] * 3)

    @pl.loop(0, layout.blocks(size[0]))
    def _(block):
        y, x = layout.position((layout.ROWS, columns), block)
        left, _, inside = origin(matrix, x, y, size)
        found = [
            layout.take(
                [
                    moved[k, layout.rows(block), pl.ds(i, layout.LANES)]
                    for i in _starts(columns)
                ],
                left,
            )
            for k in range(2)
        ]
        chosen = jnp.where(x == first(left, y), *found)
        image[layout.rows(block), :] = jnp.where(inside, chosen, gray)


def _starts(columns: int) -> range:
    return range(0, columns, layout.LANES)


def _turn(source, target) -> None:
    """Transposes an image."""
    for i in _starts(source.shape[0]):
        for j in _starts(source.shape[1]):
            part = source[pl.ds(i, layout.LANES), pl.ds(j, layout.LANES)]
            target[pl.ds(j, layout.LANES), pl.ds(i, layout.LANES)] = part.T

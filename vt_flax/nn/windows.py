"""Windows around every pixel: what local attention looks at, one offset at a time.

A map unfolded over a 7 x 7 window is 49 maps. Sums over the window need one shifted
view at a time, and so do their gradients.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vt_flax.errors import UserError

PADDINGS = {"zeros": "constant", "reflect": "reflect"}


@dataclasses.dataclass(frozen=True)
class Window:
    """A square of pixels around each pixel, or around each `stride`-th one.

    Attributes:
      size: side in pixels, odd.
      stride: distance of the centres in pixels; the first is pixel 0.
      padding: what stands beyond the border: `zeros`, or `reflect` (the map mirrored
        about its outermost pixels, as often as the window reaches).
    """

    size: int
    stride: int = 1
    padding: str = "zeros"

    def __post_init__(self):
        if self.size < 1 or self.size % 2 == 0:
            raise UserError(f"window size {self.size}: must be odd, and at least 1")
        if self.padding not in PADDINGS:
            raise UserError(
                f"padding {self.padding!r} is not known: choose from "
                f"{', '.join(PADDINGS)}"
            )

    def offsets(self) -> np.ndarray:
        """Returns (size * size, 2): rows down and columns right, from -1 to 1.

        In the order in which all per-offset arrays are: row by row.
        """
        steps = np.linspace(-1.0, 1.0, self.size) if self.size > 1 else np.zeros(1)
        grid = np.meshgrid(steps, steps, indexing="ij")
        return np.stack(grid, -1).reshape(-1, 2).astype(np.float32)

    def pad(self, x: jax.Array) -> jax.Array:
        """Pads (batch, H, W, C) by half a window on every side."""
        edge = (self.size // 2,) * 2
        return jnp.pad(x, ((0, 0), edge, edge, (0, 0)), PADDINGS[self.padding])

    def centres(self, x: jax.Array) -> jax.Array:
        """Returns the pixels (batch, H', W', C) that windows are around."""
        return x[:, :: self.stride, :: self.stride]

    def unfold(self, x: jax.Array) -> jax.Array:
        """Returns the windows of (batch, H, W, C), (batch, H', W', size * size, C)."""
        padded = self.pad(x)
        views = [
            self.column(self.row(padded, i), j)
            for i in range(self.size)
            for j in range(self.size)
        ]
        return jnp.stack(views, axis=3)

    def row(self, padded: jax.Array, index: int | jax.Array) -> jax.Array:
        """Returns the lines of a padded map that are row `index` of its windows."""
        span = padded.shape[1] - self.size + 1
        band = jax.lax.dynamic_slice_in_dim(padded, index, span, axis=1)
        return band[:, :: self.stride]

    def column(self, band: jax.Array, index: int) -> jax.Array:
        """Returns the pixels of `row`'s lines that are column `index` of windows."""
        span = band.shape[2] - self.size + 1
        return band[:, :, index : index + span : self.stride]

    def views(self, row: Any, each: Any, padded: Any) -> list[tuple[Any, Any]]:
        """Returns, for the offsets of a row, per-offset values and views of the maps.

        Args:
          row: index of the row.
          each: pytree of (size, ...): the row's per-offset values.
          padded: pytree of padded maps.
        """
        bands = jax.tree.map(lambda x: self.row(x, row), padded)
        return [
            (
                jax.tree.map(lambda x, j=j: x[j], each),
                jax.tree.map(lambda x, j=j: self.column(x, j), bands),
            )
            for j in range(self.size)
        ]

    def by_rows(self, each: Any) -> tuple[jax.Array, Any]:
        """Returns what a scan over rows takes: indices, and per-offset values."""
        rows = jax.tree.map(
            lambda x: x.reshape(self.size, self.size, *x.shape[1:]), each
        )
        return jnp.arange(self.size), rows


# Called as term(each_o, maps_o): an offset's value, and the views of the maps.
Term = Callable[[Any, Any], Any]


def sum_over_window(term: Term, window: Window, each: Any, maps: Any) -> Any:
    """Sums a term over the offsets of a window, one row of them at a time.

    Neither this nor its gradient holds more than a row of offsets at once: terms are
    made anew for the gradient.

    Args:
      term: called as `term(each_o, maps_o)`, gives a pytree of arrays.
      window: the window.
      each: pytree of arrays (size * size, ...): a value for each offset.
      maps: pytree of maps (batch, H, W, C). A term sees their pixels at its offset
        from the centres, (batch, H', W', C).

    Returns:
      The sum of the terms.
    """
    row_terms = _terms_of_rows(term, window, maps)

    def row_sum(inputs):
        return jax.tree.map(lambda *terms: sum(terms[1:], terms[0]), *row_terms(inputs))

    def step(total, inputs):
        # Only the inputs are kept for the gradient, none of their views.
        made = jax.checkpoint(row_sum, prevent_cse=False)(inputs)
        return jax.tree.map(jnp.add, total, made), None

    rows = window.by_rows(each)
    shapes = jax.eval_shape(row_sum, jax.tree.map(lambda x: x[0], rows))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(step, zeros, rows)[0]


def stack_over_window(term: Term, window: Window, each: Any, maps: Any) -> Any:
    """As `sum_over_window`, but stacks the terms: a pytree of (size * size, ...)."""
    row_terms = _terms_of_rows(term, window, maps)

    def row_stack(inputs):
        return jax.tree.map(lambda *terms: jnp.stack(terms), *row_terms(inputs))

    step = jax.checkpoint(row_stack, prevent_cse=False)
    stacks = jax.lax.map(step, window.by_rows(each))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stacks)


def _terms_of_rows(term: Term, window: Window, maps: Any) -> Callable[[Any], list]:
    """Returns a function of a row of `Window.by_rows` that gives its terms."""
    padded = jax.tree.map(window.pad, maps)
    return lambda inputs: [term(*view) for view in window.views(*inputs, padded)]

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

    def view(self, padded: jax.Array, index: int | jax.Array) -> jax.Array:
        """Returns the pixels (batch, H', W', C) of a padded map at offset `index`."""
        batch, height, width, channels = padded.shape
        edge = self.size - 1
        view = jax.lax.dynamic_slice(
            padded,
            (0, index // self.size, index % self.size, 0),
            (batch, height - edge, width - edge, channels),
        )
        return self.centres(view)

    def unfold(self, x: jax.Array) -> jax.Array:
        """Returns the windows of (batch, H, W, C), (batch, H', W', size * size, C)."""
        padded = self.pad(x)
        views = [self.view(padded, index) for index in range(self.size**2)]
        return jnp.stack(views, axis=3)


# Called as term(each_o, maps_o): an offset's value, and the views of the maps.
Term = Callable[[Any, Any], Any]


def sum_over_window(term: Term, window: Window, each: Any, maps: Any) -> Any:
    """Sums a term over the offsets of a window, one at a time.

    Neither this nor its gradient holds more than an offset's views at once: terms are
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
    at_offset, offsets = over_window(term, window, each, maps)

    def step(total, inputs):
        return jax.tree.map(jnp.add, total, at_offset(inputs)), None

    shapes = jax.eval_shape(at_offset, jax.tree.map(lambda x: x[0], offsets))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(step, zeros, offsets)[0]


def stack_over_window(term: Term, window: Window, each: Any, maps: Any) -> Any:
    """As `sum_over_window`, but stacks the terms: a pytree of (size * size, ...)."""
    return jax.lax.map(*over_window(term, window, each, maps))


def over_window(
    term: Term, window: Window, each: Any, maps: Any
) -> tuple[Callable[[Any], Any], Any]:
    """Returns `term` as a function of what a scan goes through, and that."""
    padded = jax.tree.map(window.pad, maps)

    def at_offset(inputs):
        index, each_o = inputs
        return term(each_o, jax.tree.map(lambda x: window.view(x, index), padded))

    # Only the inputs are kept for the gradient, not the views.
    at_offset = jax.checkpoint(at_offset, prevent_cse=False)
    return at_offset, (jnp.arange(window.size**2), each)

"""Examples of any size as a network's input of one size, and its maps brought back."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vt_flax.data.augment.resampling import (
    linear_weights,
    map_weights,
    resample,
    resized_size,
)


class Scaled(NamedTuple):
    """A network's input in evaluation.

    Attributes:
      images: levels from 0 to 255, float32, (batch, h, w, 3), each example in the upper
        left corner, and around it the mean color: what `normalize` makes 0 of.
      lengths: int32, (batch, 2): height and width of each example in it.
    """

    images: jax.Array
    lengths: jax.Array


def eval_canvas(config: ConfigDict) -> tuple[int, int]:
    """Returns height and width of the host's arrays in evaluation."""
    settings = config.segmentation
    own, other = settings.eval_canvas, settings.canvas
    return own[0] or other[0], own[1] or other[1]


def base_size(canvas: tuple[int, int], config: ConfigDict) -> list[int]:
    """Returns height and width of a network's input in evaluation at a scale of 1."""
    sides = zip(config.segmentation.eval_size, canvas, strict=True)
    return [side or whole for side, whole in sides]


def input_size(canvas: tuple[int, int], config: ConfigDict, scale: float) -> list[int]:
    """Returns height and width of a network's input in evaluation at a scale.

    Args:
      canvas: height and width of the arrays that hold the examples.
      config: the whole configuration.
      scale: one of `segmentation.eval_scales`.
    """
    sides = base_size(canvas, config)
    # 1.1 x 500 is not 551 for 550.00000000000006.
    return [math.ceil(round(side * scale, 6)) for side in sides]


def eval_inputs(
    images: jax.Array,
    sizes: jax.Array,
    config: ConfigDict,
    scale: float = 1.0,
    flip: bool = False,
) -> Scaled:
    """Brings examples to a network's input, each by one factor for both axes.

    The short side becomes `segmentation.short_side`, or stays where that is 0; but what
    would not fit `segmentation.eval_size` becomes as large as fits. All that times
    `scale`, antialiased and bilinear.

    Args:
      images: uint8, (batch, H, W, 3), each example in the upper left corner.
      sizes: int32, (batch, 2): height and width of each example.
      config: the whole configuration.
      scale: one of `segmentation.eval_scales`.
      flip: whether each example is mirrored, within its own part of the input.
    """
    canvas = images.shape[1:3]
    shape = input_size(canvas, config, scale)
    factor = jnp.min(jnp.asarray(base_size(canvas, config)) / jnp.maximum(sizes, 1), 1)
    wanted = jnp.ones_like(factor)
    if config.segmentation.short_side:
        wanted = config.segmentation.short_side / jnp.maximum(sizes.min(1), 1)
    factor = jnp.minimum(wanted, factor) * scale
    lengths = resized_size(sizes, factor[:, None])
    lengths = jnp.minimum(lengths, jnp.asarray(shape))

    height, width = jnp.unstack(lengths, axis=1)
    # Reversed as a whole, what lay at the right end lies at the left one.
    left = width - shape[1] if flip else jnp.zeros_like(width)
    rows = linear_weights(
        *(jnp.zeros_like(height), height, sizes[:, 0], shape[0], canvas[0]),
        antialias=True,
    )
    columns = linear_weights(
        *(left, width, sizes[:, 1], shape[1], canvas[1]), antialias=True, mirrored=flip
    )
    inside = rows.any(-1)[:, :, None, None] & columns.any(-1)[:, None, :, None]
    mean = 255 * jnp.asarray(config.data.mean, jnp.float32)
    return Scaled(jnp.where(inside, resample(images, rows, columns), mean), lengths)


def eval_weights(
    scaled: Scaled,
    sizes: jax.Array,
    cells: tuple[int, int],
    canvas: tuple[int, int],
    flip: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Returns what brings a network's maps of an input to the examples' own pixels.

    Args:
      scaled: what `eval_inputs` returned.
      sizes: int32, (batch, 2): height and width of each example.
      cells: height and width of the maps.
      canvas: height and width of the arrays that hold the examples' own pixels.
      flip: whether the examples were mirrored; what comes back is not.

    Returns:
      Matrices for `resample`, of rows, (batch, H, map height), and of columns, (batch,
      W, map width). Nothing but zeros for pixels outside an example.
    """
    shape = scaled.images.shape[1:3]
    rows, columns = (
        map_weights(
            *(sizes[:, axis], scaled.lengths[:, axis]),
            *(canvas[axis], cells[axis], shape[axis]),
            mirrored=flip and axis == 1,
        )
        for axis in range(2)
    )
    return rows, columns

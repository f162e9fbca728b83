"""Segmentation in evaluation: inputs of one size, and maps at the examples' sizes."""

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
        left corner, filled with the mean color.
      lengths: int32, (batch, 2): height and width of each example in the input.
    """

    images: jax.Array
    lengths: jax.Array


def eval_canvas(config: ConfigDict) -> tuple[int, int]:
    """Returns height and width of the host's arrays in evaluation."""
    settings = config.segmentation
    (height, width), default = settings.eval_canvas, settings.canvas
    return height or default[0], width or default[1]


def base_size(canvas: tuple[int, int], config: ConfigDict) -> list[int]:
    """Returns height and width of a network's input in evaluation at a scale of 1."""
    sides = zip(config.segmentation.eval_size, canvas, strict=True)
    return [side or default for side, default in sides]


def input_size(canvas: tuple[int, int], config: ConfigDict, scale: float) -> list[int]:
    """Returns height and width of a network's input in evaluation at a scale.

    Args:
      canvas: height and width of the arrays that hold the examples.
      config: the whole configuration.
      scale: one of `segmentation.eval_scales`.
    """
    sides = base_size(canvas, config)
    # Rounded first: 1.1 x 500 is 550.00000000000006 in floating point.
    return [math.ceil(round(side * scale, 6)) for side in sides]


def eval_inputs(
    images: jax.Array,
    sizes: jax.Array,
    config: ConfigDict,
    scale: float = 1.0,
    flip: bool = False,
) -> Scaled:
    """Resizes examples to a network's input, bilinear and antialiased.

    The short side becomes `segmentation.short_side` (0: unchanged), or as large as
    `segmentation.eval_size` allows, times `scale`. The aspect ratio does not change.

    Args:
      images: uint8, (batch, H, W, 3), each example in the upper left corner.
      sizes: int32, (batch, 2): height and width of each example.
      config: the whole configuration.
      scale: one of `segmentation.eval_scales`.
      flip: whether each example is mirrored, still in the upper left corner.
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

    def weights(axis: int, mirrored: bool) -> jax.Array:
        length = lengths[:, axis]
        # The reversed crop ends with the example, which then lies at its start.
        start = length - shape[axis] if mirrored else jnp.zeros_like(length)
        extents = shape[axis], canvas[axis]
        return linear_weights(
            start, length, sizes[:, axis], *extents, antialias=True, mirrored=mirrored
        )

    rows, columns = weights(0, False), weights(1, flip)
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
    """Returns matrices that resize a network's output maps to the examples' own pixels.

    Args:
      scaled: result of `eval_inputs`.
      sizes: int32, (batch, 2): height and width of each example.
      cells: height and width of the maps.
      canvas: height and width of the arrays that hold the examples.
      flip: whether the input is mirrored, which is undone.

    Returns:
      Matrices for `resample`: rows, (batch, H, map height), and columns, (batch, W, map
      width); zeros for pixels outside an example.
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

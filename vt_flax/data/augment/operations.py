"""Pillow's image operations on the device, to the level, for a batch with one each.

Every example of a batch may need another operation, and under `vmap` a switch would
compute all of them. So an operation is a row of parameters for two programs that every
example goes through: `pointwise` (one chain of arithmetic, one blend, one lookup table)
and `affine` (one resampling). What an operation does not use is the identity.

This is the formulation for CPUs and GPUs, and the reference for the TPU's (`kernel`).
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Of geometric operations, as in AutoAugment's published code.
FILL = 128
# Pillow computes coordinates in units of 1 / 65536 pixel.
FIXED = 1 << 16

GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
# What a blend starts from, in the order of `Operation.degenerate`.
BLENDS = ("Brightness", "Contrast", "Color", "Sharpness")
OPERATIONS = (
    *GEOMETRIC,
    *BLENDS,
    *("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize"),
    "Identity",
)


class Operation(NamedTuple):
    """Parameters of operations, scalars or arrays (batch,); `matrix` (batch, 6).

    Attributes:
      matrix: of an affine map from result to image, in units of 1 / FIXED pixel.
      threshold: levels from here on are inverted.
      mask: bits of a level that are kept.
      stretch: whether the levels are stretched to 0 to 255, channel by channel.
      equalize: whether the histogram is equalized, channel by channel.
      factor: of the image in the blend; 1 is the image.
      degenerate: what it is blended with, an index of BLENDS.
    """

    matrix: jax.Array
    threshold: jax.Array
    mask: jax.Array
    stretch: jax.Array
    equalize: jax.Array
    factor: jax.Array
    degenerate: jax.Array


def operation(name: str, value: float = 0.0, size: tuple[int, int] = (1, 1)):
    """Returns the parameters of an operation, as NumPy scalars.

    Args:
      name: one of OPERATIONS.
      value: what Pillow takes: shear in pixels a pixel, translation in pixels, angle in
        degrees, factor of an enhancement, threshold of Solarize, bits of Posterize;
        0 for those that take nothing.
      size: height and width of the images in pixels.

    Raises:
      ValueError: for another name.
    """
    result = Operation(
        matrix=_fixed([1, 0, 0, 0, 1, 0]),
        threshold=np.int32(256),
        mask=np.int32(255),
        stretch=np.bool_(False),
        equalize=np.bool_(False),
        factor=np.float32(1),
        degenerate=np.int32(0),
    )
    if name in GEOMETRIC:
        return result._replace(matrix=_fixed(_matrix(name, value, size)))
    if name in BLENDS:
        return result._replace(
            factor=np.float32(value), degenerate=np.int32(BLENDS.index(name))
        )
    if name == "Posterize":
        return result._replace(mask=np.int32(256 - (1 << (8 - round(value)))))
    if name in ("Solarize", "Invert"):
        return result._replace(threshold=np.int32(np.ceil(value)))
    if name == "AutoContrast":
        return result._replace(stretch=np.bool_(True))
    if name == "Equalize":
        return result._replace(equalize=np.bool_(True))
    if name == "Identity":
        return result
    raise ValueError(f"operation {name!r} is not known")


def _matrix(name: str, value: float, size: tuple[int, int]) -> list[float]:
    """Returns (a, b, c, d, e, f): the pixel at (x, y) comes from (ax+by+c, dx+ey+f)."""
    if name == "ShearX":
        return [1, value, 0, 0, 1, 0]
    if name == "ShearY":
        return [1, 0, 0, value, 1, 0]
    if name == "TranslateX":
        return [1, 0, value, 0, 1, 0]
    if name == "TranslateY":
        return [1, 0, 0, 0, 1, value]
    angle = -np.radians(value)
    cos, sin = np.cos(angle), np.sin(angle)
    y, x = size[0] / 2, size[1] / 2
    return [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y]


def _fixed(matrix: list[float]) -> np.ndarray:
    """Rounds a matrix as Pillow does, from pixels' corners to their centers."""
    a, b, c, d, e, f = matrix
    moved = np.asarray([a, b, c + (a + b) / 2, d, e, f + (d + e) / 2], np.float64)
    return np.floor(moved * FIXED + 0.5).astype(np.int32)


def stack(rows: Sequence[Operation]) -> Operation:
    """Puts the parameters of operations together along a new first axis."""
    return jax.tree.map(lambda *values: np.stack(values), *rows)


def apply_layers(
    images: jax.Array,
    layers: Sequence[Operation],
    names: Sequence[Collection[str]],
) -> jax.Array:
    """Applies to each image its operations, one layer after the other.

    Args:
      images: uint8, (batch, H, W, 3).
      layers: parameters (batch,) of each layer.
      names: the operations that there may be in each; what none needs is left out.

    Returns:
      uint8, (batch, H, W, 3).
    """
    # Channels apart: accelerators pad the last axis, and three become 128.
    images = images.transpose(0, 3, 1, 2)
    for layer, present in zip(layers, names, strict=True):
        images = pointwise(images, layer, present)
        if not set(GEOMETRIC).isdisjoint(present):
            images = affine(images, layer.matrix)
    return images.transpose(0, 2, 3, 1)


def affine(images: jax.Array, matrix: jax.Array) -> jax.Array:
    """Maps each image by its matrix: the nearest pixel, and gray where there is none.

    Args:
      images: uint8, (batch, 3, H, W).
      matrix: int32, (batch, 6); see `Operation`.

    Returns:
      uint8, (batch, 3, H, W): `Image.transform` with `Image.Resampling.NEAREST`.
    """
    height, width = images.shape[2:]
    y = jnp.arange(height, dtype=jnp.int32)[:, None]
    x = jnp.arange(width, dtype=jnp.int32)[None, :]
    coefficients = [matrix[:, i, None, None] for i in range(6)]
    left, top, inside = origin(coefficients, x, y, (height, width))
    place = jnp.where(inside, top * width + left, 0).reshape(len(images), 1, -1)
    pixels = images.reshape(*images.shape[:2], -1)
    moved = jnp.take_along_axis(pixels, place, axis=2).reshape(images.shape)
    return jnp.where(inside[:, None], moved, FILL).astype(jnp.uint8)


def origin(
    matrix: Sequence[jax.Array], x: jax.Array, y: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the column and row that pixels come from, and whether they are inside.

    Args:
      matrix: its six coefficients; see `Operation`.
      x: columns of the result, int32.
      y: its rows, int32.
      size: height and width of the image.
    """
    a, b, c, d, e, f = matrix
    height, width = size
    left, top = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
    inside = (left >= 0) & (left < width) & (top >= 0) & (top < height)
    return left, top, inside


def pointwise(
    images: jax.Array, operations: Operation, names: Collection[str] = OPERATIONS
) -> jax.Array:
    """Applies to each image whatever its operation does to levels and neighbors.

    Args:
      images: uint8, (batch, 3, H, W).
      operations: parameters (batch,).
      names: the operations that there may be; what none of them needs is left out.

    Returns:
      uint8, (batch, 3, H, W): what ImageOps and ImageEnhance return.
    """

    def each(value: jax.Array) -> jax.Array:
        return value[:, None, None, None]

    levels = images.astype(jnp.int32)
    # Each of these is the identity in all operations but one, so their order is free.
    result = levels
    if "Equalize" in names:
        equalized = equalize(images).astype(jnp.int32)
        result = jnp.where(each(operations.equalize), equalized, result)
    if "AutoContrast" in names:
        low, high = levels.min((2, 3), keepdims=True), levels.max((2, 3), keepdims=True)
        stretched = (levels - low) * 255 // jnp.maximum(high - low, 1)
        stretches = each(operations.stretch) & (high > low)
        result = jnp.where(stretches, stretched, result)
    result = jnp.where(result >= each(operations.threshold), 255 - result, result)
    result = result & each(operations.mask)

    blends = [i for i, name in enumerate(BLENDS) if name in names]
    if not blends:
        return result.astype(jnp.uint8)
    start = jnp.select(
        [each(operations.degenerate == i) for i in blends],
        [
            jnp.broadcast_to(_degenerate(BLENDS[i], images), images.shape)
            for i in blends
        ],
    )
    factor = each(operations.factor)
    blend = start + factor * (levels - start).astype(jnp.float32)
    blend = jnp.clip(jnp.floor(blend), 0, 255).astype(jnp.int32)
    return jnp.where(factor == 1, result, blend).astype(jnp.uint8)


def _degenerate(name: str, images: jax.Array) -> jax.Array:
    """Returns what ImageEnhance blends an image with: int32, broadcastable to it."""
    levels = images.astype(jnp.int32)
    if name == "Sharpness":
        return _smooth(images)
    if name == "Color":
        return _gray(levels)
    if name == "Contrast":
        count = levels.shape[2] * levels.shape[3]
        total = _gray(levels).sum((1, 2, 3), keepdims=True)
        # Rounded half up, in whole numbers.
        return (2 * total + count) // (2 * count)
    return jnp.zeros_like(levels[:, :1])


def _gray(levels: jax.Array) -> jax.Array:
    """Pillow's conversion to L: (batch, 1, H, W), int32."""
    return luma(*(levels[:, i : i + 1] for i in range(3)))


def luma(red: jax.Array, green: jax.Array, blue: jax.Array) -> jax.Array:
    """Pillow's weighted mean of levels, int32."""
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _smooth(images: jax.Array) -> jax.Array:
    """Pillow's ImageFilter.SMOOTH: a mean with weight 5 in the middle; borders stay."""
    height, width = images.shape[2:]
    levels = images.astype(jnp.int32)
    padded = jnp.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    total = sum(
        padded[:, :, top : top + height, left : left + width].astype(jnp.int32)
        for top in range(3)
        for left in range(3)
    )
    # (total + 4 middle) / 13, rounded; 13 is odd, so there are no ties.
    smooth = (2 * (total + 4 * levels) + 13) // 26
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    inner = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    return jnp.where(inner, smooth, levels)


def equalize(images: jax.Array) -> jax.Array:
    """Equalizes the histogram of each channel of each image, as ImageOps does.

    Args:
      images: uint8, (batch, 3, H, W).

    Returns:
      uint8, (batch, 3, H, W).
    """
    counts = histogram(images)
    before = jnp.cumsum(counts, -1) - counts
    # The pixels below the brightest level that occurs, in 255 steps.
    step = jnp.where(counts > 0, before, 0).max(-1, keepdims=True) // 255
    table = (before + step // 2) // jnp.maximum(step, 1)
    table = jnp.where(step > 0, jnp.minimum(table, 255), jnp.arange(256))
    return look_up(table, images)


def histogram(images: jax.Array) -> jax.Array:
    """Counts levels: uint8 (batch, channels, H, W) to int32 (batch, channels, 256).

    A scatter on the CPU. GPUs, where many would add to the same place, take the product
    of one-hot high and low halves of the levels, which their matrix units make.
    """

    def scatter(images: jax.Array) -> jax.Array:
        zeros = jnp.zeros((*images.shape[:2], 256), jnp.int32)
        b = jnp.arange(images.shape[0])[:, None, None, None]
        c = jnp.arange(images.shape[1])[:, None, None]
        return zeros.at[b, c, images].add(1)

    return jax.lax.platform_dependent(images, cpu=scatter, default=histogram_by_product)


def histogram_by_product(images: jax.Array) -> jax.Array:
    """Returns `histogram(images)` without a scatter."""
    high, low = _halves(images)
    # Counts are whole numbers below 2^24: exact in float32.
    counts = jnp.einsum(
        "bcyxh,bcyxl->bchl", high, low, preferred_element_type=jnp.float32
    )
    return counts.reshape(*images.shape[:2], 256).astype(jnp.int32)


def look_up(table: jax.Array, images: jax.Array) -> jax.Array:
    """Puts levels through tables.

    Args:
      table: levels, (batch, channels, 256).
      images: uint8, (batch, channels, H, W).

    Returns:
      uint8, (batch, channels, H, W).
    """

    def gather(table: jax.Array, images: jax.Array) -> jax.Array:
        places = images.reshape(*images.shape[:2], -1).astype(jnp.int32)
        found = jnp.take_along_axis(table, places, axis=-1)
        return found.reshape(images.shape).astype(jnp.uint8)

    return jax.lax.platform_dependent(
        table, images, cpu=gather, default=look_up_by_product
    )


def look_up_by_product(table: jax.Array, images: jax.Array) -> jax.Array:
    """Returns `look_up(table, images)` without a gather."""
    high, low = _halves(images)
    # Levels are exact in bfloat16, and of each sum one term is not zero.
    rows = table.reshape(*table.shape[:2], 16, 16).astype(jnp.bfloat16)
    found = jnp.einsum("bcyxh,bchl->bcyxl", high, rows)
    return (found * low).sum(-1).astype(jnp.uint8)


def _halves(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One-hot high and low four bits of levels, bfloat16, (..., 16)."""
    return (
        jax.nn.one_hot(images >> 4, 16, dtype=jnp.bfloat16),
        jax.nn.one_hot(images & 15, 16, dtype=jnp.bfloat16),
    )
